# SPDX-License-Identifier: Apache-2.0
"""What to make of the links that a restart finds. Pure.

    link ─> ours, whole ──> duplicates? ─ no ──> adopted
          │                     └─ yes: the one in use adopted, others removed
          ├ ours, half made ──> removed
          ├ looks like ours ──> left alone, counted
          └ all others          not our business

Ours is a veth that bears our records under its own index, or, before it was
given them, our form of name with our MAC, in our group. A link is left alone
if anything of that is not so: in doubt it is somebody else's.

Duplicates are attachments that claim one address, one interface of one
workload, or one name in one namespace. The kernel forbids most of it (names,
alternative names, routes), so it takes a hand that renames links. The one
that has the routes stays: it is the one that has the traffic.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass

from metropolis.node import allocs
from metropolis.node.core.network.workloads import names
from metropolis.node.core.network.workloads.datapath import Record
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.netlink.rtnl import Link

# Where links are put to be deleted in one request, one for each of the requests
# that may be under way at once; any groups nobody uses.
DOOMED_GROUPS = (0x6D770008, 0x6D770009)
_OUR_GROUPS = (allocs.LINK_GROUP_WORKLOAD, *DOOMED_GROUPS)


def is_ours(link: Link) -> bool:
    """Whether this service made the link, and in this version's format."""
    if link.kind != b"veth" or names.is_other_version(link.altnames):
        return False
    found = names.parse_altnames(link.altnames)
    if found is not None:
        return found.ifindex == link.ifindex
    return (
        names.is_host_interface(link.name)
        and link.mac == allocs.FIRST_HOP_MAC
        and link.group in _OUR_GROUPS
    )


def looks_like_ours(link: Link) -> bool:
    """Whether somebody could take it for ours."""
    return (
        link.group in _OUR_GROUPS
        or names.is_host_interface(link.name)
        or names.parse_altnames(link.altnames) is not None
        or names.is_other_version(link.altnames)
    )


def record_of(link: Link) -> Record | None:
    """The attachment of a link of ours; None when it is not a whole one."""
    found = names.parse_altnames(link.altnames)
    if (
        found is None
        or not link.up
        or link.group != allocs.LINK_GROUP_WORKLOAD
        or link.peer is None
        or not link.alias
    ):
        return None
    return Record(
        workload_id=link.alias.decode("ascii", "backslashreplace"),
        if_name=found.if_name,
        netns_cookie=found.netns_cookie,
        host_interface=link.name,
        host_ifindex=link.ifindex,
        peer_ifindex=link.peer,
        mac=found.mac,
        mtu=link.mtu,
        ips=found.ips,
        request=found.request,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """complete: to adopt. half_made: to remove. duplicates: likewise.
    foreign: names of links to leave alone that look like ours.
    """

    complete: tuple[Record, ...]
    half_made: tuple[Link, ...]
    duplicates: tuple[Record, ...]
    foreign: tuple[str, ...]


def plan(links: Iterable[Link], routes: Collection[tuple[IPAddress, int]]) -> Plan:
    """routes: our host routes, as address and interface index."""
    whole: list[Record] = []
    half_made: list[Link] = []
    foreign: list[str] = []
    for link in links:
        if not is_ours(link):
            if looks_like_ours(link):
                foreign.append(link.name)
        elif (record := record_of(link)) is None:
            half_made.append(link)
        else:
            whole.append(record)
    complete, duplicates = resolve(whole, routes)
    return Plan(complete, tuple(half_made), duplicates, tuple(foreign))


def resolve(
    records: Collection[Record], routes: Collection[tuple[IPAddress, int]]
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Those that stay, in their order, and those that claim what is theirs."""

    def worth(record: Record) -> tuple[int, bool, int]:
        routed = sum((ip, record.host_ifindex) in routes for ip in record.ips)
        name = names.host_interface(record.workload_id, record.if_name)
        return -routed, record.host_interface != name, record.host_ifindex

    claimed: set[Hashable] = set()
    chosen: set[int] = set()
    for record in sorted(records, key=worth):
        claims = set(_claims(record))
        if not claims & claimed:
            claimed |= claims
            chosen.add(record.host_ifindex)
    return (
        tuple(record for record in records if record.host_ifindex in chosen),
        tuple(record for record in records if record.host_ifindex not in chosen),
    )


def _claims(record: Record) -> Iterator[Hashable]:
    yield "workload", record.workload_id, record.if_name
    yield "namespace", record.netns_cookie, record.if_name
    yield "peer", record.netns_cookie, record.peer_ifindex
    for ip in record.ips:
        yield "address", ip
