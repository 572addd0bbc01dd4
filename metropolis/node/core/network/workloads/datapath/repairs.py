# SPDX-License-Identifier: Apache-2.0
"""The repairs of an attachment on the host. Pure.

The docstring of the package workloads lists what a pod's traffic depends on.
The records are compared with a few dumps. Each difference is a Mend with its
own key, so that one that others cause again and again can be left as it is.

Nothing inside the namespace is restored: it belongs to the workload.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace_field
from ipaddress import IPv6Address

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import checks, messages, names
from metropolis.node.core.network.workloads.datapath.elements import (
    Element,
    Found,
    found_of,
)
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import NO_PARTS, Parts
from metropolis.node.core.network.workloads.datapath.queues import Queues
from metropolis.node.core.network.workloads.model import MTU_MIN, IPAddress
from metropolis.node.core.network.workloads.validate import show
from osbase.ip import link_local
from osbase.netlink.address import Address, del_address
from osbase.netlink.altnames import add_link_altnames
from osbase.netlink.ifla import (
    DEVCONF_DISABLE_IPV6,
    IPV4_DEVCONF_ARP_ACCEPT,
    IPV4_DEVCONF_ARP_IGNORE,
    IPV4_DEVCONF_FORWARDING,
    IPV4_DEVCONF_RP_FILTER,
)
from osbase.netlink.link import (
    Link,
    rename_link,
    set_link_alias,
    set_link_arp,
    set_link_group,
    set_link_ipv4_setting,
    set_link_mac,
    set_link_master,
    set_link_mtu,
    set_link_no_ipv6_address,
    set_link_up,
)
from osbase.netlink.message import Request
from osbase.netlink.neighbours import del_neighbour
from osbase.netlink.route import Route

# Without it, what the pod sends goes no further than the host.
_FORWARDING = {"forwarding": (IPV4_DEVCONF_FORWARDING, 1)}
# With 1 the kernel ignores ARP of senders without a route to this link (see
# rules.workloads). With 0 or 2, which sysctl files set for all links, invented
# senders get neighbour entries.
_RP_FILTER = {"rp_filter": (IPV4_DEVCONF_RP_FILTER, 1)}
# The first hop is an address of lo: with more than 0 the kernel does not answer
# ARP for it.
_ARP_IGNORE = {"arp_ignore": (IPV4_DEVCONF_ARP_IGNORE, 0)}

# With 1, answers with invented senders make neighbour entries.
_ARP_ACCEPT = {"arp_accept": (IPV4_DEVCONF_ARP_ACCEPT, 0)}


@dataclass(frozen=True, slots=True)
class Seen:
    """The host's state. links: by index. routes: our host routes, by address
    and index. first_hops: the IPv6 first hop, by index of the link. forwards:
    whether the host forwards IPv4; if not, its links need not, and the ward of
    the node's settings restores it for all of them. ipv6: whether the kernel
    has IPv6. neighbours: MACs that a program wrote, by address and index of the
    link. elements: nftables elements of attachments; queues: queueing
    disciplines; None: unknown.
    """

    links: Mapping[int, Link]
    routes: Mapping[tuple[IPAddress, int], Route]
    first_hops: Mapping[int, Address]
    forwards: bool
    ipv6: bool
    neighbours: Mapping[tuple[IPAddress, int], bytes] = field(default_factory=dict)
    elements: Collection[Found] | None = None
    queues: Queues | None = None


@dataclass(frozen=True, slots=True)
class Mend:
    """A repair to be made. key, what: see ward.Repair. requests: to be sent, in
    this order. enable_ipv6: before them, set disable_ipv6 of the link to 0,
    which rtnetlink cannot. element: to be created. with_host: what changes all
    links of the host may have done it, and is mended by others: only if this
    link alone is so.
    """

    key: str
    what: str
    requests: tuple[Request, ...] = ()
    enable_ipv6: bool = False
    element: Element | None = None
    with_host: bool = False


def mends(record: Record, seen: Seen, *, replace: bool, parts: Parts = NO_PARTS) -> list[Mend]:
    """Return the repairs, in an order in which they can be made; none if the
    link is gone or about to be removed. replace: whether to replace others'
    routes to the attachment's addresses.
    """
    link = seen.links.get(record.host_ifindex)
    if link is None or not belongs(record, link):
        return []
    found = [*_link(record, link, seen), *_addresses(record, seen, replace)]
    return [*found, *_parts(record, link, seen, parts)] if record.parts else found


def belongs(record: Record, link: Link) -> bool:
    """Return whether the link with the record's index is the attachment's, and
    is not being removed.
    """
    return (
        names.is_link_of(record, link.name, link.altnames)
        and link.kind == b"veth"
        and link.group != allocs.LINK_GROUP_REMOVAL
    )


def _link(record: Record, link: Link, seen: Seen) -> Iterator[Mend]:
    index, name = record.host_ifindex, record.host_interface

    def mend(what: str, expected: object, found: object, *requests: Request) -> Mend:
        text = f"{what} of {name}: expected {expected}, found {found}"
        return Mend(f"link {name}: {what}", text, requests)

    if link.name != name:
        yield mend("name", name, show(link.name), rename_link(index, name))
    group = allocs.LINK_GROUP_WORKLOAD
    if link.group != group:
        yield mend("group", group, link.group, set_link_group(index, name, group))
    if link.master is not None:
        enslaved = set_link_master(index, name, 0)
        yield mend("master", "none", f"index {link.master}", enslaved)
    mac = allocs.FIRST_HOP_MAC
    if link.mac != mac:
        request = set_link_mac(index, name, mac)
        yield mend("MAC", mac.hex(":"), link.mac.hex(":"), request)
    if link.mtu != record.mtu:
        # IPv6 that the kernel disabled comes back with the kernel's settings.
        back = seen.ipv6 and link.mtu < MTU_MIN <= record.mtu
        again = _no_addresses(index, name) if back else ()
        request = set_link_mtu(index, name, record.mtu)
        yield mend("MTU", record.mtu, link.mtu, request, *again)
    if link.alias != record.workload_id.encode():
        request = set_link_alias(index, name, record.workload_id, ipv6=False)
        found = show(link.alias.decode("ascii", "replace"))
        yield mend("alias", show(record.workload_id), found, request)
    if lost := [one for one in names.altnames_of(record) if one not in link.altnames]:
        request = add_link_altnames(index, name, *lost)
        yield mend("alternative names", ", ".join(map(show, lost)), "none of these", request)
    if not link.arp:
        yield mend("ARP", "on", "off", set_link_arp(index, name))
    settings = _ARP_ACCEPT | _ARP_IGNORE | _RP_FILTER | (_FORWARDING if seen.forwards else {})
    for what, (number, value) in settings.items() if record.ips[0].version == 4 else ():
        is_now = link.ipv4_setting(number)
        if is_now not in (None, value):
            request = set_link_ipv4_setting(index, name, number, value)
            one = mend(f"ipv4 {what}", value, is_now, request)
            yield replace_field(one, with_host=what in _FORWARDING)
    if record.ips[-1].version == 6 and link.ipv6_setting(DEVCONF_DISABLE_IPV6):
        key = f"link {name}: ipv6 disable_ipv6"
        yield Mend(key, f"disable_ipv6 of {name}: expected 0, found 1", enable_ipv6=True)
    if link.ipv6_addresses:
        yield mend("ipv6 addr_gen_mode", "none", "another", *_no_addresses(index, name))
    if not link.up:
        yield mend("state", "up", "down", set_link_up(index, name))


def _no_addresses(index: int, name: str) -> tuple[Request, Request]:
    """Stop the kernel's link-local address, and remove it. It brings a route to
    fe80::/64; see checks.FIRST_HOP_BITS_6.
    """
    return (
        set_link_no_ipv6_address(index, name),
        del_address(index, name, link_local(allocs.FIRST_HOP_MAC), 64),
    )


def _addresses(record: Record, seen: Seen, replace: bool) -> Iterator[Mend]:
    index, name = record.host_ifindex, record.host_interface
    if record.ips[-1].version == 6:
        hop, bits = allocs.FIRST_HOP_IPV6, checks.FIRST_HOP_BITS_6
        there = seen.first_hops.get(index)
        if there is None or not there.usable:
            taken = () if there is None else (del_address(index, name, hop, there.prefix_length),)
            state = "nothing" if there is None else "one that is not usable"
            yield Mend(
                f"address {hop} of {name}",
                f"address {hop} of {name}: found {state}",
                (*taken, messages.first_hop(record)),
            )
    for ip in checks.reached(record):
        mac = seen.neighbours.get((ip, index), record.mac)
        if mac != record.mac:
            # The kernel resolves the address, and finds the pod.
            what = f"neighbour {ip} of {name}: found {mac.hex(':') or 'none'}, written by others"
            yield Mend(f"neighbour {ip} of {name}", what, (del_neighbour(index, name, ip),))
        route = seen.routes.get((ip, index))
        source = allocs.FIRST_HOP_IPV4 if ip.version == 4 else None
        if route is not None and route.source == source and route.gateway is None:
            continue
        found = "nothing" if route is None else f"via {route.gateway} src {route.source}"
        bits = ip.max_prefixlen
        # Many links may have a route to one link-local address.
        where = f" of {name}" if isinstance(ip, IPv6Address) and ip.is_link_local else ""
        yield Mend(
            f"route {ip}/{bits}{where}",
            f"route to {ip}/{bits} by {name}: found {found}",
            ((messages.host_route_again if replace else messages.host_route)(record, ip),),
        )


def _parts(record: Record, link: Link, seen: Seen, parts: Parts) -> Iterator[Mend]:
    for finding, requests in parts.findings(record, link, seen.queues):
        yield Mend(finding.what, str(finding), tuple(requests))
    if seen.elements is None:
        return
    for element in parts.elements(record):
        if found_of(record.host_ifindex, element) not in seen.elements:
            yield Mend(str(element), f"{element}: found nothing", element=element)
