# SPDX-License-Identifier: Apache-2.0
"""For tests: a machine with exact delays, and answers of a good server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

from osbase.net.dhcp4.lease import Lease
from osbase.net.dhcp4.machine import Machine, Outgoing, State
from osbase.net.dhcp4.packet import Message, Option, Type

MAC = b"\x02\x00\x00\x00\x00\x07"
SERVER = IPv4Address("192.0.2.1")
ADDRESS = IPv4Address("192.0.2.50")
OPTIONS: dict[int, bytes] = {
    Option.SERVER_ID: SERVER.packed,
    Option.SUBNET_MASK: b"\xff\xff\xff\x00",
    Option.ROUTER: SERVER.packed,
    Option.DNS: SERVER.packed + IPv4Address("9.9.9.9").packed,
    Option.LEASE_TIME: (1000).to_bytes(4),
}


def machine(hint: IPv4Address | None = None) -> Machine:
    """Return one with distinct transaction numbers and exact delays."""
    numbers: Iterator[float] = iter(n / 1000 for n in range(1, 1000))

    # 0.5 in the back-off is the middle of the jitter: no change.
    def rand() -> float:
        return 0.5 if not asked.pop() else next(numbers)

    asked: list[bool] = []

    class Exact(Machine):
        def _new_xid(self) -> None:
            asked.append(True)
            super()._new_xid()

        def _back_off(self, now: float) -> None:
            asked.append(False)
            super()._back_off(now)

        def _spread(self, granted: Lease) -> Lease:
            return granted

    return Exact(MAC, "node-1", hint, rand)


def reply(to: Outgoing, kind: Type, **changes: object) -> Message:
    """Return what a good server answers, with changes."""
    message = Message(False, kind, to.message.xid, MAC, yours=ADDRESS, options=OPTIONS)
    return replace(message, **changes)  # type: ignore[arg-type]


def only(messages: list[Outgoing]) -> Outgoing:
    """Return the only message."""
    assert len(messages) == 1, messages
    return messages[0]


def leased(client: Machine) -> Lease | None:
    """Return its lease, with a type that a checker does not narrow."""
    return client.lease


def bound(now: float = 0.0) -> Machine:
    """Return a machine that has a lease since `now`."""
    client = machine()
    discover = only(client.start(now))
    request = only(client.receive(now, reply(discover, Type.OFFER)))
    assert client.receive(now, reply(request, Type.ACK)) == []
    assert client.state is State.BOUND
    return client
