# SPDX-License-Identifier: Apache-2.0
"""The three batches that make an attachment. Pure.

    pair     host       veth pair, down, both ends with all attributes
    inside   namespace  lo and link up, addresses, first hop, default routes;
                        of a further interface also its rules
    commit   host       alias, records, fe80::1, up, host routes

Each is written once, as requests; `encode_` gives the same as bytes, from
templates: one for each shape, i.e. with and without IPv6, and by length of the
names. A node has only a handful of shapes.
"""

import errno
import functools
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

from metropolis.node import allocs
from metropolis.node.core.network.workloads import model
from metropolis.node.core.network.workloads.datapath import checks, names
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.ip import family_of
from osbase.netlink.address import add_address
from osbase.netlink.altnames import add_link_altnames, set_link_up_by_altname
from osbase.netlink.fibrules import RTM_DELRULE, RTM_NEWRULE, add_source_rule, del_source_rule
from osbase.netlink.link import set_link_alias, set_link_up
from osbase.netlink.message import Request
from osbase.netlink.neighbours import add_permanent_neighbour
from osbase.netlink.route import (
    Route,
    add_multicast_route,
    add_network_route,
    add_route,
    replace_route,
)
from osbase.netlink.template import Encoded, Sample, Template, encoded
from osbase.netlink.veth import VethEnd, new_veth

_LOOPBACK = 1  # its index in every namespace
_RTPROT_STATIC = 4
_U32 = struct.Struct("=I")
_HARMLESS = {(RTM_DELRULE, errno.ENOENT), (RTM_NEWRULE, errno.EEXIST)}
_TEMPLATES = 256  # of each kind; names may have any length
# A shorter id could occur in other parts of the message, and a longer one
# is in several names.
_ID_MIN = 12
_ID_MAX = names.PIECE_MAX


# ---- The requests -----------------------------------------------------------


def pair(record: Record, netns_fd: int) -> list[Request]:
    """The link, of which nothing is ours until it is made."""
    host = VethEnd(record.host_interface, record.host_ifindex, allocs.FIRST_HOP_MAC)
    peer = VethEnd(record.if_name, record.peer_ifindex, record.mac)
    group = allocs.LINK_GROUP_WORKLOAD
    return [new_veth(host, peer, netns_fd=netns_fd, mtu=record.mtu, group=group)]


def inside(
    record: Record, metric: int, routes: Sequence[model.Route] = (), *, loopback: bool
) -> list[Request]:
    """Return the namespace's requests. routes: those besides the interface's
    own. loopback: set lo up, too.
    """
    index, name = record.peer_ifindex, record.if_name
    requests = [set_link_up(_LOOPBACK, "lo")] if loopback else []
    requests.append(set_link_up(index, name))
    for ip in record.ips:
        hop = model.first_hop(ip.version)
        family = family_of(ip)
        requests.append(add_address(index, name, ip, ip.max_prefixlen, no_dad=ip.version == 6))
        # The explicit route to the first hop instead of RTNH_F_ONLINK, which
        # gVisor's netstack cannot import.
        requests.append(
            add_route(hop, index, name, family=family, protocol=_RTPROT_STATIC, metric=metric)
        )
        requests.append(
            add_route(
                None,
                index,
                name,
                family=family,
                protocol=_RTPROT_STATIC,
                gateway=hop,
                source=ip,
                metric=metric,
            )
        )
        # Else the first packet waits for an answer: in IPv6 for a second, when
        # the question comes before a worker of the kernel's has joined the
        # host's group. And the table of all namespaces' neighbours may be full;
        # permanent ones are not counted.
        requests.append(add_permanent_neighbour(index, name, hop, allocs.FIRST_HOP_MAC))
    sources = {ip.version: ip for ip in record.ips}
    for one in routes:
        source = sources[one.destination.version]
        route = Route(one.destination, index, _RTPROT_STATIC, one.gateway, source, metric=metric)
        requests.append(add_network_route(route, name))
    return requests + _rules(record) if record.further else requests


def _rules(record: Record) -> list[Request]:
    """Return what sends by a further interface whatever has its addresses: the
    main table would send it by the first, where the host drops it.

    A rule may be left of an interface that had the index before, for another
    address: it goes first. Routes go with their link.
    """
    index, table = record.peer_ifindex, checks.further_table(record)
    requests = [_del_rule(record, family_of(ip)) for ip in record.ips]
    for ip in record.ips:
        hop = model.first_hop(ip.version)
        requests += [
            add_route(
                None,
                index,
                record.if_name,
                family=family_of(ip),
                protocol=_RTPROT_STATIC,
                gateway=hop,
                source=ip,
                table=table,
            ),
            add_source_rule(ip, table, allocs.FURTHER_RULE, allocs.ROUTE_PROTOCOL_WORKLOAD),
        ]
    return requests


