# SPDX-License-Identifier: Apache-2.0
"""The first two packets of an SCTP association, by raw sockets (RFC 9260).

A client sends INIT, a server answers INIT ACK, whose state cookie carries the
server's text; without a server the answer is ABORT. That is what translation of
addresses needs to show: the kernel's conntrack tracks these packets as it does
any. The kernel's own SCTP is not needed.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

PROTOCOL: Final = 132
INIT, INIT_ACK, ABORT = 1, 2, 6
_COOKIE: Final = 7  # a parameter of INIT ACK
_POLYNOMIAL: Final = 0x82F63B78  # CRC32c, reflected
_PACKET_MAX: Final = 65536
_AGAIN_S: Final = 0.25


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE: Final = _table()


def crc32c(data: bytes) -> int:
    """Return the checksum of RFC 9260, appendix A."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Packet:
    """A packet with one chunk. tag: the verification tag. initiate: the tag
    that the other side must use; text: of a cookie, both not in ABORT.
    """

    source: int
    destination: int
    kind: int
    tag: int = 0
    initiate: int = 0
    text: bytes = b""


def encode(packet: Packet) -> bytes:
    """Return the packet, with its checksum."""
    body = b""
    if packet.kind != ABORT:
        body = struct.pack("!IIHHI", packet.initiate, 65536, 1, 1, packet.initiate)
    if packet.kind == INIT_ACK:
        cookie = struct.pack("!HH", _COOKIE, 4 + len(packet.text)) + packet.text
        body += cookie + bytes(-len(cookie) % 4)
    chunk = struct.pack("!BBH", packet.kind, 0, 4 + len(body)) + body
    head = struct.pack("!HHI", packet.source, packet.destination, packet.tag)
    checksum = struct.pack("<I", crc32c(head + bytes(4) + chunk))
    return head + checksum + chunk


def decode(data: bytes) -> Packet | None:
    """Return the packet; None: its checksum is wrong, or it is another kind."""
    if len(data) < 16 or struct.unpack_from("<I", data, 8)[0] != crc32c(
        data[:8] + bytes(4) + data[12:]
    ):
        return None
    source, destination, tag = struct.unpack_from("!HHI", data)
    kind = data[12]
    if kind == ABORT:
        return Packet(source, destination, kind, tag)
    if kind not in (INIT, INIT_ACK) or len(data) < 32:
        return None
    (initiate,) = struct.unpack_from("!I", data, 16)
    text = b""
    if kind == INIT_ACK and len(data) >= 36:
        (length,) = struct.unpack_from("!H", data, 34)
        text = data[36 : 32 + length]
    return Packet(source, destination, kind, tag, initiate, text)


def payload(version: int, data: bytes) -> bytes:
    """Return an SCTP packet as a raw socket reads it: IPv4's has its header."""
    return data[(data[0] & 0xF) * 4 :] if version == 4 and data else data


def raw_socket(version: int) -> socket.socket:
    """Return a raw socket that receives all SCTP of a namespace."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return socket.socket(family, socket.SOCK_RAW, PROTOCOL)


def ask(version: int, address: str, port: int, timeout_s: float, source: str = "") -> bytes | None:
    """Send INIT, again now and then; return the text of the answer; None: there
    is none. Raises ConnectionRefusedError for ABORT, and OSError.
    """
    end = time.monotonic() + timeout_s
    own, tag = secrets.randbelow(28_000) + 32_768, secrets.randbits(32) | 1
    with raw_socket(version) as sock:
        if source:
            sock.bind((source, 0))
        sock.connect(socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM)[0][4])
        init = encode(Packet(own, port, INIT, initiate=tag))
        while (now := time.monotonic()) < end:
            sock.send(init)
            again = min(end, now + _AGAIN_S)
            while (rest := again - time.monotonic()) > 0:
                sock.settimeout(rest)
                try:
                    found = decode(payload(version, sock.recv(_PACKET_MAX)))
                except TimeoutError:
                    break
                if found is None or (found.source, found.destination) != (port, own):
                    continue
                if found.kind == ABORT:
                    raise ConnectionRefusedError
                if found.kind == INIT_ACK and found.tag == tag:
                    return found.text
    return None


class Stack:
    """Answers INITs of one family in a namespace: INIT ACK where `texts` has
    the address and port, else ABORT.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self.socket = raw_socket(version)
        self.socket.setblocking(False)
        if version == 6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_PKTINFO, 1)

    def receive(self) -> tuple[Packet, str, str, tuple[object, bytes]] | None:
        """Return an INIT with its sender and the address it came to, and what
        `answer` needs; None: another packet.
        """
        data, ancillary, _, sender = self.socket.recvmsg(_PACKET_MAX, 64)
        found = decode(payload(self.version, data))
        if found is None or found.kind != INIT or not ancillary:
            return None
        information = ancillary[0][2]
        if self.version == 4:
            # struct in_pktinfo: the link, the source of answers, the header's
            came_to = socket.inet_ntop(socket.AF_INET, information[8:12])
            information = bytes(4) + information[8:12] + bytes(4)
        else:
            came_to = socket.inet_ntop(socket.AF_INET6, information[:16])
            if not came_to.startswith("fe80:"):  # else the answer needs the link
                information = information[:16] + bytes(4)
        return found, str(sender[0]).partition("%")[0], came_to, (sender, information)

    def answer(self, init: Packet, text: bytes | None, back: tuple[object, bytes]) -> None:
        """Answer an INIT. text: of the listener; None: there is none."""
        own = secrets.randbits(32) | 1
        kind = ABORT if text is None else INIT_ACK
        packet = Packet(init.destination, init.source, kind, init.initiate, own, text or b"")
        sender, information = back
        level, option = (
            (socket.IPPROTO_IP, socket.IP_PKTINFO)
            if self.version == 4
            else (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
        )
        self.socket.sendmsg([encode(packet)], [(level, option, information)], 0, sender)  # type: ignore[arg-type]
