# SPDX-License-Identifier: Apache-2.0
"""The wanted state of the uplink, restored when others change it.

    Uplink -- aims --> UplinkWard <-- looks -- the reconciler
                          |
                    settings, link up, MTU, addresses, routes, name servers

Others flush addresses and routes, set the link down, change its settings, or
overwrite resolv.conf. Each look compares all of it with the kernel. A change
under way (another lease, another configuration) and a look exclude each other:
a look always compares with what was applied last.

IPv6 by router advertisements is the kernel's: this module does not know its
wanted state. If a look misses what the one before saw, it solicits the routers
again. They announce it if it still exists; if they are silent, it does not. A
missing link-local address is made as the kernel makes it; with it the kernel
solicits the routers itself. Switching IPv6 off and on would do the same, and
remove all that is still there.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.sysctls import Sysctl, SysctlError
from osbase.ip import AF_INET, AF_INET6, family_of, link_local
from osbase.net import addressing, mtu, solicit
from osbase.net.addressing import Addressing
from osbase.net.dhcp4 import clock
from osbase.net.links import LinkState, state_of
from osbase.netlink.address import (
    IFA_F_DADFAILED,
    IFA_F_TENTATIVE,
    Address,
    add_address,
    del_address,
    dump_addresses,
    parse_address,
)
from osbase.netlink.errors import NetlinkError
from osbase.netlink.forwarding import stopped_alone
from osbase.netlink.link import (
    Link,
    get_link,
    parse_link,
    set_link_arp,
    set_link_group,
    set_link_master,
    set_link_up,
)
from osbase.netlink.message import Request
from osbase.netlink.route import (
    RT_SCOPE_LINK,
    RTN_LOCAL,
    add_local_route,
    dump_local_routes,
    dump_routes,
    parse_route,
)
from osbase.netlink.transport import NetlinkSocket

METRIC: Final = 100
"""Metric of routes by DHCP or static ones: preferred to those of router
advertisements (1024), if both exist."""

_RTPROT_RA: Final = 9
_IFAPROT_KERNEL_RA: Final = 2
_IFAPROT_KERNEL_LL: Final = 3
_LINK_LOCAL_BITS: Final = 64
_ADDR_GEN_MODE_NONE: Final = "1"
_ASKED_AT_MOST: Final = 3
_GIVEN: Final = {
    4: {allocs.ROUTE_PROTOCOL_UPLINK},
    6: {allocs.ROUTE_PROTOCOL_UPLINK, _IFAPROT_KERNEL_RA, _IFAPROT_KERNEL_LL},
}
_LOCAL_ROUTE_S: Final = 0.5
_PODS_GROUPS: Final = (
    allocs.LINK_GROUP_WORKLOAD,
    allocs.LINK_GROUP_OVERLAY,
    allocs.LINK_GROUP_REMOVAL,
)


@dataclass(frozen=True)
class Aim:
    """The state that was applied last. addressing: a function of the time,
    since leases end; None before anything was applied. mtu: the server's,
    bytes. names: the text of resolv.conf. group: the link's, if others put it
    into the pods'.
    """

    link: LinkState
    settings: tuple[Sysctl, ...]
    advertised: bool
    addressing: Callable[[float], Addressing] | None = None
    mtu: int | None = None
    mtu_by_hand: bool = False
    resolv_conf: str = ""
    names: str = ""
    group: int = 0


class UplinkWard:
    """A ward of network.reconcile. The uplink sets `aim`, under the lock."""

    name: Final = "uplink"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.aim: Aim | None = None
        self._seen: set[str] = set()
        self._asked = 0

    def changing(self) -> AbstractContextManager[object]:
        """Return a lock against looks while the uplink is changed."""
        return self._lock

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See network.reconcile.ward."""
        with self._lock:
            aim = self.aim
            if aim is None:
                return ()
            done: list[Repair] = []
            try:
                # Repairs from before an error count, too.
                for repair in self._look(aim, allow):
                    done.append(repair)
            except (NetlinkError, OSError) as error:
                name = aim.link.name
                done.append(Repair(f"uplink {name}", f"look at {name}", str(error)))
            return tuple(done)

    def _look(self, aim: Aim, allow: Allow) -> Iterator[Repair]:
        with NetlinkSocket() as sock:
            link = _link(sock, aim.link.ifindex)
            if link is None or (link.name, link.mac) != (aim.link.name, aim.link.mac):
                return  # gone, or another: the uplink notices by itself
            name = link.name
            for setting in aim.settings:
                # If the node as a whole does not forward, its links need not; a
                # repair of the node's setting sets them all.
                if setting != sysctls.forwarding(name) or stopped_alone(sock, link.ifindex):
                    yield from _setting(setting, allow)
            if (request := leave_pods_groups(link, aim.group)) is not None:
                # The rules would take it for a pod's link, and masquerade
                # nothing.
                what = f"{name} was put in group {link.group}, which is of pods"
                yield _put_back(sock, f"group of {name}", what, [request], allow)
            if not link.up:
                yield _put_back(
                    sock, f"link {name}", f"{name} was set down", [set_link_up(link.ifindex, name)],
                    allow,
                )  # fmt: skip
            if not link.arp:
                what = f"ARP of {name} was switched off"
                requests = [set_link_arp(link.ifindex, name)]
                yield _put_back(sock, f"ARP of {name}", what, requests, allow)
            if link.master is not None:
                # A bridge or bond receives all that its members do.
                what = f"{name} was made a part of link {link.master}"
                requests = [set_link_master(link.ifindex, name, 0)]
                yield _put_back(sock, f"master of {name}", what, requests, allow)
            yield from _local_routes(sock, link, allow)
            if aim.addressing is not None:
                wanted = aim.addressing(clock.now())
                yield from _configured(sock, link, aim, wanted, allow)
            link = _link(sock, link.ifindex)
            if link is not None and state_of(link).carrier and _has_ipv6(name):
                yield from self._ipv6(sock, link, aim, allow)
        if aim.addressing is not None:
            yield from _names(aim, allow)

    def _ipv6(self, sock: NetlinkSocket, link: Link, aim: Aim, allow: Allow) -> Iterator[Repair]:
        addresses = [
            one
            for one in map(parse_address, sock.dump(dump_addresses(AF_INET6, link.ifindex)))
            if one is not None and one.ifindex == link.ifindex and one.address.version == 6
        ]
        there = set()
        if any(one.protocol == _IFAPROT_KERNEL_RA for one in addresses):
            there.add("addresses")
        for route in map(parse_route, sock.dump(dump_routes(AF_INET6, _RTPROT_RA))):
            if route is not None and route.ifindex == link.ifindex:
                there.add("routes")
        lost = self._seen - there
        own_addresses = [one for one in addresses if one.address.is_link_local]
        if lost and own_addresses and all(map(_tentative, own_addresses)):
            return  # the kernel solicits the routers when it is usable
        if not own_addresses:
            if _read(f"ipv6/conf/{link.name}/addr_gen_mode") == _ADDR_GEN_MODE_NONE:
                return
            own = link_local(link.mac)
            request = add_address(
                link.ifindex,
                link.name,
                own,
                _LINK_LOCAL_BITS,
                scope=RT_SCOPE_LINK,
                no_dad=True,
                protocol=_IFAPROT_KERNEL_LL,
            )
            what = f"{link.name} lacks a link-local address"
            yield _put_back(sock, f"link-local address of {link.name}", what, [request], allow)
        elif lost and aim.advertised and self._asked < _ASKED_AT_MOST:
            # The routers themselves may have withdrawn it.
            self._asked += 1
            key = f"router advertisements on {link.name}"
            what = f"{link.name} lost IPv6 {' and '.join(sorted(lost))} of routers"
            if not allow(key):
                yield Repair(key, what, left=True)
                return
            try:
                solicit.solicit(link.ifindex, link.mac)
                yield Repair(key, what)
            except OSError as error:
                yield Repair(key, what, f"ask the routers: {_errno(error)}")
        if not lost or self._asked >= _ASKED_AT_MOST:
            self._seen, self._asked = there, 0


