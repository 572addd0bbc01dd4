# SPDX-License-Identifier: Apache-2.0
"""DHCPv4 messages and the IPv4/UDP frames around them. Pure.

Sources: RFC 2131 (format), RFC 2132 (options), RFC 3396 (long options), RFC
791 and 768 (headers). Decoding any bytes returns a value or raises PacketError.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

CLIENT_PORT: Final = 68
SERVER_PORT: Final = 67
UNSPECIFIED: Final = IPv4Address("0.0.0.0")
BROADCAST: Final = IPv4Address("255.255.255.255")

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_COOKIE: Final = b"\x63\x82\x53\x63"
_ETHERNET: Final = 1
_MIN_LENGTH: Final = 300  # bytes; some relays drop shorter ones (RFC 1542)
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_PROTO_UDP: Final = 17
_TTL: Final = 64
_MORE_FRAGMENTS_OR_OFFSET: Final = 0x3FFF


class PacketError(Exception):
    """Bytes that are not a DHCP message to a client."""


class Type(enum.IntEnum):
    """Option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(enum.IntEnum):
    """The options that are used here."""

    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    HOST_NAME = 12
    DOMAIN_NAME = 15
    INTERFACE_MTU = 26
    STATIC_ROUTES = 33
    NTP = 42
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETERS = 55
    MESSAGE = 56
    MAX_SIZE = 57
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    CLIENT_ID = 61
    DOMAIN_SEARCH = 119
    CLASSLESS_ROUTES = 121
    CLASSLESS_ROUTES_MICROSOFT = 249


_PAD: Final = 0
_END: Final = 255


@dataclass(frozen=True)
class Message:
    """A message between an Ethernet client and a server.

    request: the client sends it. mac: the client's, 6 bytes. options: raw, by
    number, without the message type; repeated ones are joined (RFC 3396).
    """

    request: bool
    kind: Type
    xid: int
    mac: bytes
    secs: int = 0
    client: IPv4Address = UNSPECIFIED
    yours: IPv4Address = UNSPECIFIED
    options: Mapping[int, bytes] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the UDP payload, at least 300 bytes."""
        fixed = _FIXED.pack(
            1 if self.request else 2,
            _ETHERNET,
            6,
            0,
            self.xid,
            min(self.secs, 0xFFFF),
            0,
            self.client.packed,
            self.yours.packed,
            UNSPECIFIED.packed,
            UNSPECIFIED.packed,
            self.mac.ljust(16, b"\0"),
            b"",
            b"",
        )
        parts = [fixed, _COOKIE, bytes([Option.MESSAGE_TYPE, 1, self.kind])]
        for number, value in self.options.items():
            for start in range(0, max(len(value), 1), 255):
                piece = value[start : start + 255]
                parts.append(bytes([number, len(piece)]) + piece)
        parts.append(bytes([_END]))
        return b"".join(parts).ljust(_MIN_LENGTH, b"\0")


def _walk(area: bytes, where: str) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(area):
        number = area[offset]
        if number == _END:
            return
        if number == _PAD:
            offset += 1
            continue
        if offset + 2 > len(area) or offset + 2 + area[offset + 1] > len(area):
            raise PacketError(f"option {number} is cut off ({where})")
        end = offset + 2 + area[offset + 1]
        yield number, area[offset + 2 : end]
        offset = end


def decode(data: bytes) -> Message:
    """Parse a UDP payload. Raises PacketError."""
    if len(data) < _FIXED.size + len(_COOKIE):
        raise PacketError(f"{len(data)} bytes are too short for a message")
    op, htype, hlen, _, xid, secs, _, client, yours, _, _, mac, sname, file = _FIXED.unpack_from(
        data
    )
    if data[_FIXED.size : _FIXED.size + len(_COOKIE)] != _COOKIE:
        raise PacketError("no DHCP cookie (BOOTP?)")
    if op not in (1, 2) or htype != _ETHERNET or hlen != 6:
        raise PacketError(f"op {op}, hardware type {htype} of {hlen} bytes: not Ethernet's")
    options: dict[int, bytes] = {}

    def collect(area: bytes, where: str) -> None:
        for number, value in _walk(area, where):
            options[number] = options.get(number, b"") + value

    collect(data[_FIXED.size + len(_COOKIE) :], "options")
    overload = options.pop(Option.OVERLOAD, b"\0")
    if len(overload) != 1 or overload[0] > 3:
        raise PacketError(f"option overload of {overload.hex()}")
    if overload[0] & 1:
        collect(file, "file")
    if overload[0] & 2:
        collect(sname, "server name")
    # An overload option inside the overloaded fields has no effect (RFC 2131,
    # section 4.1: they are read once, after the options).
    options.pop(Option.OVERLOAD, None)
    kind = options.pop(Option.MESSAGE_TYPE, b"")
    if len(kind) != 1 or not Type.DISCOVER <= kind[0] <= Type.INFORM:
        raise PacketError(f"message type {kind.hex() or 'missing'}")
    return Message(
        request=op == 1,
        kind=Type(kind[0]),
        xid=xid,
        mac=mac[:6],
        secs=secs,
        client=IPv4Address(client),
        yours=IPv4Address(yours),
        options=options,
    )


def _sum(data: bytes) -> int:
    """Return the ones' complement sum of 16 bit words (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(word for (word,) in struct.iter_unpack("!H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _pseudo(source: bytes, destination: bytes, length: int) -> bytes:
    return source + destination + struct.pack("!BBH", 0, _PROTO_UDP, length)


