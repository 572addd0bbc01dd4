# SPDX-License-Identifier: Apache-2.0
"""What a restart does with the links that it finds. Pure.

    link ─> ours, whole ──> duplicates? ─ no ──> adopted, repaired
          │                     └─ yes: the one in use adopted, others removed
          ├ ours, leaving ────> removed once the service listens
          ├ ours, half made ──> removed
          ├ looks like ours ──> left alone, counted, its addresses held
          └ all others          ignored

A link is ours if it is a veth with our records under its own index, or if it is
a veth without records, as before the commit, that has our form of name, our MAC
and our group. A link with records is a running pod, even if it is down, in
another group, renamed or without alias: it is repaired, see `repairs`. A link
of ours is removed only if it never got its records, or if its removal had
begun. Before a link has records it is not up and has no routes. So a link with
routes had records.

Any other link that looks like ours is left alone: it may be another program's,
or a pod's. Such are links with names that a newer version made, or with a part
that this version does not know or understand; and links of version 1 whose
alias was changed, the only place of the workload id. The link's name is a hash
of the id, so it shows the change, and a call with the id finds the link. The
addresses in the records and the routes of a link that is left alone are held.

Duplicates are attachments that claim the same address, interface of a workload,
name in a namespace, or resource of a part. The kernel forbids most of them
(names, alternative names, routes), so there are some only if somebody renames
links. The one with the routes stays, since it has the traffic.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath import companions, names
from metropolis.node.core.network.workloads.datapath.interface import Held, Record
from metropolis.node.core.network.workloads.datapath.parts import NO_PARTS, Parts
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.netlink.link import Link

_OUR_GROUPS = (allocs.LINK_GROUP_WORKLOAD, allocs.LINK_GROUP_REMOVAL)


def is_ours(link: Link, parts: Parts = NO_PARTS) -> bool:
    """Return whether this service, or an older one, made the link. parts: those
    that this service knows.
    """
    if link.kind != b"veth" or is_newer(link, parts):
        return False
    found = names.parse_altnames(link.altnames)
    if found is not None:
        return found.ifindex == link.ifindex
    return (
        not names.bears_record(link.altnames)
        and names.is_host_interface(link.name)
        and link.mac == allocs.FIRST_HOP_MAC
        and link.group in _OUR_GROUPS
    )


def is_newer(link: Link, parts: Parts = NO_PARTS) -> bool:
    """Return whether a newer version, or one with other parts, made it."""
    if names.is_newer(link.altnames, parts.letters):
        return True
    if not parts:
        return False
    found = names.parse_altnames(link.altnames)
    return found is not None and not parts.understand(found.parts)


def looks_like_ours(link: Link) -> bool:
    """Return whether a program or a person could take it for ours. Companions
    have no record, and go with the link that has it.
    """
    return companions.owner(link) is None and (
        link.group in _OUR_GROUPS
        or names.is_host_interface(link.name)
        or names.bears_record(link.altnames)
    )


def record_of(link: Link) -> Record | None:
    """Return the record of a link of ours; None if it never got one.
    host_interface is the link's present name, which may be wrong. workload_id
    "": it is unknown.
    """
    found = names.parse_altnames(link.altnames)
    if found is None or not link.peer:
        return None
    return Record(
        workload_id=found.workload_id or _id_of_alias(link, found.if_name),
        if_name=found.if_name,
        netns_cookie=found.netns_cookie,
        host_interface=link.name,
        host_ifindex=link.ifindex,
        peer_ifindex=link.peer,
        mac=found.mac,
        mtu=found.mtu or link.mtu,
        ips=found.ips,
        request=found.request,
        owner=found.owner,
        version=found.version,
        parts=found.parts,
    )


def _id_of_alias(link: Link, if_name: str) -> str:
    """Return the alias, unless it does not match the link's name."""
    workload_id = link.alias.decode("ascii", "replace")
    if not names.is_part_text(workload_id):
        return ""
    hashed = names.host_interface(workload_id, if_name)
    if names.is_host_interface(link.name) and link.name != hashed:
        return ""
    return workload_id


