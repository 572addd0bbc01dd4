# SPDX-License-Identifier: Apache-2.0
"""Netlink attributes: encode and parse. Pure.

An attribute is a header of two host-order u16 (length with header, type) and
a payload, padded to four bytes (linux/netlink.h, struct nlattr).
"""

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from osbase.ip import AF_INET, AF_INET6, IPAddress
from osbase.netlink.errors import ProtocolError

HEADER = struct.Struct("=HH")
NESTED = 0x8000
TYPE_MASK = 0x3FFF
MAX_PAYLOAD = 0xFFFF - HEADER.size

ADDRESS_SIZES = {AF_INET: 4, AF_INET6: 16}  # bytes

_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
_U32 = struct.Struct("=I")


def attr(kind: int, payload: bytes) -> bytes:
    """Encode an attribute. Raises ValueError for more than 65,531 bytes."""
    length = 4 + len(payload)
    if length > 0xFFFF:
        raise ValueError(f"attribute {kind}: {len(payload)} bytes do not fit into 16 bits")
    return HEADER.pack(length, kind) + payload + _PADDING[length & 3]


def u32(kind: int, value: int) -> bytes:
    """Encode an attribute with one unsigned 32 bit number."""
    return HEADER.pack(8, kind) + _U32.pack(value)


def text(kind: int, value: bytes) -> bytes:
    """Encode an attribute with a NUL terminated string."""
    return attr(kind, value + b"\0")


def nested(kind: int, *children: bytes) -> bytes:
    """Encode an attribute that contains the given encoded attributes."""
    return attr(kind | NESTED, b"".join(children))


def walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes in `data`, in order: type without flags, payload.

    Raises ProtocolError for a wrong length. Up to three bytes after the last
    attribute are padding.
    """
    offset, end = 0, len(data)
    while end - offset >= 4:
        length, kind = HEADER.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise _bad_length(kind, offset, end, length)
        yield kind & TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def parse(data: bytes) -> dict[int, bytes]:
    """Return the attributes by type; the last one of a repeated type. Raises
    ProtocolError as `walk`, whose loop this is: most of a large dump's time is
    spent here, and the generator would be a third of it.
    """
    found: dict[int, bytes] = {}
    unpack = HEADER.unpack_from
    offset, end = 0, len(data)
    while end - offset >= 4:
        length, kind = unpack(data, offset)
        if length < 4 or offset + length > end:
            raise _bad_length(kind, offset, end, length)
        found[kind & TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _bad_length(kind: int, offset: int, end: int, length: int) -> ProtocolError:
    return ProtocolError(
        f"attribute {kind & TYPE_MASK} at byte {offset} of {end}: bad length {length}"
    )


def to_u32(payload: bytes) -> int:
    """Decode a number. Raises ProtocolError unless it has 4 bytes."""
    if len(payload) != 4:
        raise ProtocolError(f"a 32 bit number of {len(payload)} bytes")
    value: int = _U32.unpack(payload)[0]
    return value


def to_i32(payload: bytes) -> int:
    """Decode a signed number. Raises ProtocolError unless it has 4 bytes."""
    number = to_u32(payload)
    return number - (1 << 32) if number >> 31 else number


def to_ip(family: int, payload: bytes) -> IPAddress:
    """Decode an address; the family is one of ADDRESS_SIZES. Raises
    ProtocolError unless it has the family's size.
    """
    if len(payload) != ADDRESS_SIZES[family]:
        raise ProtocolError(f"an address of {len(payload)} bytes in family {family}")
    return IPv4Address(payload) if family == AF_INET else IPv6Address(payload)


def to_text(payload: bytes) -> bytes:
    """Return the bytes before the first NUL."""
    return payload.partition(b"\0")[0]