def _del_rule(record: Record, family: int, source: IPAddress | None = None) -> Request:
    table, protocol = checks.further_table(record), allocs.ROUTE_PROTOCOL_WORKLOAD
    return del_source_rule(family, source, table, allocs.FURTHER_RULE, protocol)


def leave(records: Iterable[Record]) -> list[Request]:
    """Return what removes the rules of attachments in one namespace. ENOENT is
    no failure.
    """
    return [_del_rule(one, family_of(ip), ip) for one in records if one.further for ip in one.ips]


def is_harmless(request: Request, error: int) -> bool:
    """Return whether the refusal of a request of `inside` is as good as a
    success: no rule was left, or the workload itself has made the same one.
    """
    return (request.kind, error) in _HARMLESS


def commit(record: Record, *, ipv6: bool, first: Sequence[Request] = ()) -> list[Request]:
    """ipv6: the host has it. first: what parts of the attachment add; before
    the record, so that a link which has it was sent these.

    rp_filter is for ARP: the rule set cannot look up the sender, and an
    invented sender would become a neighbour entry.

    The link is set up by the record's name: without it the link stays down, and
    has no routes to workloads. So a link with those has had its records; see
    plan.

    A link that comes up makes the kernel walk all IPv6 routes of the host. It
    is dormant, so that the kernel does this once instead of twice, and behind
    us: when it looks at the carrier. It has the lock (RTNL) then, and what is
    after `up` should not wait for that. So fe80::1 is before it, and the IPv4
    route next to it; IPv6 routes do not need the lock (since Linux 6.16). The
    one of multicast is the kernel's, earlier: the first solicitation needs it.
    """
    index, name = record.host_ifindex, record.host_interface
    requests = [
        *first,
        set_link_alias(index, name, record.workload_id, ipv6=ipv6, reverse_path=True, dormant=ipv6),
        add_link_altnames(index, name, *names.altnames_of(record)),
    ]
    six = record.ips[-1].version == 6
    if six:
        requests.append(first_hop(record))
    requests.append(set_link_up_by_altname(names.record_altname(record)))
    requests += [host_route(record, ip) for ip in checks.reached(record)]
    return [*requests, multicast_route(record)] if six else requests


def first_hop(record: Record) -> Request:
    """Return the request for the IPv6 first hop on the link.

    Without a route to its prefix, which is the address itself: packets to it
    find the route in the table `local`, and each route makes walks longer.
    """
    hop, bits = allocs.FIRST_HOP_IPV6, checks.FIRST_HOP_BITS_6
    index, name = record.host_ifindex, record.host_interface
    return add_address(index, name, hop, bits, no_dad=True, no_prefix_route=True)


def multicast_route(record: Record) -> Request:
    """Return the request for what the kernel adds later, or has added."""
    return add_multicast_route(record.host_ifindex, record.host_interface)


def host_route(record: Record, ip: IPAddress) -> Request:
    """The route to one of checks.reached.

    Towards IPv4 addresses the host uses the first hop as its own address: it
    may have no other. In IPv6 it has fe80::1 on the link.
    """
    return add_route(
        ip,
        record.host_ifindex,
        record.host_interface,
        family=family_of(ip),
        protocol=allocs.ROUTE_PROTOCOL_WORKLOAD,
        source=allocs.FIRST_HOP_IPV4 if ip.version == 4 else None,
        # Workloads may have requested equal MACs, so links may share this
        # address.
        exclusive=not ip.is_link_local,
    )


def host_route_again(record: Record, ip: IPAddress) -> Request:
    """Do as host_route, and replace another program's route."""
    if ip.is_link_local:
        return host_route(record, ip)
    route = Route(
        destination=ip_network(ip),
        ifindex=record.host_ifindex,
        protocol=allocs.ROUTE_PROTOCOL_WORKLOAD,
        source=allocs.FIRST_HOP_IPV4 if ip.version == 4 else None,
    )
    return replace_route(route, record.host_interface)


# ---- The same, encoded ------------------------------------------------------


def encode_pair(record: Record, netns_fd: int) -> Encoded:
    """See pair."""
    template = _pair_template(record.if_name, record.peer_ifindex, record.mtu)
    return template.fill(*_pair_values(record, netns_fd))


