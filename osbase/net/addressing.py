# SPDX-License-Identifier: Apache-2.0
"""What addresses and routes a link should have, and making it so.

The kernel is asked what it has; only what bears our protocol number is
ours to change (IFA_PROTO, rtm_protocol). So nothing needs to be remembered
between calls, or over a restart, and addresses that came from elsewhere,
such as router advertisements, stay.

New addresses come before old ones go, and routes last: in IPv4 the last
address of a link takes the routes through the link with it, and the removal
of an address those that have it as their source.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Final

from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import NLM_F_CREATE, NLM_F_REPLACE, Message, Request
from osbase.netlink.rtnl import (
    AF_INET,
    AF_INET6,
    IFA_F_NODAD,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    dump_link_routes,
    dump_routes,
    parse_route,
)
from osbase.netlink.transport import NetlinkSocket

type IPAddress = IPv4Address | IPv6Address
type IPInterface = IPv4Interface | IPv6Interface
type IPNetwork = IPv4Network | IPv6Network

FOREVER: Final = 0xFFFFFFFF

_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_RTM_DELROUTE: Final = 25
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_CACHEINFO: Final = 6
_IFA_PROTO: Final = 11  # since Linux 5.18
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_PREFSRC: Final = 7
_RTN_UNICAST: Final = 1
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
# family, dst len, src len, tos, table, protocol, scope, type, flags
_RTMSG = struct.Struct("=BBBBBBBBI")
_CACHEINFO = struct.Struct("=IIII")  # preferred, valid, created, updated


@dataclass(frozen=True)
class Address:
    """An address on the link. valid_s: after which the kernel removes it by
    itself, unless it is renewed.
    """

    interface: IPInterface
    valid_s: int = FOREVER


@dataclass(frozen=True)
class Route:
    """A route through the link. gateway None: the destination is on the link.
    source: our address that is used towards it.
    """

    destination: IPNetwork
    gateway: IPAddress | None
    source: IPAddress | None = None


@dataclass(frozen=True)
class Addressing:
    """Everything that a link should have of ours."""

    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class Missing:
    """What a link should have and has not, or not so. key: the same each time;
    request: puts it back.
    """

    key: str
    what: str
    request: Request


_SLACK_S: Final = 30
"""By how much the end of an address may differ from what is wanted."""


def missing(
    sock: NetlinkSocket, ifindex: int, name: str, wanted: Addressing, *, protocol: int, metric: int
) -> list[Missing]:
    """Return what `apply` would add, in the order in which it has to be.

    What is there and should not be is left to `apply`. Raises NetlinkError.
    """
    addresses = [one for one in _addresses(sock) if one[0] == ifindex]
    valid = {interface: valid_s for _, interface, owner, valid_s in addresses if owner == protocol}
    lengths = {interface.network.prefixlen for _, interface, _, _ in addresses}
    there = [
        route
        for family in (AF_INET, AF_INET6)
        for message in sock.dump(dump_link_routes(family, ifindex))
        if _matters(message, protocol, lengths)
        for route in [parse_route(message)]
        if route is not None and route.ifindex == ifindex
    ]
    routes = {
        (route.destination, route.gateway, route.source, route.metric)
        for route in there
        if route.protocol == protocol
    }
    near = {route.destination for route in there if route.gateway is None}
    found = [
        _missing_prefix(ifindex, name, interface)
        for interface in [one[1] for one in addresses]
        if interface.ip in _LINK_LOCAL and _lacks_prefix(interface, near)
    ]
    for address in wanted.addresses:
        left = valid.get(address.interface)
        if left is None:
            what = f"{name} lacks address {address.interface}"
        elif (left == FOREVER) != (address.valid_s == FOREVER) or (
            abs(left - address.valid_s) > _SLACK_S
        ):
            what = f"address {address.interface} of {name} ends in {left} s, not {address.valid_s}"
        else:
            if _lacks_prefix(address.interface, near):
                found.append(_missing_prefix(ifindex, name, address.interface))
            continue
        found.append(
            Missing(
                f"address {address.interface}",
                what,
                _replace_address(ifindex, name, address, protocol),
            )
        )
    for route in _in_order(wanted):
        if (route.destination, route.gateway, route.source, metric) not in routes:
            request = _replace_route(ifindex, name, route, protocol, metric)
            key = f"route {route.destination}"
            found.append(Missing(key, f"{name} lacks {request.what.removeprefix('add ')}", request))
    return found


def _matters(message: Message, protocol: int, lengths: Container[int]) -> bool:
    """Whether a route may be ours, or that of an address's network, by its
    header alone: a router's daemon may have a hundred thousand others.
    """
    family, length, owner, scope, kind = (message.body[at] for at in (0, 1, 5, 6, 7))
    # In IPv6 all are of one scope.
    near = length in lengths and (family == AF_INET6 or scope == RT_SCOPE_LINK)
    return kind == _RTN_UNICAST and (owner == protocol or near)


_RTPROT_KERNEL: Final = 2
_PREFIX_METRIC: Final = {4: 0, 6: 256}  # IP6_RT_PRIO_ADDRCONF


_LINK_LOCAL: Final = IPv6Network("fe80::/10")


def _lacks_prefix(interface: IPInterface, near: Container[IPNetwork]) -> bool:
    """Whether the route that the kernel made with the address is gone, as when
    the table was flushed.
    """
    network = interface.network
    return network.prefixlen < network.max_prefixlen and network not in near


def _missing_prefix(ifindex: int, name: str, interface: IPInterface) -> Missing:
    """Return the route to an address's network as the kernel makes it, so that
    it goes with the address.
    """
    network, version = interface.network, interface.version
    route = Route(network, None, interface.ip if version == 4 else None)
    request = _replace_route(ifindex, name, route, _RTPROT_KERNEL, _PREFIX_METRIC[version])
    return Missing(f"route {network}", f"{name} lacks route {network}", request)


def apply(
    sock: NetlinkSocket, ifindex: int, name: str, wanted: Addressing, *, protocol: int, metric: int
) -> None:
    """Make the link have what is wanted, and nothing else that is ours.

    Blocks for as long as the kernel works. Raises NetlinkError. `metric`: of
    the routes, so that others may be preferred.
    """
    present = current_addresses(sock, ifindex, protocol)
    stale = present - {address.interface for address in wanted.addresses}
    routes: set[tuple[IPNetwork, IPAddress | None]] = set()
    for family in (AF_INET, AF_INET6):
        for message in sock.dump(dump_routes(family, protocol)):
            found = _parse_route(message)
            if found is not None and found[0] == ifindex:
                routes.add(found[1:])
    stale_routes = routes - {(route.destination, route.gateway) for route in wanted.routes}

    sock.batch([_replace_address(ifindex, name, address, protocol) for address in wanted.addresses])
    # Gone already is as good as removed; the kernel does so by itself, too.
    sock.batch_tolerating(
        {errno.EADDRNOTAVAIL},
        *(_del_address(ifindex, name, interface) for interface in sorted(stale, key=str)),
    )
    sock.batch(
        [_replace_route(ifindex, name, route, protocol, metric) for route in _in_order(wanted)]
    )
    sock.batch_tolerating(
        {errno.ESRCH},
        *(
            _route_request(_RTM_DELROUTE, 0, ifindex, name, Route(*route), protocol, metric)
            for route in sorted(stale_routes, key=str)
        ),
    )


def current_addresses(sock: NetlinkSocket, ifindex: int, protocol: int) -> set[IPInterface]:
    """Return the link's addresses that bear the protocol number."""
    return {
        interface
        for index, interface, owner, _ in _addresses(sock)
        if index == ifindex and owner == protocol
    }


