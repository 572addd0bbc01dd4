# SPDX-License-Identifier: Apache-2.0
"""Tracked flows by their mark, to delete or to mark them one by one.

    for flow in flows(sock, mark, mask): ...     the kernel compares
    change(sock, [deletion(flow), marking(flow, 7), ...])

A rule set that marks flows by what it decided about them selects them so when
it decides otherwise. A list costs a walk over the whole table, whatever
matches: see `delete`.

Source: ctnetlink_filter_match and ctnetlink_change_mark in
net/netfilter/nf_conntrack_netlink.c; linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import itertools
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from osbase.conntrack.ctnetlink import (
    GENMSG,
    MSG_CT_GET,
    MSG_CT_NEW,
    NETLINK_NETFILTER,
    TUPLE_IP,
    TUPLE_ORIG,
    TUPLE_REPLY,
)
from osbase.conntrack.delete import deletion as _deletion
from osbase.ip import IPAddress
from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message, Request
from osbase.netlink.transport import NetlinkSocket, open_raw

ALL: Final = (0, 0)
"""Mark and mask of all flows."""

_MARK, _ZONE, _MARK_MASK = 8, 18, 21  # CTA_
_U32: Final = struct.Struct(">I")
_TUPLE_PROTO: Final = 2
_SOURCE: Final = (1, 3)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
_PROTO_NUM, _PROTO_SRC_PORT = 1, 2
_AT_ONCE: Final = 64  # changes, whose answers a socket has room for


@dataclass(frozen=True, slots=True)
class Flow:
    """An entry. source: of its first packet, as it was sent. destination, port:
    where that goes, after translation: so they answer. port: 0 of a protocol
    without ports. message: as the kernel listed it.
    """

    source: IPAddress
    destination: IPAddress
    protocol: int
    port: int
    mark: int
    message: Message


def open_socket() -> NetlinkSocket:
    """Open a socket for the functions below. Raises OSError."""
    return NetlinkSocket(open_raw(NETLINK_NETFILTER))


def flows(sock: NetlinkSocket, mark: int, mask: int) -> Iterator[Flow]:
    """Yield the flows of IPv4 and IPv6 whose mark is this in the bits of the
    mask. One that ends meanwhile may come, too. A reader that stops before the
    end has to close the socket. Raises NetlinkError.
    """
    body = GENMSG.pack(socket.AF_UNSPEC, 0, 0)
    if mask:
        body += attrs.attr(_MARK, _U32.pack(mark)) + attrs.attr(_MARK_MASK, _U32.pack(mask))
    for message in sock.stream(Request(MSG_CT_GET, 0, body, "list tracked flows by mark")):
        yield parse(message)


def parse(message: Message) -> Flow:
    """Read an entry. Pure. Raises ProtocolError."""
    if message.kind != MSG_CT_NEW or len(message.body) < GENMSG.size:
        raise ProtocolError(f"message {message.kind} is not a tracked flow")
    entry = attrs.parse(message.body[GENMSG.size :])
    answers = attrs.parse(entry.get(TUPLE_REPLY, b""))
    protocol = attrs.parse(answers.get(_TUPLE_PROTO, b""))
    return Flow(
        _sender(attrs.parse(entry.get(TUPLE_ORIG, b""))),
        _sender(answers),
        int.from_bytes(protocol.get(_PROTO_NUM, b"")),
        int.from_bytes(protocol.get(_PROTO_SRC_PORT, b"")),
        int.from_bytes(entry.get(_MARK, b"")),
        message,
    )


def _sender(parts: dict[int, bytes]) -> IPAddress:
    found = attrs.parse(parts.get(TUPLE_IP, b""))
    packed = next((found[kind] for kind in _SOURCE if kind in found), b"")
    if len(packed) == 4:
        return IPv4Address(packed)
    if len(packed) == 16:
        return IPv6Address(packed)
    raise ProtocolError(f"a tracked flow with an address of {len(packed)} bytes")


def deletion(flow: Flow) -> Request:
    """Build the request to delete the entry, and no later one of the same
    flow. Raises ProtocolError.
    """
    return _deletion(flow.message)


def marking(flow: Flow, mark: int) -> Request:
    """Build the request to mark the flow. Raises ProtocolError."""
    entry = attrs.parse(flow.message.body[GENMSG.size :])
    body = flow.message.body[: GENMSG.size] + attrs.nested(TUPLE_ORIG, entry[TUPLE_ORIG])
    body += attrs.attr(_MARK, _U32.pack(mark))
    if _ZONE in entry:
        body += attrs.attr(_ZONE, entry[_ZONE])
    return Request(MSG_CT_NEW, 0, body, "mark a tracked flow")


def change(sock: NetlinkSocket, requests: Sequence[Request]) -> None:
    """Make the changes. A flow that has ended is no error. Raises BatchError,
    and the rest of up to 64 is done then.
    """
    for some in itertools.batched(requests, _AT_ONCE, strict=False):
        sock.batch(some, tolerate={errno.ENOENT})
