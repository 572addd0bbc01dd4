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
one by one. The same is done for many filters of a kind, since a listing takes
as long as 15 to 20 walks (15 ms also of an empty table: it takes a lock for
each bucket), for a kernel before Linux 6.10, which refuses filters in
deletions, and where the caller has to choose, since a filter cannot say that
two things differ.

The next packet of a flow makes the entry again, by the rules of that time. If
it is an answer, the flow begins in the other direction then: its addresses are
not translated back, and the first sender's next packet gets another port, as
that flow has its own. So do not delete entries of flows that are well.

Source: ctnetlink_flush_conntrack and ctnetlink_filter_match_tuple in
net/netfilter/nf_conntrack_netlink.c; CTA_FILTER_F_CTA_ in
net/netfilter/nf_internals.h; linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import itertools
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from osbase.conntrack.ctnetlink import (
    GENMSG,
    MSG_CT_DELETE,
    MSG_CT_GET,
    MSG_CT_NEW,
    NETLINK_NETFILTER,
    TUPLE_IP,
    TUPLE_ORIG,
    TUPLE_REPLY,
)
from osbase.ip import AF_INET, AF_INET6, IPAddress
from osbase.netlink import attrs
from osbase.netlink.errors import BatchError, ProtocolError
from osbase.netlink.message import Message, Request
from osbase.netlink.transport import NetlinkSocket, SocketPool, open_raw

_PORT: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")

_ID: Final = 12
_ZONE: Final = 18
_FILTER: Final = 25
_TUPLE_PROTO: Final = 2
_IP_SRC: Final = {4: 1, 6: 3}
_IP_DST: Final = {4: 2, 6: 4}
_PROTO_NUM: Final = 1
_PROTO_SRC_PORT: Final = 2
_PROTO_DST_PORT: Final = 3
_FILTER_ORIG_FLAGS: Final = 1
_FILTER_REPLY_FLAGS: Final = 2
_STATUS_IS: Final = 3
_STATUS_MASK: Final = 26
_SRC_NAT, _DST_NAT = 1 << 4, 1 << 5  # IPS_, nf_conntrack_common.h
_STATUS: Final = {None: (0, 0), True: (_DST_NAT, 0), False: (0, _SRC_NAT | _DST_NAT)}
_COMPARE_SOURCE: Final = 1 << 0
_COMPARE_DESTINATION: Final = 1 << 1
_COMPARE_PROTOCOL: Final = 1 << 3
_COMPARE_PORT: Final = 1 << 5

_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
_PORTS_COMPARED: Final = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
_UNKNOWN: Final = (errno.EINVAL, errno.EOPNOTSUPP)  # to a kernel without it
_WALKS: Final = 16  # filters of a protocol
_AT_ONCE: Final = 64  # deletions, whose answers a socket has room for


@dataclass(frozen=True, slots=True)
class Filter:
    """Flows, by their first packet before any translation.

    protocol: its number. version: of IP, 4 or 6. port: to which it was sent;
    None: any. destination: the same for the address, of that version. led:
    whether its destination was translated; False: its source was not, either;
    None: any. to: where its packets go, after translation; None: anywhere.
    """

    protocol: int
    version: int
    port: int | None = None
    destination: IPAddress | None = None
    led: bool | None = None
    to: IPAddress | None = None

    @property
    def status(self) -> tuple[int, int]:
        """Return which bits of an entry's status it has to have, and of which
        others it may have none.
        """
        return _STATUS[self.led]


@dataclass(frozen=True, slots=True)
class Flow:
    """An entry: its first packet's protocol, destination, and port there; what
    these two were translated to, if they were.
    """

    protocol: int
    destination: IPAddress
    port: int
    led_to: tuple[IPAddress, int] | None


type Choice = Callable[[Flow], bool]


