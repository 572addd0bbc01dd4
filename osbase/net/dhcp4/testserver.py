# SPDX-License-Identifier: Apache-2.0
"""A DHCPv4 server for tests: one address, leases of seconds, can be silenced.

Real servers do not give such short leases (dnsmasq: two minutes at least); the
tests of the exchange as such use a real one.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from types import TracebackType
from typing import Final, Self

from osbase.net.dhcp4 import packet
from osbase.net.dhcp4.packet import Message, Option, PacketError, Type

_IP_PKTINFO: Final = 8
_PKTINFO = struct.Struct("=i4s4s")  # interface, local address, destination


@dataclass(frozen=True)
class Seen:
    """A client's message, and whether it went to all or to this server."""

    message: Message
    unicast: bool

    @property
    def requested(self) -> IPv4Address | None:
        """The address of option 50."""
        raw = self.message.options.get(Option.REQUESTED_ADDRESS)
        return IPv4Address(raw) if raw is not None else None


@dataclass
class Server:
    """Answers on a thread, for the time of a `with` block, in the network
    namespace in which `open` was called.

    Times are seconds. `silent`, `address` and `options` may change at any time;
    a request for another address is refused. options: replace or extend the
    usual ones; None leaves one out. seen: all received messages.
    """

    link: str
    server: IPv4Address
    address: IPv4Address
    lease_s: int
    renew_s: int
    rebind_s: int
    silent: bool = False
    options: Mapping[int, bytes | None] = field(default_factory=dict)
    seen: queue.Queue[Seen] = field(default_factory=queue.Queue)

    def open(self) -> Self:
        """Open the socket, in the calling thread's namespace."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.link.encode())
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._socket.bind(("", packet.SERVER_PORT))
        return self

    def __enter__(self) -> Self:
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        with contextlib.suppress(OSError):  # wakes the thread; not connected
            self._socket.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            data, controls, _, _ = self._socket.recvmsg(2048, socket.CMSG_SPACE(_PKTINFO.size))
            if self._ended:
                return
            try:
                message = packet.decode(data)
            except PacketError:
                continue
            destination = IPv4Address(_PKTINFO.unpack(controls[0][2])[2])
            seen = Seen(message, destination != packet.BROADCAST)
            self.seen.put(seen)
            kind = None if self.silent else self._answer(seen)
            if kind is not None:
                reply = self._reply(message, kind)
                self._socket.sendto(reply.encode(), (str(packet.BROADCAST), packet.CLIENT_PORT))

    def _answer(self, seen: Seen) -> Type | None:
        message = seen.message
        if message.kind is Type.DISCOVER:
            return Type.OFFER
        if message.kind is not Type.REQUEST:
            return None
        chosen = message.options.get(Option.SERVER_ID, self.server.packed)
        if chosen != self.server.packed:
            return None
        asked = seen.requested or message.client
        return Type.ACK if asked == self.address else Type.NAK

    def _reply(self, to: Message, kind: Type) -> Message:
        options: dict[int, bytes] = {Option.SERVER_ID: self.server.packed}
        if kind is Type.NAK:
            return Message(False, kind, to.xid, to.mac, options=options)
        options |= {
            Option.SUBNET_MASK: b"\xff\xff\xff\x00",
            Option.ROUTER: self.server.packed,
            Option.LEASE_TIME: self.lease_s.to_bytes(4),
            Option.RENEWAL_TIME: self.renew_s.to_bytes(4),
            Option.REBINDING_TIME: self.rebind_s.to_bytes(4),
        }
        for number, value in self.options.items():
            if value is None:
                options.pop(number, None)
            else:
                options[number] = value
        return Message(False, kind, to.xid, to.mac, yours=self.address, options=options)