def current(sock: NetlinkSocket, ifindex: int, protocol: int) -> Addressing:
    """Return all that the link has with the protocol number; routes without
    their sources.
    """
    routes = [
        Route(found[1], found[2])
        for family in (AF_INET, AF_INET6)
        for message in sock.dump(dump_routes(family, protocol))
        if (found := _parse_route(message)) is not None and found[0] == ifindex
    ]
    addresses = [
        Address(interface, valid_s)
        for index, interface, owner, valid_s in _addresses(sock)
        if index == ifindex and owner == protocol
    ]
    return Addressing(tuple(addresses), tuple(routes))


def links_of(sock: NetlinkSocket, protocol: int) -> frozenset[int]:
    """Return the indexes of links with addresses that bear the number."""
    return frozenset(index for index, _, owner, _ in _addresses(sock) if owner == protocol)


def _addresses(sock: NetlinkSocket) -> Iterator[tuple[int, IPInterface, int, int]]:
    """Yield index, address, protocol and validity in seconds, of all links."""
    for family in (AF_INET, AF_INET6):
        request = Request(_RTM_GETADDR, 0, _IFADDR.pack(family, 0, 0, 0, 0), "list addresses")
        for message in sock.dump(request):
            yield _parse_address(message)


def add_loopback_address(address: IPAddress) -> Request:
    """Build the request that puts a single address of the host on lo."""
    interface = ip_interface((address, address.max_prefixlen))
    return _replace_address(1, "lo", Address(interface), 0)


def _in_order(wanted: Addressing) -> list[Route]:
    """Return routes on the link before those through gateways, which may need
    them.
    """
    return sorted(wanted.routes, key=lambda route: route.gateway is not None)


