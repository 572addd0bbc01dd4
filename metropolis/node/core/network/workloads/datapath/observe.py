# SPDX-License-Identifier: Apache-2.0
"""Reads from the kernel what `checks` compares; changes nothing.

A namespace is read over a socket inside, or, when its path is unknown, from the
host by the peer namespace's id there. The kernel shows links and addresses that
way, but no routes.
"""

import errno
from collections.abc import Callable, Sequence

from metropolis.node.core.network.workloads.datapath.checks import (
    HostSide,
    Inside,
    further_table,
    reached,
)
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.ip import AF_INET, AF_INET6, family_of
from osbase.netlink.address import Address, dump_addresses, parse_address
from osbase.netlink.errors import BatchError, errno_name
from osbase.netlink.fibrules import Rule, dump_rules, parse_rule
from osbase.netlink.link import Link, get_link, parse_link
from osbase.netlink.message import Message, Request
from osbase.netlink.route import (
    RT_TABLE_MAIN,
    Route,
    dump_link_routes,
    get_route,
    parse_route,
)
from osbase.netlink.transport import NetlinkSocket

_LOOPBACK = 1  # its index in every namespace
# The kernel's errors for a missing link, address, route or table. EINVAL: the
# id of a namespace that is gone.
_ABSENT = {
    errno.ENODEV,
    errno.ENOENT,
    errno.EINVAL,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EACCES,
}


def host_side(host: NetlinkSocket, record: Record) -> HostSide:
    """Return the host's state of the attachment."""
    families = _families(record)
    routes = {ip: _route(host, ip, record.host_ifindex) for ip in reached(record)}
    loopback = _addresses(host, AF_INET, _LOOPBACK) if AF_INET in families else ()
    six = AF_INET6 in families
    addresses = _addresses(host, AF_INET6, record.host_ifindex) if six else ()
    return HostSide(_link(host, record.host_ifindex), addresses, loopback, routes)


def inside(sock: NetlinkSocket, record: Record, netnsid: int | None) -> Inside:
    """Return the namespace's state. netnsid: the namespace's id if the socket
    is one of the host; None: the socket is inside.
    """
    index, families = record.peer_ifindex, _families(record)
    routes: tuple[Route, ...] | None = None
    further: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    if netnsid is None:
        routes = _routes(sock, families, index)
    if netnsid is None and record.further:
        further = _routes(sock, families, index, further_table(record))
        rules = tuple(
            parse_rule(message)
            for family in families
            for message in _dump(sock, dump_rules(family))
        )
    return Inside(
        link=_link(sock, index, netnsid),
        loopback=_link(sock, _LOOPBACK, netnsid),
        addresses=tuple(
            address for family in families for address in _addresses(sock, family, index, netnsid)
        ),
        routes=routes,
        rules=rules,
        further_routes=further,
    )


def _routes(
    sock: NetlinkSocket, families: Sequence[int], ifindex: int, table: int = RT_TABLE_MAIN
) -> tuple[Route, ...]:
    return tuple(
        route
        for family in families
        for message in _dump(sock, dump_link_routes(family, ifindex, table))
        if (route := parse_route(message)) is not None and route.ifindex == ifindex
    )


def elsewhere(host: NetlinkSocket, ip: IPAddress, ifindex: int) -> str:
    """Return where packets to an address go, as text; "": to the link."""
    try:
        route = parse_route(host.get(get_route(ip)))
    except BatchError as error:
        return f"nowhere ({errno_name(error.errors[0].errno)})"
    if route is None:
        return "by several ways"
    return "" if route.ifindex == ifindex else f"to {route.destination} by link {route.ifindex}"


def _families(record: Record) -> tuple[int, ...]:
    return tuple(family_of(ip) for ip in record.ips)


def _absent[T](ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except BatchError as error:
        if error.errors[0].errno in _ABSENT:
            return None
        raise


def _route(sock: NetlinkSocket, ip: IPAddress, ifindex: int) -> Route | None:
    request = get_route(ip, ifindex=ifindex if ip.is_link_local else 0)
    return _absent(lambda: parse_route(sock.get(request)))


def _link(sock: NetlinkSocket, ifindex: int, netnsid: int | None = None) -> Link | None:
    request = get_link(ifindex, netnsid=netnsid)
    return _absent(lambda: parse_link(sock.get(request)))


def _addresses(
    sock: NetlinkSocket, family: int, ifindex: int, netnsid: int | None = None
) -> tuple[Address, ...]:
    request = dump_addresses(family, ifindex, netnsid=netnsid)
    found = (parse_address(message) for message in _dump(sock, request))
    return tuple(one for one in found if one is not None and one.ifindex == ifindex)


def _dump(sock: NetlinkSocket, request: Request) -> list[Message]:
    return _absent(lambda: sock.dump(request)) or []
