# SPDX-License-Identifier: Apache-2.0
"""Packet socket and clock around the machine.

The socket is AF_PACKET with the link header left to the kernel; a filter in
the kernel passes IPv4/UDP to port 68 only. A renewal goes to the link address
from which the lease came, the server's or its relay's.

The kernel's own stack, where port 68 is closed, may answer a server's unicast
with an ICMP port unreachable; servers ignore it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final

from osbase import event
from osbase.net.dhcp4 import clock, packet
from osbase.net.dhcp4.lease import Lease
from osbase.net.dhcp4.machine import Machine, Outgoing
from osbase.netlink import bpf

_ETH_P_IP: Final = 0x0800
_BROADCAST_MAC: Final = b"\xff" * 6
_SOL_PACKET: Final = 263
_PACKET_AUXDATA: Final = 8
_AUXDATA = struct.Struct("=IIIHHHH")
_TP_STATUS_CSUMNOTREADY: Final = 1 << 3
_MAX_PACKET: Final = 65536
_DRAIN: Final = 64  # packets read before other tasks run


def _filter() -> bytes:
    """Return classic BPF that passes IPv4/UDP to port 68, no fragments."""
    return struct.pack(
        "=" + "HBBI" * 9,
        *(0x30, 0, 0, 9),  # A = protocol
        *(0x15, 0, 6, socket.IPPROTO_UDP),  # not UDP: drop
        *(0x28, 0, 0, 6),  # A = flags and fragment offset
        *(0x45, 4, 0, 0x1FFF),  # any offset: drop
        *(0xB1, 0, 0, 0),  # X = length of the IP header
        *(0x48, 0, 0, 2),  # A = destination port
        *(0x15, 0, 1, packet.CLIENT_PORT),  # another: drop
        *(0x06, 0, 0, 0xFFFFFFFF),  # pass
        *(0x06, 0, 0, 0),  # drop
    )


class Client:
    """A client on one link; `run` it for as long as the link exists."""

    def __init__(
        self,
        interface: str,
        mac: bytes,
        lease: event.Value[Lease | None],
        *,
        host_name: str = "",
        hint: IPv4Address | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        """lease: set at each grant, renewal and loss (None). hint: the address
        to ask for, such as one from an earlier run.
        """
        self._interface = interface
        self._lease = lease
        self._machine = Machine(mac, host_name, hint)
        self._log = logger or logging.getLogger(__name__)
        self._wake = asyncio.Event()
        self._relink = False
        self._server_mac = _BROADCAST_MAC

    def link_came_up(self) -> None:
        """Look for a server again: the cable may lead elsewhere now. The lease
        stays.
        """
        self._relink = True
        self._wake.set()

    async def run(self) -> None:
        """Obtain and keep a lease until cancelled. Raises OSError when the
        link cannot be used, such as when it is gone.
        """
        with self._open() as sock:
            await self._run(sock)

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        try:
            bpf.attach_program(sock, _filter())
            sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            # Bound last: packets arrive only from here on.
            sock.bind((self._interface, _ETH_P_IP))
        except OSError as error:
            sock.close()
            name = errno.errorcode.get(error.errno or 0, "?")
            raise OSError(
                error.errno, f"open a packet socket on {self._interface}: {name}"
            ) from error
        return sock

    async def _run(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(sock, self._wake.set)
        machine = self._machine
        timer = clock.Timer(self._wake.set)
        try:
            self._send(sock, machine.start(clock.now()))
            while True:
                timer.set(machine.deadline)
                await self._wake.wait()
                self._wake.clear()
                before = machine.lease
                if self._relink:
                    self._relink = False
                    self._send(sock, machine.start(clock.now()))
                for message, sender, source in self._received(sock):
                    self._take(sock, message, sender, source)
                # After any wake-up: many packets must not delay the timer.
                self._send(sock, machine.tick(clock.now()))
                if machine.lease != before:
                    self._lease.set(machine.lease)
                await asyncio.sleep(0)
        finally:
            timer.close()
            loop.remove_reader(sock)

    def _take(
        self, sock: socket.socket, message: packet.Message, sender: IPv4Address, source: bytes
    ) -> None:
        before = self._machine.lease
        try:
            answers = self._machine.receive(clock.now(), message, sender)
        except packet.PacketError as error:
            self._log.warning("%s: ignored a message: %s", self._interface, error)
            return
        lease = self._machine.lease
        if lease is None and before is not None:
            reason = message.options.get(packet.Option.MESSAGE, b"").decode("ascii", "replace")
            self._log.warning(
                "%s: the server took back %s: %s",
                self._interface,
                before.address,
                ascii(reason[:100]),
            )
        elif lease is not None and lease is not before:
            self._server_mac = source
        self._send(sock, answers)

    def _send(self, sock: socket.socket, messages: list[Outgoing]) -> None:
        for outgoing in messages:
            unicast = outgoing.destination != packet.BROADCAST
            mac = self._server_mac if unicast else _BROADCAST_MAC
            data = packet.frame(outgoing.source, outgoing.destination, outgoing.message.encode())
            self._log.debug("%s: send %s", self._interface, outgoing.message.kind.name)
            try:
                sock.sendto(data, (self._interface, _ETH_P_IP, 0, 0, mac))
            except OSError as error:
                # Down or full for now: it counts as lost, and is sent again.
                if error.errno not in (errno.ENETDOWN, errno.ENOBUFS, errno.EAGAIN):
                    raise

    def _received(self, sock: socket.socket) -> Iterator[tuple[packet.Message, IPv4Address, bytes]]:
        """Yield arrived messages with IP and link address of the sender."""
        for _ in range(_DRAIN):
            try:
                data, controls, _, source = sock.recvmsg(_MAX_PACKET, socket.CMSG_SPACE(64))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # reported once, when the link goes down
                    raise
                continue
            try:
                ready = not _checksum_not_ready(controls)
                message = packet.decode(packet.unframe(data, checksum_ready=ready))
                yield message, packet.sender_of(data), source[4]
            except packet.PacketError as error:
                self._log.debug("%s: ignored a packet: %s", self._interface, error)


def _checksum_not_ready(controls: list[tuple[int, int, bytes]]) -> bool:
    """Return whether the kernel says that the checksum is left to hardware."""
    for level, kind, data in controls:
        if level == _SOL_PACKET and kind == _PACKET_AUXDATA and len(data) >= _AUXDATA.size:
            return bool(_AUXDATA.unpack_from(data)[0] & _TP_STATUS_CSUMNOTREADY)
    return False
