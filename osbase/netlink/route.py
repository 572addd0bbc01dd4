# SPDX-License-Identifier: Apache-2.0
"""Route messages: build and parse. Pure.

Rules, which choose the table of a lookup, are in `fibrules`. Source:
linux/rtnetlink.h.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from osbase.ip import AF_INET, AF_INET6, IPAddress, IPNetwork, family_of
from osbase.netlink import attrs
from osbase.netlink.attrs import ADDRESS_SIZES
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Message, Request

RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTNLGRP_IPV4_ROUTE = 7
RTNLGRP_IPV6_ROUTE = 11

RT_TABLE_MAIN = 254
RT_TABLE_LOCAL = 255
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_HOST = 254
RTPROT_KERNEL = 2
RTPROT_BOOT = 3
RTN_UNICAST = 1
RTN_LOCAL = 2
RTN_MULTICAST = 5
RTN_UNREACHABLE = 7
RTM_F_FIB_MATCH = 0x2000

_RTA_DST = 1
RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_PREFSRC = 7
_RTA_MULTIPATH = 9
_RTA_TABLE = 15
_RTA_VIA = 18

# family, dst len, src len, tos, table, protocol, scope, type, flags
HEADER = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")  # length, flags, hops, index
_VIA = struct.Struct("=H")  # family, then the address
_NEW = NLM_F_CREATE | NLM_F_EXCL
_MULTICAST = IPv6Address("ff00::")
_KERNEL_METRIC = 256  # IP6_RT_PRIO_ADDRCONF


def dump_routes(family: int, protocol: int) -> Request:
    """List a protocol's routes; the kernel filters on strict sockets only."""
    body = HEADER.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0)
    return Request(RTM_GETROUTE, 0, body, "list routes")


def dump_link_routes(family: int, ifindex: int, table: int = RT_TABLE_MAIN) -> Request:
    """List a table's routes through a link; see dump_routes. ENOENT: there is
    no such table.
    """
    body = HEADER.pack(family, 0, 0, 0, _in_header(table), 0, 0, 0, 0)
    body += attrs.u32(RTA_OIF, ifindex) + _beyond_header(table)
    return Request(RTM_GETROUTE, 0, body, "list routes of link {}", (ifindex,))


def dump_local_routes(family: int, ifindex: int) -> Request:
    """List the routes that make a link's addresses local; see dump_routes."""
    body = HEADER.pack(family, 0, 0, 0, RT_TABLE_LOCAL, 0, 0, 0, 0) + attrs.u32(RTA_OIF, ifindex)
    return Request(RTM_GETROUTE, 0, body, "list local routes of link {}", (ifindex,))


def dump_main_routes(family: int) -> Request:
    """List the main table's routes; see dump_routes."""
    body = HEADER.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
    return Request(RTM_GETROUTE, 0, body, "list routes of the main table")


def get_route(destination: IPAddress, *, ifindex: int = 0) -> Request:
    """Look up the table's entry for packets to the address, without cached
    exceptions. ifindex: only for packets that leave through this link; 0: any.
    """
    bits = destination.max_prefixlen
    flags = RTM_F_FIB_MATCH
    body = HEADER.pack(family_of(destination), bits, 0, 0, 0, 0, 0, 0, flags)
    body += attrs.attr(_RTA_DST, destination.packed)
    if ifindex:
        body += attrs.u32(RTA_OIF, ifindex)
    return Request(RTM_GETROUTE, 0, body, "look up route to {}", (destination,))


@dataclass(frozen=True)
class Route:
    """A route of IPv4 or IPv6. ifindex None: not through one link. kind: RTN_.
    metric 0: the kernel's default. hops: link and gateway of each next hop, if
    there are several.
    """

    destination: IPNetwork
    ifindex: int | None
    protocol: int
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    kind: int = RTN_UNICAST
    metric: int = 0
    hops: tuple[tuple[int, IPAddress | None], ...] = ()