@dataclass(frozen=True, slots=True)
class Plan:
    """complete: to adopt, with the names they should have. half_made,
    duplicates: to remove. leaving, held, foreign: see interface.Scan.
    """

    complete: tuple[Record, ...]
    half_made: tuple[Link, ...] = ()
    duplicates: tuple[Record, ...] = ()
    held: tuple[Held, ...] = ()
    foreign: tuple[str, ...] = ()
    leaving: tuple[Record, ...] = ()


def plan(
    links: Iterable[Link],
    routes: Collection[tuple[IPAddress, int]],
    parts: Parts = NO_PARTS,
    *,
    cut_off: Collection[int] = (),
) -> Plan:
    """Return what to do. routes: ours, as address and interface index. cut_off:
    the indexes of links that no packet passes.
    """
    whole: list[Record] = []
    leaving: list[Record] = []
    half_made: list[Link] = []
    foreign: list[tuple[Link, Record | None]] = []
    routed = {index for ip, index in routes if not ip.is_link_local}
    for link in links:
        if not is_ours(link, parts):
            newer = is_newer(link, parts)
            if link.ifindex in cut_off and link.kind == b"veth" and not newer:
                half_made.append(link)  # others took all its names
            elif looks_like_ours(link):
                foreign.append((link, None))
            continue
        record = record_of(link)
        removed = link.group == allocs.LINK_GROUP_REMOVAL or link.ifindex in cut_off
        if removed and record is not None and record.workload_id:
            leaving.append(record)
        elif removed:
            half_made.append(link)
        elif record is None:
            if link.ifindex in routed:
                foreign.append((link, None))  # others removed its records
            else:
                half_made.append(link)
        elif record.workload_id:
            whole.append(record)
        else:
            foreign.append((link, record))
    complete, duplicates = resolve(whole, routes, parts)
    # One that claims what an attachment has does not keep it until it is gone.
    rivals: tuple[Record, ...] = ()
    if leaving:
        staying = set(complete)
        both, rivals = resolve([*complete, *leaving], routes, parts, first=staying)
        leaving = [one for one in both if one not in staying]
    return Plan(
        tuple(
            replace(one, host_interface=names.host_interface(one.workload_id, one.if_name))
            for one in complete
        ),
        tuple(half_made),
        (*duplicates, *rivals),
        tuple(_held(foreign, routes, parts)),
        tuple(link.name for link, _ in foreign),
        tuple(leaving),
    )


def _held(
    links: Iterable[tuple[Link, Record | None]],
    routes: Collection[tuple[IPAddress, int]],
    parts: Parts,
) -> Iterator[Held]:
    for link, record in links:
        routed = [ip for ip, index in routes if index == link.ifindex and not ip.is_link_local]
        ips = tuple(dict.fromkeys([*names.addresses_in(link.altnames), *sorted(routed, key=str)]))
        newer = is_newer(link, parts)
        if ips or newer:
            yield Held(link.name, link.ifindex, ips, newer, record)


def resolve(
    records: Collection[Record],
    routes: Collection[tuple[IPAddress, int]],
    parts: Parts = NO_PARTS,
    *,
    first: Collection[Record] = (),
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Return the records that stay, in order, and their duplicates. first:
    those that stay in any case.
    """

    def worth(record: Record) -> tuple[bool, int, bool, int]:
        routed = sum((ip, record.host_ifindex) in routes for ip in record.ips)
        name = names.host_interface(record.workload_id, record.if_name)
        return record not in first, -routed, record.host_interface != name, record.host_ifindex

    claimed: set[Hashable] = set()
    chosen: set[int] = set()
    for record in sorted(records, key=worth):
        claims = set(_claims(record, parts))
        if not claims & claimed:
            claimed |= claims
            chosen.add(record.host_ifindex)
    return (
        tuple(record for record in records if record.host_ifindex in chosen),
        tuple(record for record in records if record.host_ifindex not in chosen),
    )


def _claims(record: Record, parts: Parts) -> Iterator[Hashable]:
    yield "workload", record.workload_id, record.if_name
    yield "namespace", record.netns_cookie, record.if_name
    yield "peer", record.netns_cookie, record.peer_ifindex
    for ip in record.ips:
        yield "address", ip
    for resource in parts.resources(record):
        yield "resource", resource.key
