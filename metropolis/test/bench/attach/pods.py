# SPDX-License-Identifier: Apache-2.0
"""Pods: fresh network namespaces, and their end.

The kernel removes a namespace later, in a worker that takes the same locks as
an attach. So pods live until a phase is over, and then their end is awaited
(see settling).
"""

import contextlib
import socket
import time
from collections.abc import Sequence

from metropolis.test.bench.attach.model import Pod
from metropolis.test.bench.attach.subjects import Subject
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.world.namespaces import Netns

_GONE_S = 30.0
_LOOK_S = 0.0005


class Pods:
    """Those of a phase. Use by `with`."""

    def __init__(self) -> None:
        self._made: dict[str, Netns] = {}

    def make(self, subject: Subject, count: int = 1) -> list[Pod]:
        """New ones for a subject."""
        return [self._new(subject) for _ in range(count)]

    def _new(self, subject: Subject) -> Pod:
        netns = Netns()
        self._made[netns.path] = netns
        subject.prepare_pod(netns)
        number = subject.next_number()
        return Pod(number, f"bench-{number:08}", netns.path)

    def await_gone(self, pods: Sequence[Pod]) -> None:
        """Wait until none has its interface. Raises BenchError. It looks often,
        since nothing tells of the end of a link in another namespace.
        """
        deadline = time.monotonic() + _GONE_S
        for pod in pods:
            while "eth0" in self.interfaces(pod):
                if time.monotonic() > deadline:
                    raise BenchError(f"eth0 is still there {_GONE_S:g} s after DEL")
                time.sleep(_LOOK_S)

    def interfaces(self, pod: Pod) -> list[str]:
        """What it has."""
        return [name for _, name in self._made[pod.path].inside(socket.if_nameindex)]

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            for netns in self._made.values():
                stack.callback(netns.close)
        self._made.clear()