def add_route(
    destination: IPAddress | None,
    ifindex: int,
    name: str,
    *,
    family: int,
    protocol: int,
    gateway: IPAddress | None = None,
    source: IPAddress | None = None,
    metric: int = 0,
    exclusive: bool = True,
    table: int = RT_TABLE_MAIN,
) -> Request:
    """Add a route to one address, or the default route (destination None),
    through a link or a gateway on it, to a table.

    source: our address that is used towards it; it must be local. metric 0:
    the kernel's default. exclusive: EEXIST when any link has a route to the
    same address; otherwise, in IPv6, only for an identical route.
    """
    scope = RT_SCOPE_LINK if gateway is None and family == AF_INET else RT_SCOPE_UNIVERSE
    bits = 0 if destination is None else destination.max_prefixlen
    parts = [
        HEADER.pack(family, bits, 0, 0, _in_header(table), protocol, scope, RTN_UNICAST, 0),
        attrs.u32(RTA_OIF, ifindex),
    ]
    if table != RT_TABLE_MAIN:
        parts.append(_beyond_header(table))
    if destination is not None:
        parts.append(attrs.attr(_RTA_DST, destination.packed))
    if gateway is not None:
        parts.append(attrs.attr(_RTA_GATEWAY, gateway.packed))
    if source is not None:
        parts.append(attrs.attr(_RTA_PREFSRC, source.packed))
    if metric:
        parts.append(attrs.u32(_RTA_PRIORITY, metric))
    values = ("default" if destination is None else destination, bits, name)
    flags = _NEW if exclusive else NLM_F_CREATE
    return Request(RTM_NEWROUTE, flags, b"".join(parts), "add route {}/{} dev {}", values)


def _in_header(table: int) -> int:
    """Return a table's number as the header has it, which has a byte for it."""
    return table if table < 256 else 0


def _beyond_header(table: int) -> bytes:
    return b"" if table < 256 else attrs.u32(_RTA_TABLE, table)


def add_multicast_route(ifindex: int, name: str) -> Request:
    """Add the IPv6 route by which a link receives multicast: the same that the
    kernel adds once it has looked at the link's carrier, and removes with the
    link. ENETDOWN: the link is down. EEXIST: it is there.
    """
    parts = [
        HEADER.pack(
            AF_INET6, 8, 0, 0, RT_TABLE_LOCAL, RTPROT_KERNEL, RT_SCOPE_UNIVERSE, RTN_MULTICAST, 0
        ),
        attrs.attr(_RTA_DST, _MULTICAST.packed),
        attrs.u32(RTA_OIF, ifindex),
        attrs.u32(_RTA_PRIORITY, _KERNEL_METRIC),
    ]
    words = "add route {}/8 dev {}"
    return Request(RTM_NEWROUTE, NLM_F_CREATE, b"".join(parts), words, (_MULTICAST, name))


def add_local_route(ifindex: int, name: str, address: IPv4Address) -> Request:
    """Add the local route that the kernel makes for an address of a link. The
    kernel removes it with the address; in IPv6 it would not.
    """
    parts = [
        HEADER.pack(AF_INET, 32, 0, 0, RT_TABLE_LOCAL, RTPROT_KERNEL, RT_SCOPE_HOST, RTN_LOCAL, 0),
        attrs.attr(_RTA_DST, address.packed),
        attrs.u32(RTA_OIF, ifindex),
        attrs.attr(_RTA_PREFSRC, address.packed),
    ]
    what = "add local route {} dev {}"
    return Request(RTM_NEWROUTE, NLM_F_CREATE, b"".join(parts), what, (address, name))


def add_network_route(route: Route, name: str) -> Request:
    """Add the route to the main table. EEXIST: there is one with the same
    metric and destination. name: the link's, for errors.
    """
    return _route(RTM_NEWROUTE, _NEW, route, "add", name)


def replace_route(route: Route, name: str) -> Request:
    """Add the route to the main table, or replace the one with the same metric
    and destination. name: the link's, for errors.
    """
    return _route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route, "add", name)


def del_route(route: Route, name: str) -> Request:
    """Delete a route. ESRCH: it does not exist."""
    return _route(RTM_DELROUTE, 0, route, "delete", name)


