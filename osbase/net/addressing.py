# SPDX-License-Identifier: Apache-2.0
"""Program the addresses and routes that a link should have.

The module reads the present state from the kernel, and changes only objects
with our protocol number (IFA_PROTO, rtm_protocol). So it stores nothing between
calls or over a restart, and addresses from other sources, such as router
advertisements, stay.

New addresses are added before old ones are removed, and routes last: in IPv4
the kernel removes the routes through a link with its last address, and the
routes that have an address as source with that address.

Why not with pyroute2's messages: see osbase.netlink.
"""

from __future__ import annotations

import errno
from collections.abc import Container
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Final

from osbase.ip import AF_INET6, FAMILIES, LINK_LOCAL_IPV6
from osbase.ip import IPAddress as IPAddress
from osbase.ip import IPInterface as IPInterface
from osbase.ip import IPNetwork as IPNetwork
from osbase.netlink import address as netlink_address
from osbase.netlink import route as netlink_route
from osbase.netlink.address import FOREVER as FOREVER
from osbase.netlink.address import del_address, dump_addresses, parse_address, replace_address
from osbase.netlink.message import Message, Request
from osbase.netlink.route import (
    RT_SCOPE_LINK,
    RTN_UNICAST,
    RTPROT_KERNEL,
    del_route,
    dump_link_routes,
    dump_routes,
    parse_route,
    replace_route,
)
from osbase.netlink.transport import NetlinkSocket


@dataclass(frozen=True)
class Address:
    """An address on the link. valid_s: seconds after which the kernel removes
    it, unless it is renewed.
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
    """All addresses and routes of ours that a link should have."""

    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class Missing:
    """An object that a link lacks, or has in another form. key: identifies it
    in each call. request: restores it.
    """

    key: str
    what: str
    request: Request


_SLACK_S: Final = 30
"""How much the end of an address may differ from the wanted one."""


def missing(
    sock: NetlinkSocket, ifindex: int, name: str, wanted: Addressing, *, protocol: int, metric: int
) -> list[Missing]:
    """Return what `apply` would add, in the required order.

    Only `apply` removes unwanted objects. Raises NetlinkError.
    """
    present = [one for one in _addresses(sock) if one.ifindex == ifindex]
    valid = {_interface(one): one.valid_s for one in present if one.protocol == protocol}
    lengths = {one.prefix_length for one in present}
    there = [
        route
        for family in FAMILIES
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
        for interface in map(_interface, present)
        if interface.ip in LINK_LOCAL_IPV6 and _lacks_prefix(interface, near)
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
            request = replace_route(_route(ifindex, route, protocol, metric), name)
            key = f"route {route.destination}"
            found.append(Missing(key, f"{name} lacks {request.what.removeprefix('add ')}", request))
    return found


def _matters(message: Message, protocol: int, lengths: Container[int]) -> bool:
    """Return whether the header of a route says that it may be ours, or that of
    an address's network: a routing daemon may have a hundred thousand others.
    """
    family, length, owner, scope, kind = (message.body[at] for at in (0, 1, 5, 6, 7))
    # All IPv6 routes have the same scope.
    near = length in lengths and (family == AF_INET6 or scope == RT_SCOPE_LINK)
    return kind == RTN_UNICAST and (owner == protocol or near)


_PREFIX_METRIC: Final = {4: 0, 6: 256}  # IP6_RT_PRIO_ADDRCONF


def _lacks_prefix(interface: IPInterface, near: Container[IPNetwork]) -> bool:
    """Return whether the route that the kernel made with the address is
    missing, for example after a flush of the table.
    """
    network = interface.network
    return network.prefixlen < network.max_prefixlen and network not in near


def _missing_prefix(ifindex: int, name: str, interface: IPInterface) -> Missing:
    """Return the route to an address's network as the kernel makes it, so that
    the kernel removes it with the address.
    """
    network, version = interface.network, interface.version
    route = Route(network, None, interface.ip if version == 4 else None)
    placed = _route(ifindex, route, RTPROT_KERNEL, _PREFIX_METRIC[version])
    request = replace_route(placed, name)
    return Missing(f"route {network}", f"{name} lacks route {network}", request)


def apply(
    sock: NetlinkSocket, ifindex: int, name: str, wanted: Addressing, *, protocol: int, metric: int
) -> None:
    """Give the link everything wanted, and remove everything else of ours.

    Blocks for as long as the kernel works. Raises NetlinkError. metric: metric
    of the routes, so that others may be preferred.
    """
    present = current(sock, ifindex, protocol)
    stale = {one.interface for one in present.addresses} - {
        one.interface for one in wanted.addresses
    }
    stale_routes = {(route.destination, route.gateway) for route in present.routes} - {
        (route.destination, route.gateway) for route in wanted.routes
    }

    sock.batch([_replace_address(ifindex, name, address, protocol) for address in wanted.addresses])
    # The kernel also removes addresses and routes by itself.
    sock.batch(
        [
            del_address(ifindex, name, one.ip, one.network.prefixlen, exact=True)
            for one in sorted(stale, key=str)
        ],
        tolerate={errno.EADDRNOTAVAIL},
    )
    sock.batch(
        [
            replace_route(_route(ifindex, route, protocol, metric), name)
            for route in _in_order(wanted)
        ]
    )
    sock.batch(
        [
            del_route(_route(ifindex, Route(*route), protocol, metric), name)
            for route in sorted(stale_routes, key=str)
        ],
        tolerate={errno.ESRCH},
    )


def current_addresses(sock: NetlinkSocket, ifindex: int, protocol: int) -> set[IPInterface]:
    """Return the link's addresses with the protocol number."""
    return {
        _interface(one)
        for one in _addresses(sock)
        if one.ifindex == ifindex and one.protocol == protocol
    }


