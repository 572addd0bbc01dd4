# SPDX-License-Identifier: Apache-2.0
"""Record the bytes that the service's datapath sends for an attach.

The module attaches to its own namespaces, records the sends on netlink sockets,
and detaches. So the recorded messages are valid, and are those of this tree's
datapath.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.test.bench.attach import messages
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.world.namespaces import Netns

# Other numbers than those of the plain floor.
_PREFIXES = ("10.200.0.0/20", "fd00:10:200::/112")
_OWN_NETNS = "/proc/thread-self/ns/net"


@dataclass(frozen=True)
class Recorded:
    """One attach: the datagrams, and whether each was sent inside; the
    descriptor of the namespace in them; the index of the link on the host.
    """

    datagrams: tuple[tuple[bool, bytes], ...]
    netns_fd: int
    index: int

    def for_netns(self, fd: int) -> list[tuple[bool, bytes]]:
        """The datagrams for another namespace."""
        return [
            (inside, _moved(data, self.netns_fd, fd) if not inside else data)
            for inside, data in self.datagrams
        ]


def _moved(data: bytes, before: int, after: int) -> bytes:
    if messages.new_link_index(data) is None:
        return data
    return messages.with_netns(data, before, after)


class _Tap:
    """Records sends on netlink sockets, and where those were opened."""

    def __init__(self) -> None:
        self._home = os.stat(_OWN_NETNS).st_ino
        self._sent: list[tuple[bool, bytes]] = []
        self._real: type[socket.socket] = socket.socket

    def __enter__(self) -> _Tap:
        tap = self

        class Tapped(self._real):  # type: ignore[name-defined, misc]
            """A socket that notes."""

            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                self.bench_inside = os.stat(_OWN_NETNS).st_ino != tap._home

            def send(self, data: Any, *rest: Any) -> int:
                tap._note(self, bytes(data))
                return int(super().send(data, *rest))

            def sendto(self, data: Any, *rest: Any) -> int:
                tap._note(self, bytes(data))
                return int(super().sendto(data, *rest))

            def sendmsg(self, buffers: Any, *rest: Any) -> int:
                parts = [bytes(part) for part in buffers]
                tap._note(self, b"".join(parts))
                return int(super().sendmsg(parts, *rest))

        socket.socket = Tapped  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        socket.socket = self._real  # type: ignore[misc]

    def _note(self, sock: Any, data: bytes) -> None:
        if sock.family == socket.AF_NETLINK:
            self._sent.append((sock.bench_inside, data))

    def take(self) -> list[tuple[bool, bytes]]:
        """Return the sends since the last call."""
        sent, self._sent = self._sent, []
        return sent


def record(count: int) -> list[Recorded]:
    """Record `count` different attaches. The host is the calling thread's
    namespace. Raises BenchError.
    """
    with _Tap() as tap:
        engine = Engine(KernelDatapath())
        engine.set_prefixes([ip_network(prefix) for prefix in _PREFIXES])
        engine.start()
        pods: list[Netns] = []
        try:
            found = []
            for number in range(count):
                pods.append(Netns())
                tap.take()
                engine.attach(AttachIntent(f"recorded-{number}", pods[-1].path, "eth0"))
                found.append(_recorded(tap.take()))
            return found
        finally:
            engine.collect(lambda workload_id, if_name: False)
            engine.close()
            for pod in pods:
                pod.close()


def _recorded(sent: Sequence[tuple[bool, bytes]]) -> Recorded:
    for inside, data in sent:
        index = messages.new_link_index(data)
        if index is not None and not inside:
            return Recorded(tuple(sent), messages.netns_fd(data), index)
    raise BenchError(
        f"floor same: of an attach {len(sent)} sends were seen, none of which makes a veth pair; "
        "does the datapath send in a way that recording.py does not know?"
    )