def _route(kind: int, flags: int, route: Route, verb: str, name: str) -> Request:
    destination = route.destination
    family = family_of(destination)
    near = family == AF_INET and route.gateway is None and route.kind == RTN_UNICAST
    scope = RT_SCOPE_LINK if near else RT_SCOPE_UNIVERSE
    bits, table, owner = destination.prefixlen, RT_TABLE_MAIN, route.protocol
    parts = [HEADER.pack(family, bits, 0, 0, table, owner, scope, route.kind, 0)]
    if bits:
        parts.append(attrs.attr(_RTA_DST, destination.network_address.packed))
    if route.ifindex is not None:
        parts.append(attrs.u32(RTA_OIF, route.ifindex))
    if route.gateway is not None:
        parts.append(attrs.attr(_RTA_GATEWAY, route.gateway.packed))
    if route.source is not None:
        parts.append(attrs.attr(_RTA_PREFSRC, route.source.packed))
    if route.metric:
        parts.append(attrs.u32(_RTA_PRIORITY, route.metric))
    data = b"".join(parts)
    if route.kind != RTN_UNICAST:
        return Request(kind, flags, data, "{} route {} unreachable", (verb, destination))
    if route.gateway is None:
        return Request(kind, flags, data, "{} route {} dev {}", (verb, destination, name))
    values = (verb, destination, route.gateway, name)
    return Request(kind, flags, data, "{} route {} via {} dev {}", values)


def parse_route(message: Message) -> Route | None:
    """Return None for families other than IP. Raises ProtocolError."""
    if message.kind != RTM_NEWROUTE or len(message.body) < HEADER.size:
        raise ProtocolError(f"message {message.kind} of {len(message.body)} bytes is not a route")
    family, bits, _, _, _, protocol, _, kind, _ = HEADER.unpack_from(message.body)
    if family not in ADDRESS_SIZES:
        return None
    found = attrs.parse(message.body[HEADER.size :])
    packed = found.get(_RTA_DST, bytes(ADDRESS_SIZES[family]))

    def address(kind: int) -> IPAddress | None:
        return attrs.to_ip(family, found[kind]) if kind in found else None

    try:
        # Not ip_network, which is slow by way of text: a dump has thousands.
        network = IPv4Network if family == AF_INET else IPv6Network
        destination = network((int(attrs.to_ip(family, packed)), bits))
    except ValueError as error:
        raise ProtocolError(f"a route destination: {error}") from error
    return Route(
        destination=destination,
        ifindex=attrs.to_u32(found[RTA_OIF]) if RTA_OIF in found else None,
        protocol=protocol,
        gateway=_gateway(family, found),
        source=address(_RTA_PREFSRC),
        kind=kind,
        metric=attrs.to_u32(found[_RTA_PRIORITY]) if _RTA_PRIORITY in found else 0,
        hops=tuple(_hops(family, found.get(_RTA_MULTIPATH, b""))),
    )


def _gateway(family: int, found: dict[int, bytes]) -> IPAddress | None:
    """Return the gateway. An IPv6 gateway of an IPv4 route has an attribute of
    its own (RFC 5549).
    """
    if _RTA_GATEWAY in found:
        return attrs.to_ip(family, found[_RTA_GATEWAY])
    via = found.get(_RTA_VIA)
    if via is None:
        return None
    if len(via) < _VIA.size or (other := _VIA.unpack_from(via)[0]) not in ADDRESS_SIZES:
        raise ProtocolError(f"a gateway of {len(via)} bytes")
    return attrs.to_ip(other, via[_VIA.size :])


def _hops(family: int, data: bytes) -> Iterator[tuple[int, IPAddress | None]]:
    """Yield next hops: each is a struct rtnexthop with attributes
    (linux/rtnetlink.h).
    """
    while data:
        if len(data) < _NEXT_HOP.size:
            raise ProtocolError(f"a next hop of {len(data)} bytes")
        length, _, _, ifindex = _NEXT_HOP.unpack_from(data)
        if not _NEXT_HOP.size <= length <= len(data):
            raise ProtocolError(f"a next hop of {length} bytes")
        yield ifindex, _gateway(family, attrs.parse(data[_NEXT_HOP.size : length]))
        data = data[(length + 3) & ~3 :]
