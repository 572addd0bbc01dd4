# SPDX-License-Identifier: Apache-2.0
"""Compares an attachment with the kernel's state. Pure.

`observe` reads the kernel, this module compares. Only what an attach makes is
compared; whatever a workload adds in its own namespace is ignored.

Not compared: metrics of routes inside, since the records do not say which
interface of a namespace was the first; and the node's rule set, which knows
workloads only by the link's group.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import Finding, IPAddress, routes_of
from metropolis.node.core.network.workloads.validate import show
from osbase.ip import link_local
from osbase.netlink.address import Address
from osbase.netlink.fibrules import Rule
from osbase.netlink.link import Link
from osbase.netlink.route import Route

NOTHING = "nothing"
# The address alone, without its prefix. On a router a prefix of a link costs an
# anycast address, whose removal takes a wait: a detach takes twice as long. And
# fe80::/64 would be one route in a list as long as there are links, walked by
# each attach. So a workload's link-local address has a route of its own.
FIRST_HOP_BITS_6 = 128


@dataclass(frozen=True, slots=True)
class HostSide:
    """The host's state. addresses: of the link; routes: by address of the
    attachment, None where there is no route.
    """

    link: Link | None
    addresses: tuple[Address, ...]
    loopback_addresses: tuple[Address, ...]
    routes: dict[IPAddress, Route | None]


@dataclass(frozen=True, slots=True)
class Inside:
    """The namespace's state. routes None: they could not be read. rules,
    further_routes: of a further interface, its rules and what is in its table.
    """

    link: Link | None
    loopback: Link | None
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...] | None
    rules: tuple[Rule, ...] = ()
    further_routes: tuple[Route, ...] = ()


def reached(record: Record) -> tuple[IPAddress, ...]:
    """Return the addresses to which the host has a route through the link: with
    IPv6 also the link-local one, so that the first hop can be pinged.
    """
    if any(ip.version == 6 for ip in record.ips):
        return (*record.ips, link_local(record.mac))
    return record.ips


def compare_host(record: Record, host: HostSide) -> Iterator[Finding]:
    """Yield the differences on the host."""
    name = record.host_interface
    if host.link is None:
        yield Finding(f"link {name}", f"index {record.host_ifindex}", NOTHING)
        return
    link = host.link
    altnames = set(names.altnames_of(record))
    lacking = sorted(altnames - set(link.altnames))
    yield from _differ(
        (f"name of link {record.host_ifindex}", show(name), show(link.name)),
        (f"kind of {name}", "veth", show(link.kind.decode("ascii", "replace"))[1:-1] or NOTHING),
        (f"state of {name}", "up", _state(link)),
        (f"group of {name}", str(allocs.LINK_GROUP_WORKLOAD), str(link.group)),
        (f"master of {name}", "none", "none" if link.master is None else f"index {link.master}"),
        (f"MAC of {name}", allocs.FIRST_HOP_MAC.hex(":"), link.mac.hex(":")),
        (f"MTU of {name}", str(record.mtu), str(link.mtu)),
        (f"peer of {name}", f"index {record.peer_ifindex}", f"index {link.peer}"),
        (f"alias of {name}", show(record.workload_id), show(link.alias.decode("ascii", "replace"))),
        (
            f"alternative names of {name}",
            ", ".join(map(show, sorted(altnames))),
            ", ".join(map(show, link.altnames if lacking else sorted(altnames))) or NOTHING,
        ),
    )
    if link.peer_netns is None:
        yield Finding(f"peer of {name}", "in another namespace", "on the host")
    if any(ip.version == 6 for ip in record.ips):
        bits = FIRST_HOP_BITS_6
        yield from _address(name, allocs.FIRST_HOP_IPV6, bits, host.addresses)
    if any(ip.version == 4 for ip in record.ips):
        yield from _address("lo", allocs.FIRST_HOP_IPV4, 32, host.loopback_addresses)
    for ip in reached(record):
        source = allocs.FIRST_HOP_IPV4 if ip.version == 4 else None
        expected = _host_route(ip, record.host_ifindex, allocs.ROUTE_PROTOCOL_WORKLOAD, source)
        route = host.routes.get(ip)
        found = NOTHING
        if route is not None:
            found = f"{route.destination} by {_route(route)}"
        yield from _differ((f"route to {ip}", expected, found))


def compare_inside(record: Record, inside: Inside) -> Iterator[Finding]:
    """Yield the differences in the workload's namespace."""
    name = show(record.if_name)
    if inside.link is None:
        yield Finding(f"link {name} inside", f"index {record.peer_ifindex}", NOTHING)
        return
    link = inside.link
    yield from _differ(
        (f"name of link {record.peer_ifindex} inside", name, show(link.name)),
        (f"state of {name} inside", "up", _state(link)),
        (f"MAC of {name} inside", record.mac.hex(":"), link.mac.hex(":")),
        (f"MTU of {name} inside", str(record.mtu), str(link.mtu)),
        (f"peer of {name} inside", f"index {record.host_ifindex}", f"index {link.peer}"),
        ("state of lo inside", "up", _state(inside.loopback)),
    )
    for ip in record.ips:
        yield from _address(f"{name} inside", ip, ip.max_prefixlen, inside.addresses)
    if inside.routes is None:
        return
    there = {(route.destination, route.gateway, route.source) for route in inside.routes}
    sources = {ip.version: ip for ip in record.ips}
    for expected in routes_of([ip.version for ip in record.ips]):
        version = expected.destination.version
        source = None if expected.gateway is None else sources[version]
        if (expected.destination, expected.gateway, source) in there:
            continue
        text = f"dev {name}" if expected.gateway is None else f"via {expected.gateway} src {source}"
        found = [
            f"via {route.gateway} src {route.source}"
            for route in inside.routes
            if route.destination == expected.destination
        ]
        yield Finding(
            f"route to {expected.destination} inside", text, " and ".join(found) or NOTHING
        )
    if record.further:
        yield from _rules(record, inside)