def _family(version: int) -> int:
    return AF_INET if version == 4 else AF_INET6


def _address_request(
    kind: int, flags: int, ifindex: int, interface: IPInterface, extra: Iterable[bytes], what: str
) -> Request:
    packed = interface.ip.packed
    # Nobody waits for duplicate address detection of what a server gave.
    no_dad = IFA_F_NODAD if interface.version == 6 else 0
    head = _IFADDR.pack(
        _family(interface.version), interface.network.prefixlen, no_dad, RT_SCOPE_UNIVERSE, ifindex
    )
    body = head + attrs.attr(_IFA_LOCAL, packed) + attrs.attr(_IFA_ADDRESS, packed)
    return Request(kind, flags, body + b"".join(extra), what)


def _replace_address(ifindex: int, name: str, address: Address, protocol: int) -> Request:
    extra = [
        attrs.attr(_IFA_CACHEINFO, _CACHEINFO.pack(address.valid_s, address.valid_s, 0, 0)),
        attrs.attr(_IFA_PROTO, bytes([protocol])),
    ]
    return _address_request(
        RTM_NEWADDR,
        NLM_F_CREATE | NLM_F_REPLACE,
        ifindex,
        address.interface,
        extra,
        f"add address {address.interface} to {name}",
    )


def _del_address(ifindex: int, name: str, interface: IPInterface) -> Request:
    return _address_request(
        _RTM_DELADDR, 0, ifindex, interface, [], f"delete address {interface} of {name}"
    )


def _replace_route(ifindex: int, name: str, route: Route, protocol: int, metric: int) -> Request:
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return _route_request(RTM_NEWROUTE, flags, ifindex, name, route, protocol, metric)


def _route_request(
    kind: int, flags: int, ifindex: int, name: str, route: Route, protocol: int, metric: int
) -> Request:
    destination = route.destination
    on_link = route.gateway is None and destination.version == 4
    head = _RTMSG.pack(
        _family(destination.version),
        destination.prefixlen,
        0,
        0,
        RT_TABLE_MAIN,
        protocol,
        RT_SCOPE_LINK if on_link else RT_SCOPE_UNIVERSE,
        _RTN_UNICAST,
        0,
    )
    parts = [head, attrs.u32(_RTA_OIF, ifindex), attrs.u32(_RTA_PRIORITY, metric)]
    if destination.prefixlen:
        parts.append(attrs.attr(_RTA_DST, destination.network_address.packed))
    if route.gateway is not None:
        parts.append(attrs.attr(_RTA_GATEWAY, route.gateway.packed))
    if route.source is not None:
        parts.append(attrs.attr(_RTA_PREFSRC, route.source.packed))
    verb = "add" if kind == RTM_NEWROUTE else "delete"
    via = f" via {route.gateway}" if route.gateway is not None else ""
    return Request(kind, flags, b"".join(parts), f"{verb} route {destination}{via} dev {name}")


def _parse_address(message: Message) -> tuple[int, IPInterface, int, int]:
    if message.kind != RTM_NEWADDR or len(message.body) < _IFADDR.size:
        raise ProtocolError(f"message {message.kind} is not an address")
    _, length, _, _, ifindex = _IFADDR.unpack_from(message.body)
    found = attrs.parse(message.body[_IFADDR.size :])
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    owner = found.get(_IFA_PROTO, b"\0")
    if len(packed) not in (4, 16) or length > len(packed) * 8 or not owner:
        raise ProtocolError(f"an address of {len(packed)} bytes and {length} bits")
    cache = found.get(_IFA_CACHEINFO, b"")
    valid_s = _CACHEINFO.unpack_from(cache)[1] if len(cache) >= _CACHEINFO.size else FOREVER
    return ifindex, ip_interface((ip_address(packed), length)), owner[0], valid_s


def _parse_route(message: Message) -> tuple[int, IPNetwork, IPAddress | None] | None:
    """Return index, destination and gateway; None for several next hops."""
    if message.kind != RTM_NEWROUTE or len(message.body) < _RTMSG.size:
        raise ProtocolError(f"message {message.kind} is not a route")
    family, length, *_ = _RTMSG.unpack_from(message.body)
    found = attrs.parse(message.body[_RTMSG.size :])
    width = {AF_INET: 4, AF_INET6: 16}.get(family, 0)
    packed = found.get(_RTA_DST, bytes(width))
    if _RTA_OIF not in found or not width:
        return None
    if len(packed) != width or length > width * 8:
        raise ProtocolError(f"a route of {len(packed)} bytes and {length} bits")
    gateway = found.get(_RTA_GATEWAY)
    return (
        attrs.to_u32(found[_RTA_OIF]),
        ip_network((ip_address(packed), length)),
        ip_address(gateway) if gateway is not None else None,
    )
