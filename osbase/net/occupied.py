# SPDX-License-Identifier: Apache-2.0
"""Find the addresses in use on a host's links, from any source: DHCP, people or
router advertisements.

    addresses                 the address itself, and the network on its link
    routes of the main table  on a link: the network; through gateways or a
                              tunnel: the destination; each gateway
    routes of tables that     the destination: packets take these routes,
    are looked up before it   whatever the main table says (some VPNs do this)

The result leaves out routes that do not locate other hosts: default routes,
link-local and multicast networks, routes that are not unicast; and the links
and route protocols that the caller names as its own, which may be thousands.
`changes` filters those in the kernel, so that they wake no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import socket
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from osbase.ip import AF_INET, AF_INET6, IPAddress, IPNetwork
from osbase.netlink import attrs, bpf, fibrules
from osbase.netlink.address import (
    IFA_F_NOPREFIXROUTE,
    RTM_DELADDR,
    RTM_NEWADDR,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    Address,
    dump_addresses,
    parse_address,
)
from osbase.netlink.errors import BatchError
from osbase.netlink.link import Link, get_link, parse_link
from osbase.netlink.message import Message
from osbase.netlink.route import HEADER as ROUTE_HEADER
from osbase.netlink.route import (
    RT_SCOPE_LINK,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    RTPROT_KERNEL,
    Route,
    dump_routes,
    parse_route,
)
from osbase.netlink.transport import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, NetlinkSocket

_IFF_POINTOPOINT: Final = 0x10
_MAIN_PRIORITY: Final = 32766  # see fib_default_rules_init
_RTA_TABLE: Final = 15
_GROUPS: Final = (
    RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE,
    fibrules.RTNLGRP_IPV4_RULE, fibrules.RTNLGRP_IPV6_RULE,
)  # fmt: skip


class Kind(enum.Enum):
    """How an address or network is in use."""

    NETWORK = "network"
    """Its addresses are on the link."""
    ADDRESS = "address"
    """The address belongs to the host itself."""
    ROUTE = "route"
    """Its addresses are behind a gateway, or at the other end of a tunnel."""
    GATEWAY = "gateway"
    PREFERRED = "preferred route"
    """Packets to it take this route, whatever the main table says."""


@dataclass(frozen=True)
class Occupied:
    """A network in use. origin: the protocol number of its route (rtm_protocol)
    or address (IFA_PROTO); by_address says which. gateway: one of the route's
    gateways; None for a tunnel.
    """

    kind: Kind
    network: IPNetwork
    link: str
    origin: int
    by_address: bool
    gateway: IPAddress | None = None


def look(*, own_groups: Collection[int], own_protocols: Collection[int]) -> tuple[Occupied, ...]:
    """Ask the kernel. own_groups, own_protocols: links and routes to leave out.

    For a network in use by both, the address comes first. Blocks. Raises
    NetlinkError.
    """
    with NetlinkSocket() as sock:
        links = _Links(sock, own_groups)
        found: dict[tuple[Kind, IPNetwork, str], Occupied] = {}
        for one in (*_by_addresses(sock, links), *_by_routes(sock, links, own_protocols)):
            if _tells(one.network):
                found.setdefault((one.kind, one.network, one.link), one)
        return tuple(found.values())


async def changes(own_protocols: Collection[int]) -> AsyncGenerator[None]:
    """Yield once when the subscription exists, and then whenever the result of
    `look` may have changed. Close it. Raises OSError.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    ) as events:
        _attach_filter(events, own_protocols)
        events.bind((0, 0))
        for group in _GROUPS:
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        while True:
            yield
            await _next(loop, events)
            # All waiting events are one change. After an overrun, the kernel
            # sends no more until all is read (af_netlink.c).
            with contextlib.suppress(BlockingIOError):
                while True:
                    _receive(events)


async def _next(loop: asyncio.AbstractEventLoop, events: socket.socket) -> None:
    try:
        await loop.sock_recv(events, 1)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise


def _receive(events: socket.socket) -> None:
    try:
        events.recv(1)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise


def _tells(network: IPNetwork) -> bool:
    quiet = network.is_link_local and network.version == 6
    return bool(network.prefixlen) and not quiet and not network.is_multicast


class _Links:
    """Links by index, each requested once; None: leave the link out."""

    def __init__(self, sock: NetlinkSocket, own_groups: Collection[int]) -> None:
        self._sock = sock
        self._own_groups = own_groups
        self._found: dict[int, Link | None] = {}

    def get(self, ifindex: int) -> Link | None:
        if ifindex not in self._found:
            self._found[ifindex] = self._ask(ifindex)
        return self._found[ifindex]

    def _ask(self, ifindex: int) -> Link | None:
        try:
            link = parse_link(self._sock.get(get_link(ifindex)))
        except BatchError as error:
            if all(one.errno == errno.ENODEV for one in error.errors):
                return None
            raise
        return None if link.group in self._own_groups else link


def _by_addresses(sock: NetlinkSocket, links: _Links) -> Iterator[Occupied]:
    for family in (AF_INET, AF_INET6):
        for message in sock.dump(dump_addresses(family, 0)):
            # Every link has one: skip it before parsing.
            if family == AF_INET6 and message.body[3] == RT_SCOPE_LINK:
                continue
            address = parse_address(message)
            if address is not None and (link := links.get(address.ifindex)) is not None:
                yield from _of_address(address, link.name)