def delete(
    filters: Iterable[Filter], sockets: SocketPool | None = None, choose: Choice | None = None
) -> None:
    """Delete the entries that match one of the filters. If none does, or the
    kernel tracks no flows, there is nothing to do. Raises NetlinkError or
    OSError, or what `choose` raises; some may be deleted then.

    sockets: netfilter's, for a caller that also removes nftables elements: to
    close one soon after that, the kernel waits; see osbase.nftables.elements.
    choose: of those that match, delete those for which it returns true. It is
    called with all of them before any is deleted.
    """
    filters = list(dict.fromkeys(filters))
    if not filters:
        return
    try:
        borrowed = _open_socket() if sockets is None else sockets.socket()
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return  # a kernel without netfilter's netlink
        raise
    groups: dict[tuple[int, int, bool | None], list[Filter]] = {}
    for one in filters:
        groups.setdefault((one.protocol, one.version, one.led), []).append(one)
    with borrowed as sock:
        for group in groups.values():
            walked = len(group) <= _WALKS and all(map(_is_compared, group)) and choose is None
            if not (walked and _delete_matching(sock, group)):
                _delete_listed(sock, group, choose)


def _open_socket() -> NetlinkSocket:
    return NetlinkSocket(open_raw(NETLINK_NETFILTER))


def _is_compared(one: Filter) -> bool:
    """Whether the kernel compares all that the filter has; see the module."""
    port = one.port is None or one.protocol in _PORTS_COMPARED
    return port and (one.version == 4 or one.destination is one.to is None)


def _delete_matching(sock: NetlinkSocket, filters: Sequence[Filter]) -> bool:
    """Delete by the kernel's filters. False: it has none."""
    try:
        for one in filters:
            sock.batch([request(MSG_CT_DELETE, one)])
    except BatchError as error:
        if error.errors[0].errno in _UNKNOWN:
            return False
        raise
    return True


def _delete_listed(sock: NetlinkSocket, filters: Sequence[Filter], choose: Choice | None) -> None:
    """Delete what matches filters of one protocol and IP version, and with the
    same `led`: the kernel compares these.
    """
    first = filters[0]
    asked = first
    if len(filters) > 1:
        asked = Filter(first.protocol, first.version, led=first.led)
    try:
        listed = matching(sock.stream(request(MSG_CT_GET, asked)), filters)
        if choose is None:
            found = [deletion(one) for one in listed]
        else:
            entries = [(flow(one), deletion(one)) for one in listed]
            found = [one for entry, one in entries if choose(entry)]
    except BatchError as error:
        if error.errors[0].errno in _UNKNOWN:
            return  # a kernel without ctnetlink
        raise
    for some in itertools.batched(found, _AT_ONCE, strict=False):
        sock.batch(some, tolerate={errno.ENOENT})


def request(kind: int, one: Filter) -> Request:
    """Build a request with as much of the filter as the kernel compares."""
    flags = _COMPARE_PROTOCOL
    protocol = attrs.attr(_PROTO_NUM, bytes([one.protocol]))
    address = answers = b""
    if one.port is not None and one.protocol in _PORTS_COMPARED:
        flags |= _COMPARE_PORT
        protocol += attrs.attr(_PROTO_DST_PORT, _PORT.pack(one.port))
    if one.destination is not None and one.version == 4:
        flags |= _COMPARE_DESTINATION
        address = attrs.nested(TUPLE_IP, attrs.attr(_IP_DST[4], one.destination.packed))
    compared = attrs.u32(_FILTER_ORIG_FLAGS, flags)
    if one.to is not None and one.version == 4:
        source = attrs.nested(TUPLE_IP, attrs.attr(_IP_SRC[4], one.to.packed))
        answers = attrs.nested(TUPLE_REPLY, source)
        compared += attrs.u32(_FILTER_REPLY_FLAGS, _COMPARE_SOURCE)
    body = (
        GENMSG.pack(_FAMILIES[one.version], 0, 0)
        + attrs.nested(TUPLE_ORIG, address, attrs.nested(_TUPLE_PROTO, protocol))
        + answers
        + attrs.nested(_FILTER, compared)
    )
    has, lacks = one.status
    if has or lacks:
        body += attrs.attr(_STATUS_IS, _U32.pack(has))
        body += attrs.attr(_STATUS_MASK, _U32.pack(has | lacks))
    return Request(kind, 0, body, "delete tracked flows")


