# SPDX-License-Identifier: Apache-2.0
"""Something that happens at a chosen point between an engine and the kernel."""

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from metropolis.node.core.network.workloads.datapath.parts import LinkPart
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.testing.parts_host import started
from osbase.netlink.transport import NetlinkSocket

_ACTS: Sequence[tuple[type, str]] = [
    (NetlinkSocket, "batch"),
    (NetlinkSocket, "batch_encoded"),
]


def killed_at(point: int, act: Callable[[Engine], object], parts: Sequence[LinkPart]) -> bool:
    """Run `act` with a new engine, which has these parts, in a process of its
    own, that is killed at a point: before or after it sends something to the
    kernel, counted from 1. Returns whether it got there.
    """
    if (pid := os.fork()) == 0:
        try:
            _die_at(point)
            act(started(KernelDatapath(parts)))
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def _die_at(point: int) -> None:
    do_at(pytest.MonkeyPatch(), point, lambda _: os.kill(os.getpid(), signal.SIGKILL))


def do_at(patch: pytest.MonkeyPatch, point: int, do: Callable[[type], object]) -> None:
    """Do it once: before or after something is sent to the kernel, counted from
    1. do: takes what sends it.
    """
    count = itertools.count(1)

    def wrap(kind: type, real: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any, **options: Any) -> None:
            if next(count) == point:
                do(kind)
            real(*arguments, **options)
            if next(count) == point:
                do(kind)

        return wrapped

    for kind, name in _ACTS:
        patch.setattr(kind, name, wrap(kind, getattr(kind, name)))