def _tentative(address: Address) -> bool:
    """Return whether duplicate address detection is under way."""
    return address.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) == IFA_F_TENTATIVE


def _link(sock: NetlinkSocket, ifindex: int) -> Link | None:
    try:
        return parse_link(sock.get(get_link(ifindex)))
    except NetlinkError:
        return None


def leave_pods_groups(link: Link, group: int) -> Request | None:
    """Return the request that removes a link from the groups of pods and of the
    overlay; None: it is in neither.
    """
    if link.group not in _PODS_GROUPS:
        return None
    return set_link_group(link.ifindex, link.name, group)


def _put_back(
    sock: NetlinkSocket, key: str, what: str, requests: Iterable[Request], allow: Allow
) -> Repair:
    if not allow(key):
        return Repair(key, what, left=True)
    try:
        sock.batch(list(requests))
    except NetlinkError as error:
        return Repair(key, what, str(error))
    return Repair(key, what)


def _local_routes(sock: NetlinkSocket, link: Link, allow: Allow) -> Iterator[Repair]:
    """Restore addresses whose route in the table local is gone: the node does
    not receive packets for them any more.

    An IPv6 address is removed, and restored like other missing ones: a route
    that is added would outlive it.
    """
    lacking = _without_local_route(sock, link)
    if any(one.address.version == 6 for one in lacking):
        # There the route comes a moment after the address.
        time.sleep(_LOCAL_ROUTE_S)
        again = _without_local_route(sock, link)
        lacking = [one for one in lacking if one in again]
    for one in lacking:
        ip = one.address
        if isinstance(ip, IPv4Address):
            request = add_local_route(link.ifindex, link.name, ip)
        else:
            request = del_address(link.ifindex, link.name, ip, one.prefix_length)
        what = f"{ip} of {link.name} had no local route"
        yield _put_back(sock, f"local route {ip}", what, [request], allow)


