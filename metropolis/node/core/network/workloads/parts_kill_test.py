# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every point at which an attachment with a part is half made.

As kill_test, which has the points within a send and those of the whole service:
here they are around each send, and around each transaction of nftables.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.lab import objects
from metropolis.node.core.network.workloads.testing.parts_host import (
    BLUE_RED,
    KernelHost,
    kernel_host,
    started,
)
from metropolis.node.core.network.workloads.testing.toy_part import COLOUR
from osbase.netlink.transport import NetlinkSocket
from osbase.nftables import Nftables


@pytest.fixture
def kernel() -> Iterator[KernelHost]:
    with kernel_host() as made:
        yield made


_ACTS: Sequence[tuple[type, str]] = [
    (NetlinkSocket, "batch"),
    (NetlinkSocket, "batch_encoded"),
    (Nftables, "apply"),
]


def killed_at(point: int, act: Callable[[Engine], object]) -> bool:
    """Run `act` with a new engine in a process of its own, that is killed at a
    point: before or after it sends something to the kernel, counted from 1.
    Returns whether it got there.
    """
    if (pid := os.fork()) == 0:
        try:
            _die_at(point)
            act(started(KernelDatapath((COLOUR,))))
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def _die_at(point: int) -> None:
    count = itertools.count(1)

    def pass_point() -> None:
        if next(count) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(real: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any, **options: Any) -> None:
            pass_point()
            real(*arguments, **options)
            pass_point()

        return wrapped

    for kind, name in _ACTS:
        setattr(kind, name, wrap(getattr(kind, name)))


@pytest.mark.parametrize("attaching", [True, False])
def test_killed_at_every_point(kernel: KernelHost, attaching: bool) -> None:
    """The start after it finds the attachment whole, or nothing of it."""
    path = kernel.add_netns()
    intent = AttachIntent("w1", path, "eth0", parts=BLUE_RED)
    left: set[tuple[bool, bool]] = set()

    def act(engine: Engine) -> None:
        if attaching:
            engine.attach(intent)
        else:
            engine.detach("w1")

    def prepare() -> None:
        if attaching:
            kernel.engine.detach("w1")
        else:
            kernel.engine.attach(intent)
        kernel.engine.close()

    prepare()
    nothing = objects()
    for point in itertools.count(1):
        killed = killed_at(point, act)
        linked, keys = objects() != nothing, kernel.keys()
        assert keys in (set(), {"1", "3"})
        left.add((linked, bool(keys)))
        # One that recovers is killed, too.
        for again in itertools.count(1):
            if not killed_at(again, lambda _: None):
                break
            if point % 5:  # all of them at some, one at others
                break
        kernel.restart()
        found = kernel.engine.list()
        assert kernel.keys() == ({"1", "3"} if found else set())
        for checked in kernel.engine.check("w1") if found else ():
            assert checked.findings == ()
        act(kernel.engine)
        assert kernel.keys() == ({"1", "3"} if attaching else set())
        prepare()
        if not killed:
            break
    assert point > (8 if attaching else 6)
    # Elements without a commit, of an attach; a commit without elements, of a
    # removal; and before and after.
    assert len(left) >= 3
    kernel.engine = started(KernelDatapath((COLOUR,)))
