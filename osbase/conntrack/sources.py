# SPDX-License-Identifier: Apache-2.0
"""Count the entries of a dump by their original source. Pure.

    nfgenmsg | CTA_TUPLE_ORIG { CTA_TUPLE_IP { CTA_IP_V4_SRC, ... }, ... } | ...

An entry has some twenty attributes, and a table 100,000 entries: the parser
reads only the path to the one address. The kernel writes that path first
(ctnetlink_fill_info in nf_conntrack_netlink.c), so one comparison finds it. An
entry in another order is walked.

Source: linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from osbase.conntrack.ctnetlink import (
    GENMSG,
    MSG_CT_DELETE,
    MSG_CT_GET,
    MSG_CT_NEW,
    TUPLE_IP,
    TUPLE_ORIG,
)
from osbase.ip import IPAddress
from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message, Request

_IP_V4_SRC: Final = 1
_IP_V6_SRC: Final = 3

_HEAD: Final = 16  # bytes before the address, if it comes first
_PATH_V4: Final = struct.pack("=HHHHH", attrs.NESTED | 1, 20, attrs.NESTED | 1, 8, _IP_V4_SRC)
_PATH_V6: Final = struct.pack("=HHHHH", attrs.NESTED | 1, 44, attrs.NESTED | 1, 20, _IP_V6_SRC)

# Offsets of the rest, in the kernel's order: destination, protocol, destination
# port, the reply's tuple and its destination. Only for TCP, UDP and similar
# protocols, which have two ports.
_PLACES: Final = {
    _PATH_V4: (4, 24, 36, 52, 56, 76),
    _PATH_V6: (16, 36, 60, 76, 80, 112),
}
_REPLY: Final = struct.pack("=H", attrs.NESTED | 2)

CROWDS_MAX: Final = 262_144
"""How many destinations of sources a census counts separately."""

SOURCES_MAX: Final = 65536
"""How many addresses a census counts separately: outsiders can invent more."""


def dump() -> Request:
    """Build the request for all entries, of both families."""
    return Request(MSG_CT_GET, 0, GENMSG.pack(0, 0, 0), "list tracked flows")


def delete_all() -> Request:
    """Build the request to delete all entries: a deletion without a tuple."""
    return Request(MSG_CT_DELETE, 0, GENMSG.pack(0, 0, 0), "forget tracked flows")


def source_of(message: Message) -> bytes:
    """Return the packed original source of an entry. Raises ProtocolError."""
    body = message.body
    if message.kind != MSG_CT_NEW:
        raise ProtocolError(f"message {message.kind} is not a tracked flow")
    path = body[6:_HEAD]
    if path == _PATH_V4 and len(body) >= _HEAD + 4:
        return body[_HEAD : _HEAD + 4]
    if path == _PATH_V6 and len(body) >= _HEAD + 16:
        return body[_HEAD : _HEAD + 16]
    return _walked(body)


def crowd_of(message: Message) -> bytes | None:
    """Return source, destination, protocol and port of an entry whose source is
    translated: entries that agree in these share the ports of one translator.
    None: the source is not translated, or there are no ports.
    """
    body = message.body
    places = _PLACES.get(body[6:_HEAD])
    if places is None:
        return None
    size, to, protocol, port, reply, answered = places
    if body[reply + 2 : reply + 4] != _REPLY or len(body) < answered + size:
        return None
    source = body[_HEAD : _HEAD + size]
    if body[answered : answered + size] == source:
        return None
    there = body[to : to + size], body[protocol : protocol + 1], body[port : port + 2]
    return source + b"".join(there)


def _walked(body: bytes) -> bytes:
    inner = body[GENMSG.size :]
    for kind in (TUPLE_ORIG, TUPLE_IP):
        inner = _first(inner, kind)
    found = attrs.parse(inner)
    for kind, size in ((_IP_V4_SRC, 4), (_IP_V6_SRC, 16)):
        if kind in found:
            if len(found[kind]) != size:
                raise ProtocolError(f"a source of {len(found[kind])} bytes, not {size}")
            return found[kind]
    raise ProtocolError("a tracked flow without a source")


def _first(data: bytes, kind: int) -> bytes:
    for found, payload in attrs.walk(data):
        if found == kind:
            return payload
    raise ProtocolError(f"a tracked flow without attribute {kind}")


@dataclass(frozen=True)
class Census:
    """Entries by original source. others: entries of further sources. crowds:
    by source, the largest number of translated entries with the same
    destination and port.
    """

    entries: dict[IPAddress, int]
    others: int = 0
    crowds: dict[IPAddress, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Return the number of all entries."""
        return sum(self.entries.values()) + self.others


def take(messages: Iterable[Message], most: int = SOURCES_MAX) -> Census:
    """Count the messages of a dump. most: how many sources are counted
    separately. Raises ProtocolError.
    """
    counts: dict[bytes, int] = {}
    crowds: dict[bytes, int] = {}
    others = 0
    for message in messages:
        source = source_of(message)
        crowd = crowd_of(message)
        if crowd is not None and (crowd in crowds or len(crowds) < CROWDS_MAX):
            crowds[crowd] = crowds.get(crowd, 0) + 1
        if source in counts:
            counts[source] += 1
        elif len(counts) < most:
            counts[source] = 1
        else:
            others += 1
    largest: dict[bytes, int] = {}
    for crowd, number in crowds.items():
        # Two addresses, a protocol and a port.
        source = crowd[: (len(crowd) - 3) // 2]
        largest[source] = max(number, largest.get(source, 0))
    return Census(_by_address(counts), others, _by_address(largest))


def _by_address(counts: dict[bytes, int]) -> dict[IPAddress, int]:
    return {ip_address(source): number for source, number in counts.items()}