def frame(source: IPv4Address, destination: IPv4Address, payload: bytes) -> bytes:
    """Wrap a client's payload into UDP and IPv4, to the servers' port."""
    udp_length = _UDP.size + len(payload)
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, udp_length, 0)
    pseudo = _pseudo(source.packed, destination.packed, udp_length)
    checksum = 0xFFFF ^ _sum(pseudo + udp + payload)
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, udp_length, checksum or 0xFFFF)

    def header(checksum: int) -> bytes:
        return _IP.pack(
            0x45,
            0,
            _IP.size + udp_length,
            0,
            0x4000,  # do not fragment
            _TTL,
            _PROTO_UDP,
            checksum,
            source.packed,
            destination.packed,
        )

    return header(0xFFFF ^ _sum(header(0))) + udp + payload


def sender_of(data: bytes) -> IPv4Address:
    """Return the source of an IPv4 packet that `unframe` takes."""
    return IPv4Address(_IP.unpack_from(data)[8])


def unframe(data: bytes, *, checksum_ready: bool = True) -> bytes:
    """Return the UDP payload of an IPv4 packet to a client's port.

    checksum_ready: False when the sender left the UDP checksum to hardware, and
    the packet passed none, as between namespaces and virtual machines.
    Raises PacketError.
    """
    if len(data) < _IP.size:
        raise PacketError(f"{len(data)} bytes are too short for IPv4")
    version, _, total, _, fragment, _, protocol, _, source, destination = _IP.unpack_from(data)
    header = (version & 0xF) * 4
    if version >> 4 != 4 or header < _IP.size or not header + _UDP.size <= total <= len(data):
        raise PacketError(f"IPv4 lengths do not add up: {header} of {total} of {len(data)}")
    if _sum(data[:header]) != 0xFFFF:
        raise PacketError("wrong IPv4 checksum")
    if protocol != _PROTO_UDP or fragment & _MORE_FRAGMENTS_OR_OFFSET:
        raise PacketError("not UDP, or a fragment")
    _, port, length, checksum = _UDP.unpack_from(data, header)
    if port != CLIENT_PORT or not _UDP.size <= length <= total - header:
        raise PacketError(f"UDP to port {port} of {length} bytes")
    udp = data[header : header + length]
    if checksum and checksum_ready and _sum(_pseudo(source, destination, length) + udp) != 0xFFFF:
        raise PacketError("wrong UDP checksum")
    return udp[_UDP.size :]