def _of_address(address: Address, name: str) -> Iterator[Occupied]:
    if not address.flags & IFA_F_NOPREFIXROUTE:
        there = address.peer or address.address
        network = ip_network((there, address.prefix_length), strict=False)
        if network.prefixlen < network.max_prefixlen or there is address.peer:
            yield Occupied(Kind.NETWORK, network, name, address.protocol, True)
    yield Occupied(Kind.ADDRESS, ip_network(address.address), name, address.protocol, True)


def _by_routes(
    sock: NetlinkSocket, links: _Links, own_protocols: Collection[int]
) -> Iterator[Occupied]:
    for family in (AF_INET, AF_INET6):
        first = _first_tables(sock, family)
        for message in sock.dump(dump_routes(family, 0)):
            table, protocol, kind = message.body[4], message.body[5], message.body[7]
            if kind != RTN_UNICAST or table == RT_TABLE_LOCAL:
                continue
            if table == RT_TABLE_MAIN:
                if protocol not in own_protocols and (route := parse_route(message)) is not None:
                    yield from _of_route(route, links)
            elif first and _table_of(message) in first and (route := parse_route(message)):
                yield from _preferred(route, links)


def _first_tables(sock: NetlinkSocket, family: int) -> frozenset[int]:
    """Return the tables that are looked up before the main, for all packets."""
    try:
        rules = list(map(fibrules.parse_rule, sock.dump(fibrules.dump_rules(family))))
    except BatchError as error:
        if all(one.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP) for one in error.errors):
            return frozenset()
        raise
    rules = [rule for rule in rules if rule.everything]
    main = [rule.priority for rule in rules if rule.table == RT_TABLE_MAIN]
    before = min(main, default=_MAIN_PRIORITY)
    tables = frozenset(rule.table for rule in rules if rule.priority < before)
    return tables - {RT_TABLE_LOCAL, RT_TABLE_MAIN}


def _table_of(message: Message) -> int:
    """Return the table; a number over one byte is in an attribute."""
    found = attrs.parse(message.body[ROUTE_HEADER.size :])
    return attrs.to_u32(found[_RTA_TABLE]) if _RTA_TABLE in found else message.body[4]


def _preferred(route: Route, links: _Links) -> Iterator[Occupied]:
    for ifindex, gateway in _hops(route):
        link = links.get(ifindex) if _tells(route.destination) else None
        if link is not None:
            kind = Kind.PREFERRED
            yield Occupied(kind, route.destination, link.name, route.protocol, False, gateway)


def _hops(route: Route) -> Iterable[tuple[int, IPAddress | None]]:
    return route.hops if route.ifindex is None else ((route.ifindex, route.gateway),)


def _of_route(route: Route, links: _Links) -> Iterator[Occupied]:
    for ifindex, gateway in _hops(route):
        # Every link of a workload has a route to fe80::1.
        worth = _tells(route.destination) or gateway is not None
        link = links.get(ifindex) if worth else None
        if link is None:
            continue
        # A tunnel's own route, by the kernel, is its address's network.
        tunnel = link.flags & _IFF_POINTOPOINT and route.protocol != RTPROT_KERNEL
        kind = Kind.NETWORK if gateway is None and not tunnel else Kind.ROUTE
        yield Occupied(kind, route.destination, link.name, route.protocol, False, gateway)
        if gateway is not None:
            yield Occupied(Kind.GATEWAY, ip_network(gateway), link.name, route.protocol, False)


def _attach_filter(events: socket.socket, own_protocols: Collection[int]) -> None:
    """Drop in the kernel the events of an attach: link-local IPv6 addresses and
    routes, and routes of the protocols; also routes of the table local.

    Classic BPF loads big-endian: host-order numbers are compared swapped. It
    sees a struct nlmsghdr of 16 bytes, and behind it a struct ifaddrmsg or a
    struct rtmsg of 12 bytes with its attributes. An IPv6 route has RTA_TABLE
    first, then RTA_DST, at byte 36.
    """
    program = bpf.Program()
    program.load_half(4)  # nlmsg_type
    for kind in (RTM_NEWADDR, RTM_DELADDR):
        program.jump_if_equal(socket.htons(kind), "address")
    for kind in (RTM_NEWROUTE, RTM_DELROUTE):
        program.jump_if_equal(socket.htons(kind), "route")
    program.end(accept=True)

    program.label("address")
    program.load_byte(16)  # ifa_family
    program.jump_unless_equal(AF_INET6, "accept")
    program.load_byte(19)  # ifa_scope
    program.jump_if_equal(RT_SCOPE_LINK, "drop")
    program.end(accept=True)

    program.label("route")
    program.load_byte(20)  # rtm_table
    program.jump_if_equal(RT_TABLE_LOCAL, "drop")
    program.load_byte(21)  # rtm_protocol
    for protocol in own_protocols:
        program.jump_if_equal(protocol, "drop")
    program.load_byte(16)  # rtm_family
    program.jump_unless_equal(AF_INET6, "accept")
    program.load_half(38)  # the second attribute's type
    program.jump_unless_equal(socket.htons(1), "accept")  # RTA_DST
    program.load_half(40)
    program.mask(0xFFC0)
    program.jump_if_equal(0xFE80, "drop")

    program.label("accept")
    program.end(accept=True)
    program.label("drop")
    program.end(accept=False)
    bpf.attach_program(events, program.assemble())