def further_table(record: Record) -> int:
    """Return the routing table of a further interface, in its namespace."""
    return allocs.FURTHER_TABLE + record.peer_ifindex


def _rules(record: Record, inside: Inside) -> Iterator[Finding]:
    table = further_table(record)
    for ip in record.ips:
        found = [str(one.table) for one in inside.rules if one.source == ip_network(ip)]
        if str(table) not in found:
            what = f"routing rule from {ip} inside"
            yield Finding(what, f"table {table}", " and ".join(found) or NOTHING)
        if not any(
            one.destination.prefixlen == 0 and one.destination.version == ip.version
            for one in inside.further_routes
        ):
            what = f"IPv{ip.version} default route of table {table} inside"
            yield Finding(what, f"dev {show(record.if_name)}", NOTHING)


def _differ(*pairs: tuple[str, str, str]) -> Iterator[Finding]:
    return (Finding(*pair) for pair in pairs if pair[1] != pair[2])


def _state(link: Link | None) -> str:
    if link is None:
        return NOTHING
    return "up" if link.up else "down"


def _address(
    link: str, ip: IPAddress, bits: int, addresses: tuple[Address, ...]
) -> Iterator[Finding]:
    found = next((one for one in addresses if one.address == ip), None)
    what = f"address {ip} of {link}"
    if found is None:
        yield Finding(what, f"/{bits}", NOTHING)
    elif not found.usable:
        yield Finding(what, "usable", "tentative, or a duplicate")
    elif found.prefix_length != bits:
        yield Finding(what, f"/{bits}", f"/{found.prefix_length}")


def _host_route(ip: IPAddress, ifindex: int, protocol: int, source: IPAddress | None) -> str:
    bits = ip.max_prefixlen
    return f"{ip}/{bits} by link {ifindex}, protocol {protocol}, source {source or 'any'}"


def _route(route: Route) -> str:
    via = "" if route.gateway is None else f" via {route.gateway}"
    return f"link {route.ifindex}{via}, protocol {route.protocol}, source {route.source or 'any'}"