def current(sock: NetlinkSocket, ifindex: int, protocol: int) -> Addressing:
    """Return the link's addresses and routes with the protocol number. The
    routes have no source.
    """
    found = [
        Route(route.destination, route.gateway)
        for family in FAMILIES
        for message in sock.dump(dump_routes(family, protocol))
        if (route := parse_route(message)) is not None and route.ifindex == ifindex
    ]
    addresses = [
        Address(_interface(one), one.valid_s)
        for one in _addresses(sock)
        if one.ifindex == ifindex and one.protocol == protocol
    ]
    return Addressing(tuple(addresses), tuple(found))


def links_of(sock: NetlinkSocket, protocol: int) -> frozenset[int]:
    """Return the indexes of links that have addresses with the number."""
    return frozenset(one.ifindex for one in _addresses(sock) if one.protocol == protocol)


def _addresses(sock: NetlinkSocket) -> list[netlink_address.Address]:
    """List the addresses of all links."""
    return [
        found
        for family in FAMILIES
        for message in sock.dump(dump_addresses(family, 0))
        if (found := parse_address(message)) is not None
    ]


def add_loopback_address(address: IPAddress) -> Request:
    """Build the request that adds one address of the host to lo."""
    interface = ip_interface((address, address.max_prefixlen))
    return replace_address(1, "lo", interface, protocol=0)


def _in_order(wanted: Addressing) -> list[Route]:
    """Return routes on the link before those through gateways, which may need
    them.
    """
    return sorted(wanted.routes, key=lambda route: route.gateway is not None)


def _interface(found: netlink_address.Address) -> IPInterface:
    return ip_interface((found.address, found.prefix_length))


def _replace_address(ifindex: int, name: str, wanted: Address, protocol: int) -> Request:
    return replace_address(
        ifindex, name, wanted.interface, protocol=protocol, valid_s=wanted.valid_s
    )


def _route(ifindex: int, wanted: Route, protocol: int, metric: int) -> netlink_route.Route:
    return netlink_route.Route(
        wanted.destination,
        ifindex,
        protocol,
        gateway=wanted.gateway,
        source=wanted.source,
        metric=metric,
    )
