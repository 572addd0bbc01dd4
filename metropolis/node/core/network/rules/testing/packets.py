# SPDX-License-Identifier: Apache-2.0
"""Packets, byte by byte: an attacker's kernel sends whatever it wants. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

TCP, UDP, FRAGMENT, ICMPV6, OPTIONS = 6, 17, 44, 58, 60
ICMP = {4: 1, 6: ICMPV6}
ETHER_IPV4, ETHER_ARP, ETHER_IPV6 = 0x0800, 0x0806, 0x86DD
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def version_of(address: str) -> int:
    """Return 4 or 6."""
    return ip_address(address).version


def _over(source: str, to: str, protocol: int, body: bytes, at: int) -> bytes:
    """Return the body with its checksum filled in, over a pseudo header."""
    a, b = ip_address(source).packed, ip_address(to).packed
    pseudo = a + b + struct.pack("!II", len(body), protocol)
    return body[:at] + struct.pack("!H", checksum(pseudo + body) or 0xFFFF) + body[at + 2 :]


def ip(
    source: str,
    to: str,
    protocol: int,
    body: bytes,
    *,
    hops: int = 64,
    options: bytes = b"",
    fragment: int = 0,
    number: int = 0,
) -> bytes:
    """Return an IP packet. options: IPv4's. fragment: the field with flags and
    offset, number: the identification, both IPv4's.
    """
    a, b = ip_address(source).packed, ip_address(to).packed
    if len(a) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + a + b + body
    words = 5 + len(options) // 4
    size = 4 * words + len(body)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, size, number, fragment, hops, protocol, 0)
    head += a + b + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def udp(source: str, to: str, ports: tuple[int, int], payload: bytes) -> bytes:
    """Return a UDP packet. ports: source and destination."""
    body = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    return ip(source, to, UDP, _over(source, to, UDP, body, 6))


def tcp(
    source: str,
    to: str,
    ports: tuple[int, int],
    flags: int,
    *,
    seq: int = 1,
    ack: int = 0,
    payload: bytes = b"",
) -> bytes:
    """Return a TCP packet without options."""
    body = struct.pack("!HHIIBBHHH", *ports, seq, ack, 0x50, flags, 65535, 0, 0) + payload
    return ip(source, to, TCP, _over(source, to, TCP, body, 16))


def echo(source: str, to: str, payload: bytes, *, reply: bool = False, number: int = 7) -> bytes:
    """An ICMP echo request or reply."""
    if version_of(source) == 4:
        body = struct.pack("!BBHHH", 0 if reply else 8, 0, 0, number, 1) + payload
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        return ip(source, to, ICMP[4], body)
    body = struct.pack("!BBHHH", 129 if reply else 128, 0, 0, number, 1) + payload
    return ip(source, to, ICMPV6, _over(source, to, ICMPV6, body, 2))


def too_big(source: str, about: bytes, mtu: int = 1300) -> bytes:
    """The ICMP error of a router about a packet, to its sender."""
    return _error(source, about, (3, 4) if about[0] >> 4 == 4 else (2, 0), mtu)


def port_unreachable(source: str, about: bytes) -> bytes:
    """The ICMP error of a host about a packet, to its sender."""
    return _error(source, about, (3, 3) if about[0] >> 4 == 4 else (1, 4), 0)


def _error(source: str, about: bytes, kind: tuple[int, int], word: int) -> bytes:
    to = parse(about).source
    body = struct.pack("!BBHI", *kind, 0, word) + about[:520]
    if version_of(to) == 4:
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
        return ip(source, to, ICMP[4], body)
    return ip(source, to, ICMPV6, _over(source, to, ICMPV6, body, 2))


def fragments(whole: bytes) -> list[bytes]:
    """Return the packet in two parts, the transport header in the first."""
    found = parse(whole)
    body = whole[20:] if found.version == 4 else whole[40:]
    cut = 16
    if found.version == 4:
        first = ip(found.source, found.to, found.protocol, body[:cut], fragment=0x2000, number=99)
        last = ip(found.source, found.to, found.protocol, body[cut:], fragment=cut // 8, number=99)
        return [first, last]
    head = struct.pack("!BBHI", found.protocol, 0, 1, 99)
    tail = struct.pack("!BBHI", found.protocol, 0, cut, 99)
    return [
        ip(found.source, found.to, FRAGMENT, head + body[:cut]),
        ip(found.source, found.to, FRAGMENT, tail + body[cut:]),
    ]


def with_extension(whole: bytes) -> bytes:
    """Insert padding options between the headers: IPv4 options, or IPv6
    destination options.
    """
    found = parse(whole)
    if found.version == 4:
        return ip(found.source, found.to, found.protocol, whole[20:], options=b"\1" * 4)
    options = struct.pack("!BBBBI", found.protocol, 0, 1, 4, 0)
    return ip(found.source, found.to, OPTIONS, options + whole[40:])


def neighbour(
    source: str,
    to: str,
    target: str,
    *,
    advertisement: bool = False,
    mac: bytes | None = b"\2\0\0\0\0\x66",
    hops: int = 255,
) -> bytes:
    """A neighbour solicitation or advertisement (RFC 4861, 4.3 and 4.4)."""
    kind, flags = (136, 0x20000000) if advertisement else (135, 0)
    body = struct.pack("!BBHI", kind, 0, 0, flags) + IPv6Address(target).packed
    if mac is not None:
        body += bytes([2 if advertisement else 1, 1]) + mac
    return ip(source, to, ICMPV6, _over(source, to, ICMPV6, body, 2), hops=hops)


def solicited(target: str) -> str:
    """The solicited-node multicast address (RFC 4291, 2.7.1)."""
    packed = IPv6Address(target).packed
    return str(IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + packed[13:]))


def arp(
    sender: str,
    target: str,
    *,
    mac: bytes = b"\2\0\0\0\0\x66",
    reply_to: bytes | None = None,
    hardware: int = 1,
) -> bytes:
    """A request, or with the target's MAC a reply (RFC 826)."""
    head = struct.pack("!HHBBH", hardware, ETHER_IPV4, 6, 4, 1 if reply_to is None else 2)
    tail = (reply_to or bytes(6)) + ip_address(target).packed
    return head + mac + ip_address(sender).packed + tail


@dataclass(frozen=True)
class Packet:
    """The compared fields. ports (0, 0), flags 0: it has none. data: the whole
    packet.
    """

    source: str
    to: str
    protocol: int
    ports: tuple[int, int]
    flags: int
    data: bytes

    @property
    def version(self) -> int:
        """Return 4 or 6."""
        return self.data[0] >> 4


def parse(data: bytes) -> Packet:
    """Parse a packet; IPv6 without extension headers."""
    if data[0] >> 4 == 4:
        start = 4 * (data[0] & 15)
        protocol, source, to = data[9], data[12:16], data[16:20]
    else:
        start, protocol, source, to = 40, data[6], data[8:24], data[24:40]
    ports, flags = (0, 0), 0
    if protocol in (TCP, UDP) and len(data) >= start + 8:
        first, second = struct.unpack_from("!HH", data, start)
        ports = (first, second)
    if protocol == TCP and len(data) >= start + 14:
        flags = data[start + 13]
    return Packet(str(ip_address(source)), str(ip_address(to)), protocol, ports, flags, data)
