# SPDX-License-Identifier: Apache-2.0
"""Links as version 1 of the records made and read them, for tests.

Written down as it was, independent of the code under test: a copy of the
formats and the regular expressions of the last commit that had version 1.
"""

import hashlib
import re
import struct
from collections.abc import Iterable

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath.interface import Record
from osbase.netlink.altnames import add_link_altnames
from osbase.netlink.link import Link, set_link_alias, set_link_up
from osbase.netlink.message import Request
from osbase.netlink.veth import VethEnd, new_veth

_KEY = re.compile(r"mw1k\.([0-9a-f]{16})\.(.{1,15})", re.DOTALL)
_RECORD = re.compile(
    r"mw1r\.([0-9a-f]{1,8})\.([0-9a-f]{12})\.([0-9a-f]{16})\.([0-9a-f]{8})?\.([0-9a-f]{32})?"
)
_OTHER = re.compile(r"mw([0-9]+)[kr]\.")


def host_interface(workload_id: str, if_name: str) -> str:
    """The name of the link on the host."""
    text = struct.pack(">H", len(workload_id)) + workload_id.encode() + if_name.encode()
    return "wl" + hashlib.blake2b(text, digest_size=8).hexdigest()[:13]


def altnames(record: Record) -> tuple[str, str]:
    """The two names of a link."""
    packed = {ip.version: ip.packed.hex() for ip in record.ips}
    return (
        f"mw1k.{record.netns_cookie:016x}.{record.if_name}",
        f"mw1r.{record.host_ifindex:x}.{record.mac.hex()}.{record.request.hex()}"
        f".{packed.get(4, '')}.{packed.get(6, '')}",
    )


def is_ours(link: Link) -> bool:
    """Whether version 1 would have taken, or removed, the link."""
    names = link.altnames
    others = [found[1] for name in names if (found := _OTHER.match(name))]
    if link.kind != b"veth" or any(version != "1" for version in others):
        return False
    keys = [name for name in names if _KEY.fullmatch(name)]
    records = [found for name in names if (found := _RECORD.fullmatch(name))]
    if len(keys) == 1 and len(records) == 1:
        return int(records[0][1], 16) == link.ifindex
    return (
        re.fullmatch(r"wl[0-9a-f]{13}", link.name) is not None
        and link.mac == allocs.FIRST_HOP_MAC
        and link.group in (allocs.LINK_GROUP_WORKLOAD, 0x6D770008, 0x6D770009)
    )


def pair(record: Record, netns_fd: int) -> Request:
    """The link, before it has names."""
    return new_veth(
        VethEnd(record.host_interface, record.host_ifindex, allocs.FIRST_HOP_MAC),
        VethEnd(record.if_name, record.peer_ifindex, record.mac),
        netns_fd=netns_fd,
        mtu=record.mtu,
        group=allocs.LINK_GROUP_WORKLOAD,
    )


def commit(record: Record) -> Iterable[Request]:
    """Its names, and up; without addresses and routes."""
    index, name = record.host_ifindex, record.host_interface
    yield set_link_alias(index, name, record.workload_id, ipv6=True)
    yield add_link_altnames(index, name, *altnames(record))
    yield set_link_up(index, name)