def encode_inside(
    record: Record, metric: int, routes: Sequence[model.Route] = (), *, loopback: bool
) -> Encoded:
    """See inside. With more routes they are too different for templates."""
    if routes:
        return encoded(inside(record, metric, routes, loopback=loopback))
    versions = tuple([ip.version for ip in record.ips])
    template = _inside_template(record.peer_ifindex, versions, metric, loopback)
    return template.fill(*[ip.packed for ip in record.ips])


def encode_commit(record: Record, *, ipv6: bool, first: Sequence[Request] = ()) -> Encoded:
    """See commit. Those with parts are too different for templates."""
    ordinary = record.version == names.VERSION and not record.parts
    if not ordinary or not _ID_MIN <= len(record.workload_id) <= _ID_MAX:
        return encoded(commit(record, ipv6=ipv6, first=first))
    versions = tuple([ip.version for ip in record.ips])
    digits = len(f"{record.host_ifindex:x}")
    template = _commit_template(
        len(record.workload_id),
        len(record.if_name.encode()),
        digits,
        len(f"{record.mtu:x}"),
        record.owner,
        versions,
        ipv6,
    )
    return template.fill(*_commit_values(record))


def _pair_values(record: Record, netns_fd: int) -> tuple[bytes, ...]:
    return (
        record.host_interface.encode(),
        _U32.pack(record.host_ifindex),
        record.mac,
        _U32.pack(netns_fd),
    )


def _commit_values(record: Record) -> tuple[bytes, ...]:
    index = record.host_ifindex
    values = [
        _U32.pack(index),
        record.workload_id.encode(),
        names.key_altname(record).encode(),
        names.part_prefix(index, names.ID_PART).encode(),
        names.record_altname(record).encode(),
        *[ip.packed for ip in checks.reached(record)],
    ]
    if record.owner:
        count = names.pieces_of(record.owner)
        values += [
            names.part_prefix(index, names.OWNER_PART, number, count).encode()
            for number in range(1, count + 1)
        ]
    return tuple(values)


@functools.lru_cache(_TEMPLATES)
def _pair_template(if_name: str, peer_ifindex: int, mtu: int) -> Template:
    def sample(seed: int) -> Sample:
        record = replace(_sample(seed, (4,)), if_name=if_name, peer_ifindex=peer_ifindex, mtu=mtu)
        netns_fd = int.from_bytes(_noise(seed, "netns_fd", 4)) & 0x7FFFFFFF
        return Sample(pair(record, netns_fd), _pair_values(record, netns_fd))

    return Template(sample(1), sample(2))


@functools.lru_cache(_TEMPLATES)
def _inside_template(
    peer_ifindex: int, versions: tuple[int, ...], metric: int, loopback: bool
) -> Template:
    def sample(seed: int) -> Sample:
        record = replace(_sample(seed, versions), peer_ifindex=peer_ifindex)
        requests = inside(record, metric, loopback=loopback)
        return Sample(requests, [ip.packed for ip in record.ips])

    return Template(sample(1), sample(2))


@functools.lru_cache(_TEMPLATES)
def _commit_template(
    id_length: int,
    if_name_length: int,
    index_digits: int,
    mtu_digits: int,
    owner: str,
    versions: tuple[int, ...],
    ipv6: bool,
) -> Template:
    def sample(seed: int) -> Sample:
        record = _sample(seed, versions)
        record = replace(
            record,
            workload_id=_noise(seed, "workload_id", id_length).hex()[:id_length],
            if_name="i" * if_name_length,
            host_ifindex=record.host_ifindex >> (32 - 4 * index_digits),
            mtu=1 << 4 * (mtu_digits - 1),
            owner=owner,
        )
        return Sample(commit(record, ipv6=ipv6), _commit_values(record))

    return Template(sample(1), sample(2))


def _noise(seed: int, field: str, size: int) -> bytes:
    """Return unique bytes, the same at each start."""
    return hashlib.shake_128(f"{seed} {field}".encode()).digest(size)


def _sample(seed: int, versions: tuple[int, ...]) -> Record:
    """Return a unique record."""
    addresses: dict[int, IPAddress] = {
        4: IPv4Address(_noise(seed, "ipv4", 4)),
        6: IPv6Address(_noise(seed, "ipv6", 16)),
    }
    return Record(
        workload_id="",
        if_name="",
        netns_cookie=int.from_bytes(_noise(seed, "cookie", 8)),
        host_interface="wl" + _noise(seed, "name", 7).hex()[:13],
        host_ifindex=int.from_bytes(_noise(seed, "index", 4)) & 0x7FFFFFFF | 0x10000000,
        peer_ifindex=0,
        mac=_noise(seed, "mac", 6),
        mtu=0,
        ips=tuple(addresses[version] for version in versions),
        request=_noise(seed, "request", 8),
    )