def _without_local_route(sock: NetlinkSocket, link: Link) -> list[Address]:
    """Return addresses from this service or a router that lack the route."""
    addresses = [
        one
        for family in (AF_INET, AF_INET6)
        for message in sock.dump(dump_addresses(family, link.ifindex))
        if (one := parse_address(message)) is not None
        and one.ifindex == link.ifindex
        and one.protocol in _GIVEN[one.address.version]
        and one.usable
    ]
    families = {family_of(one.address) for one in addresses}
    local = {
        route.destination.network_address
        for family in families
        for message in sock.dump(dump_local_routes(family, link.ifindex))
        if (route := parse_route(message)) is not None and route.kind == RTN_LOCAL
    }
    return [one for one in addresses if one.address not in local]


def _configured(
    sock: NetlinkSocket, link: Link, aim: Aim, wanted: Addressing, allow: Allow
) -> Iterator[Repair]:
    """Restore the addressing of the configuration or a server."""
    steps = mtu.steps(link, aim.mtu, allocs.UPLINK_MTU_MARK, by_hand=aim.mtu_by_hand)
    if steps:
        size = aim.mtu if aim.mtu is not None else "what it was"
        what = f"MTU of {link.name} is {link.mtu}, not {size}"
        yield _put_back(sock, f"MTU of {link.name}", what, steps, allow)
    missing = addressing.missing(
        sock,
        link.ifindex,
        link.name,
        wanted,
        protocol=allocs.ROUTE_PROTOCOL_UPLINK,
        metric=METRIC,
    )
    for one in missing:
        yield _put_back(sock, one.key, one.what, [one.request], allow)


def _setting(setting: Sysctl, allow: Allow) -> Iterator[Repair]:
    found = sysctls.differs(setting)
    if found is None:
        return
    dotted = "net." + setting.path.replace("/", ".")
    key, what = f"sysctl {dotted}", f"{dotted} is {found or 'missing'}, not {setting.value}"
    if not allow(key):
        yield Repair(key, what, left=True)
        return
    try:
        sysctls.apply([setting])
        yield Repair(key, what)
    except SysctlError as error:
        yield Repair(key, what, str(error))


def _names(aim: Aim, allow: Allow) -> Iterator[Repair]:
    path = aim.resolv_conf
    try:
        found = Path(path).read_text(encoding="utf-8", errors="replace")
        what = f"{path} was overwritten"
    except FileNotFoundError:
        found, what = "", f"{path} was removed"
    if found == aim.names:
        return
    key = f"file {path}"
    if not allow(key):
        yield Repair(key, what, left=True)
        return
    try:
        replace_file(path, aim.names)
        yield Repair(key, what)
    except OSError as error:
        yield Repair(key, what, f"write {path}: {_errno(error)}")


def replace_file(path: str, text: str) -> None:
    """Replace the file atomically."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    os.replace(new, target)


def _has_ipv6(name: str) -> bool:
    return _read(f"ipv6/conf/{name}/disable_ipv6") == "0"


def _read(path: str) -> str:
    try:
        return Path("/proc/sys/net", path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _errno(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))