def matching(messages: Iterable[Message], filters: Sequence[Filter]) -> Iterator[Message]:
    """Yield the entries of a dump that match one of the filters, which are of
    one protocol and IP version. Raises ProtocolError.
    """
    family, number = _FAMILIES[filters[0].version], bytes([filters[0].protocol])
    wanted: dict[tuple[bytes | None, bytes | None], list[Filter]] = {}
    for one in filters:
        port = None if one.port is None else _PORT.pack(one.port)
        to = None if one.destination is None else one.destination.packed
        wanted.setdefault((port, to), []).append(one)
    for message in messages:
        ends = attrs.parse(_first(message, TUPLE_ORIG))
        protocol = attrs.parse(ends.get(_TUPLE_PROTO, b""))
        if message.body[0] != family or protocol.get(_PROTO_NUM) != number:
            continue
        port = protocol.get(_PROTO_DST_PORT)
        to = attrs.parse(ends.get(TUPLE_IP, b"")).get(_IP_DST[filters[0].version])
        keys = ((port, to), (port, None), (None, to), (None, None))
        if any(_fits(one, message) for key in keys for one in wanted.get(key, ())):
            yield message


def _fits(one: Filter, message: Message) -> bool:
    """Whether an entry matches a filter in what its reverse direction shows."""
    has, lacks = one.status
    if has or lacks:
        bits = int.from_bytes(_first(message, _STATUS_IS))
        if bits & has != has or bits & lacks:
            return False
    return one.to is None or one.to == _end(message, TUPLE_REPLY, _IP_SRC, _PROTO_SRC_PORT)[1]


def flow(message: Message) -> Flow:
    """Read an entry of IPv4 or IPv6. Raises ProtocolError."""
    protocol, destination, port = _end(message, TUPLE_ORIG, _IP_DST, _PROTO_DST_PORT)
    led_to = None
    if int.from_bytes(_first(message, _STATUS_IS)) & _DST_NAT:
        led_to = _end(message, TUPLE_REPLY, _IP_SRC, _PROTO_SRC_PORT)[1:]
    return Flow(protocol, destination, port, led_to)


def _end(
    message: Message, direction: int, address: Mapping[int, int], port: int
) -> tuple[int, IPAddress, int]:
    """Read the protocol of an entry, and one of its four ends: the types of the
    attributes for it, by IP version for the address. A protocol without ports
    has 0.
    """
    parts = attrs.parse(_first(message, direction))
    found = attrs.parse(parts.get(TUPLE_IP, b""))
    protocol = attrs.parse(parts.get(_TUPLE_PROTO, b""))
    packed = next((found[kind] for kind in address.values() if kind in found), b"")
    if len(packed) not in (4, 16):
        raise ProtocolError(f"a tracked flow with an address of {len(packed)} bytes")
    made = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
    number = int.from_bytes(protocol.get(_PROTO_NUM, b""))
    return number, made, int.from_bytes(protocol.get(port, b""))


def deletion(message: Message) -> Request:
    """Build the request to delete an entry of a dump, and no later one of the
    same flow. Raises ProtocolError.
    """
    entry = _entry(message)
    if TUPLE_ORIG not in entry or _ID not in entry:
        raise ProtocolError("a tracked flow without tuple or id")
    body = message.body[: GENMSG.size] + attrs.nested(TUPLE_ORIG, entry[TUPLE_ORIG])
    body += b"".join(attrs.attr(kind, entry[kind]) for kind in (_ID, _ZONE) if kind in entry)
    return Request(MSG_CT_DELETE, 0, body, "delete a tracked flow")


def _entry(message: Message) -> dict[int, bytes]:
    _check(message)
    return attrs.parse(message.body[GENMSG.size :])


def _first(message: Message, kind: int) -> bytes:
    """Return an attribute of an entry without reading those behind it."""
    _check(message)
    for found, payload in attrs.walk(message.body[GENMSG.size :]):
        if found == kind:
            return payload
    raise ProtocolError(f"a tracked flow without attribute {kind}")


def _check(message: Message) -> None:
    if message.kind != MSG_CT_NEW or len(message.body) < GENMSG.size:
        raise ProtocolError(f"message {message.kind} is not a tracked flow")
