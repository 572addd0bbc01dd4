# SPDX-License-Identifier: Apache-2.0
"""Pods: fresh network namespaces, and their end.

The kernel ends a namespace when it has time, in a worker of its own that takes
locks which attaches take, too. So pods live until a phase is over, and then
their end is awaited.
"""

import contextlib
import socket
import threading

from metropolis.test.bench.model import BenchError, Pod
from metropolis.test.bench.subjects import Subject
from metropolis.test.world.namespaces import Netns
from osbase.netlink import rtnl
from osbase.netlink.events import LinkEvents
from osbase.netlink.rtnl import LinkRemoved
from osbase.netlink.transport import NetlinkSocket

_END_S = 300.0
_SENTINEL = 1 << 22  # an index


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


def settle() -> None:
    """Wait until the kernel has ended the namespaces that were closed.

    It ends them in the order of their closing, or together: one more is
    closed, with the end of a link in it, whose other end is seen to go.
    Raises BenchError.
    """
    gone = threading.Event()

    def removed(link: LinkRemoved) -> None:
        if link.ifindex == _SENTINEL:
            gone.set()

    events = LinkEvents(removed, gone.set)
    events.start()
    try:
        netns = Netns()
        try:
            with open(netns.path, "rb") as file, NetlinkSocket() as sock:
                near = rtnl.VethEnd("sentinel", _SENTINEL, None)
                far = rtnl.VethEnd("sentinel", 2, None)
                sock.batch([rtnl.new_veth(near, far, netns_fd=file.fileno(), mtu=1500, group=0)])
        finally:
            netns.close()
        if not gone.wait(_END_S):
            raise BenchError(f"namespaces that were closed are still there after {_END_S:g} s")
    finally:
        events.close()
