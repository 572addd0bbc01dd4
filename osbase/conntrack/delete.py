# SPDX-License-Identifier: Apache-2.0
"""Delete entries by the first packet of their flows, in the calling thread's
namespace.

Where the kernel can, it walks its table and deletes what matches a filter
(CTA_FILTER), so that nothing is dumped. A walk costs 0.24 / 3.8 / 32 ms at
1,000 / 21,000 / 121,000 entries; each filter is a walk.

The kernel's filters have two gaps (seen in Linux 6.18). Ports are compared for
TCP and UDP only: the port of another protocol would match all its flows. The
comparison of IPv6 addresses is inverted: all others would match. Where a filter
needs these, entries are listed by the rest of it, compared here, and deleted
one by one. The same is done for a kernel that refuses filters in deletions,
those before Linux 6.10.

The next packet of a flow makes the entry again, by the rules of that time.

Source: ctnetlink_flush_conntrack and ctnetlink_filter_match_tuple in
net/netfilter/nf_conntrack_netlink.c; CTA_FILTER_F_CTA_ in
net/netfilter/nf_internals.h; linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import itertools
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from osbase.ip import AF_INET, AF_INET6, IPAddress
from osbase.netlink import attrs
from osbase.netlink.errors import BatchError, ProtocolError
from osbase.netlink.message import Message, Request
from osbase.netlink.transport import NetlinkSocket, open_raw

NETLINK_NETFILTER: Final = 12

_SUBSYS_CTNETLINK: Final = 1
_MSG_CT_NEW: Final = _SUBSYS_CTNETLINK << 8
_MSG_CT_GET: Final = _SUBSYS_CTNETLINK << 8 | 1
_MSG_CT_DELETE: Final = _SUBSYS_CTNETLINK << 8 | 2
_GENMSG: Final = struct.Struct("=BBH")  # family, version, resource
_PORT: Final = struct.Struct(">H")

_TUPLE_ORIG: Final = 1
_ID: Final = 12
_ZONE: Final = 18
_FILTER: Final = 25
_TUPLE_IP: Final = 1
_TUPLE_PROTO: Final = 2
_IP_DST: Final = {4: 2, 6: 4}
_PROTO_NUM: Final = 1
_PROTO_DST_PORT: Final = 3
_FILTER_ORIG_FLAGS: Final = 1
_COMPARE_DESTINATION: Final = 1 << 1
_COMPARE_PROTOCOL: Final = 1 << 3
_COMPARE_PORT: Final = 1 << 5

_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
_PORTS_COMPARED: Final = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
_AT_ONCE: Final = 64  # deletions, whose answers a socket has room for


@dataclass(frozen=True, slots=True)
class Filter:
    """Flows, by their first packet before any translation.

    protocol: its number. version: of IP, 4 or 6. port: to which it was sent;
    None: any. destination: the same for the address, of that version.
    """

    protocol: int
    version: int
    port: int | None = None
    destination: IPAddress | None = None


def delete(filters: Iterable[Filter]) -> None:
    """Delete the entries that match one of the filters. If none does, or the
    kernel tracks no flows, there is nothing to do. Raises NetlinkError or
    OSError.
    """
    filters = list(dict.fromkeys(filters))
    if not filters:
        return
    try:
        raw = open_raw(NETLINK_NETFILTER)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return  # a kernel without netfilter's netlink
        raise
    with NetlinkSocket(raw) as sock:
        for one in filters:
            if not (_is_compared(one) and _delete_matching(sock, one)):
                _delete_listed(sock, one)


def _is_compared(one: Filter) -> bool:
    """Whether the kernel compares all that the filter has; see the module."""
    port = one.port is None or one.protocol in _PORTS_COMPARED
    return port and (one.destination is None or one.version == 4)


def _delete_matching(sock: NetlinkSocket, one: Filter) -> bool:
    """Delete by the kernel's filter. False: it has none."""
    try:
        sock.batch([request(_MSG_CT_DELETE, one)])
    except BatchError as error:
        if error.errors[0].errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _delete_listed(sock: NetlinkSocket, one: Filter) -> None:
    try:
        listed = sock.stream(request(_MSG_CT_GET, one))
        found = [deletion(message) for message in listed if matches(message, one)]
    except BatchError as error:
        if error.errors[0].errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return  # a kernel without ctnetlink
        raise
    for some in itertools.batched(found, _AT_ONCE, strict=False):
        sock.batch(some, tolerate={errno.ENOENT})


def request(kind: int, one: Filter) -> Request:
    """Build a request with as much of the filter as the kernel compares."""
    flags = _COMPARE_PROTOCOL
    protocol = attrs.attr(_PROTO_NUM, bytes([one.protocol]))
    address = b""
    if one.port is not None and one.protocol in _PORTS_COMPARED:
        flags |= _COMPARE_PORT
        protocol += attrs.attr(_PROTO_DST_PORT, _PORT.pack(one.port))
    if one.destination is not None and one.version == 4:
        flags |= _COMPARE_DESTINATION
        address = attrs.nested(_TUPLE_IP, attrs.attr(_IP_DST[4], one.destination.packed))
    body = (
        _GENMSG.pack(_FAMILIES[one.version], 0, 0)
        + attrs.nested(_TUPLE_ORIG, address, attrs.nested(_TUPLE_PROTO, protocol))
        + attrs.nested(_FILTER, attrs.u32(_FILTER_ORIG_FLAGS, flags))
    )
    return Request(kind, 0, body, "delete tracked flows")


def matches(message: Message, one: Filter) -> bool:
    """Whether the filter matches an entry of a dump. Raises ProtocolError."""
    tuple_ = attrs.parse(_entry(message).get(_TUPLE_ORIG, b""))
    address = attrs.parse(tuple_.get(_TUPLE_IP, b""))
    protocol = attrs.parse(tuple_.get(_TUPLE_PROTO, b""))
    return (
        message.body[0] == _FAMILIES[one.version]
        and protocol.get(_PROTO_NUM) == bytes([one.protocol])
        and (one.port is None or protocol.get(_PROTO_DST_PORT) == _PORT.pack(one.port))
        and (one.destination is None or address.get(_IP_DST[one.version]) == one.destination.packed)
    )


def deletion(message: Message) -> Request:
    """Build the request to delete an entry of a dump, and no later one of the
    same flow. Raises ProtocolError.
    """
    entry = _entry(message)
    if _TUPLE_ORIG not in entry or _ID not in entry:
        raise ProtocolError("a tracked flow without tuple or id")
    body = message.body[: _GENMSG.size] + attrs.nested(_TUPLE_ORIG, entry[_TUPLE_ORIG])
    body += b"".join(attrs.attr(kind, entry[kind]) for kind in (_ID, _ZONE) if kind in entry)
    return Request(_MSG_CT_DELETE, 0, body, "delete a tracked flow")


def _entry(message: Message) -> dict[int, bytes]:
    if message.kind != _MSG_CT_NEW or len(message.body) < _GENMSG.size:
        raise ProtocolError(f"message {message.kind} is not a tracked flow")
    return attrs.parse(message.body[_GENMSG.size :])
