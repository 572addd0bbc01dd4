# SPDX-License-Identifier: Apache-2.0
"""Create and maintain the stack of links of an interface: ports, bond, VLAN.

    port --+                 found by name; may appear later
           +-- bond -- VLAN  made here, marked by a link group
    port --+

    the kernel's links -> plan (pure) -> requests -> ... until none is left

Correct links are not touched, so a restart causes no carrier change. Every link
event starts another look: members that appear late, or come back, are added; a
VLAN is made again when its port comes back. Marked links that are no longer
wanted are removed. A bond gets the MAC of its first member in the order of the
configuration; if that one is late by more than PATIENCE_S, the MAC of the next.
The bond keeps it while it has members. A link with the name and kind of a
wanted bond or VLAN is ours, marked or not: the kernel makes an idle "bond0"
when it loads the module.

Limits: no settings of ports (speed, offloads), bonds of bonds, or bridges. Why
not pyroute2's messages: see osbase.netlink.

Source: linux/if_link.h (IFLA_BOND_, IFLA_VLAN_), drivers/net/bonding/
bond_options.c for what may be changed while a bond has members or is up.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from osbase import event
from osbase.net.config import Bond, BondMode, Interface, LacpRate, TransmitHash, Vlan
from osbase.net.links import appeared, choose, is_port, without_groups
from osbase.netlink import attrs
from osbase.netlink.errors import NetlinkError
from osbase.netlink.ifla import (
    IFLA_BOND_AD_LACP_RATE,
    IFLA_BOND_MIIMON,
    IFLA_BOND_MIN_LINKS,
    IFLA_BOND_MODE,
    IFLA_BOND_NUM_PEER_NOTIF,
    IFLA_BOND_PRIMARY,
    IFLA_BOND_XMIT_HASH_POLICY,
    IFLA_VLAN_ID,
    RTNLGRP_LINK,
)
from osbase.netlink.link import (
    Link,
    del_link,
    dump_links,
    new_link,
    parse_link,
    set_link_data,
    set_link_down,
    set_link_group,
    set_link_mac,
    set_link_master,
    set_link_mtu,
    set_link_up,
)
from osbase.netlink.message import Request
from osbase.netlink.transport import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, NetlinkSocket
from osbase.supervisor import in_thread

_BOND: Final = b"bond"
_VLAN: Final = b"vlan"
_MODES: Final = {BondMode.ACTIVE_BACKUP: 1, BondMode.LACP: 4}
_HASHES: Final = {TransmitHash.LAYER2: 0, TransmitHash.LAYER34: 1, TransmitHash.LAYER23: 2}
_RATES: Final = {LacpRate.SLOW: 0, LacpRate.FAST: 1}
_PEER_NOTIFICATIONS: Final = 3
"""Gratuitous ARPs and unsolicited neighbour advertisements that the bond sends
at a failover, one per miimon interval: any one may be lost."""

PATIENCE_S: Final = 10.0
"""How long a bond without members waits for its first configured member when
others exist: drivers find their ports in any order, some seconds apart.
"""

_PASSES: Final = 10


class StackError(Exception):
    """The links cannot be made as configured; the message names the link."""


@dataclass(frozen=True)
class Plan:
    """requests: to be sent; a plan after that may have more. top: the link for
    the addresses, as it is now; None while it is missing or is a bond without
    members. missing: names of awaited links. held: members that exist are not
    added yet, since the bond waits for the first one's MAC.
    """

    requests: tuple[Request, ...]
    top: Link | None
    missing: tuple[str, ...]
    held: bool = False


def plan(config: Interface, links: Sequence[Link], mark: int, *, patient: bool = False) -> Plan:
    """Return the requests that the present links need now. Pure. mark: the
    group of links that we make. patient: a bond without members waits for its
    first one. Raises StackError.
    """
    stale = [link for link in links if _is_stale(link, config, links, mark)]
    if stale:
        # VLANs first: the kernel removes them with the link below.
        stale.sort(key=lambda link: link.kind != _VLAN)
        return Plan(tuple(del_link(one.ifindex, one.name) for one in stale), None, ())
    if config.bond is None:
        lower = _lower(links, config)
        if lower is None:
            return Plan((), None, (config.described,))
        # If none is configured, any port may become the uplink.
        named = config.name or config.hardware_address or config.vlan is not None
        sized = [lower] if named else [link for link in links if is_port(link)]
        requests = [request for link in sized for request in _sized(link, config.mtu)]
        missing: tuple[str, ...] = ()
    else:
        lower = choose(links, config.bond.name)
        if lower is None:
            return Plan((_new_bond(config.bond, config.mtu, mark),), None, ())
        requests = list(_bond_changes(config.bond, lower, mark))
        requests += _sized(lower, config.mtu)
        present = {link.name: link for link in links if link.name in config.bond.members}
        missing = tuple(_missing(config.bond, lower, present, links))
        empty = not any(link.master == lower.ifindex for link in present.values())
        held = patient and empty and bool(present) and config.bond.members[0] not in present
        if not held:
            requests += _first_mac(config.bond, lower, present) if empty else ()
            requests += _members(config.bond, lower, present, links)
        if empty:
            return Plan(tuple(requests), None, missing, held)
    if config.vlan is None:
        return Plan(tuple(requests), lower, missing)
    if not lower.up:
        requests.append(set_link_up(lower.ifindex, lower.name))
    vlan = choose(links, config.vlan.name)
    if vlan is None:
        requests.append(_new_vlan(config.vlan, lower, config.mtu, mark))
        return Plan(tuple(requests), None, missing)
    if vlan.group != mark:
        requests.append(set_link_group(vlan.ifindex, vlan.name, mark))
    # Last: a VLAN's MTU is at most that of the link below.
    requests += _sized(vlan, config.mtu)
    return Plan(tuple(requests), vlan, missing)


def _is_stale(link: Link, config: Interface, links: Sequence[Link], mark: int) -> bool:
    """Return whether the link has to be removed: it is ours and not wanted any
    more, or a wanted one that cannot be changed to what is configured.
    """
    bond, vlan = config.bond, config.vlan
    ours = link.group == mark and link.kind in (_BOND, _VLAN)
    wanted = {}
    if bond is not None:
        wanted[bond.name] = _BOND
    if vlan is not None:
        wanted[vlan.name] = _VLAN
    kind = wanted.get(link.name)
    if kind is None:
        return ours
    if link.kind != kind:
        if ours:
            return True
        is_now = link.kind.decode("ascii", "replace") or "hardware"
        raise StackError(f"{link.name} is to be a {kind.decode()}, but is there, and is {is_now}")
    if bond is not None and kind == _BOND:
        # A bond with members does not change its mode.
        return _numbers(link).get(IFLA_BOND_MODE) != _MODES[bond.mode]
    lower = _lower(links, config)
    right = lower is not None and link.peer == lower.ifindex and link.peer_netns is None
    return not right or vlan is None or _numbers(link).get(IFLA_VLAN_ID) != vlan.id


def _lower(links: Sequence[Link], config: Interface) -> Link | None:
    """Return the lower link of a VLAN, present or not."""
    return choose(links, config.lower_name, config.hardware_address)


def _numbers(link: Link) -> dict[int, int]:
    """Return the numeric attributes of the link's kind."""
    return {
        kind: int.from_bytes(payload, sys.byteorder)
        for kind, payload in attrs.walk(link.data)
        if len(payload) in (1, 2, 4)
    }


def _sized(link: Link, mtu: int | None) -> Iterator[Request]:
    if mtu is not None and link.mtu != mtu:
        yield set_link_mtu(link.ifindex, link.name, mtu)


def _settings(bond: Bond) -> dict[int, tuple[int, int]]:
    """Return (width in bytes, value) by attribute, without the mode."""
    settings = {
        IFLA_BOND_MIIMON: (4, bond.miimon_ms),
        IFLA_BOND_NUM_PEER_NOTIF: (1, _PEER_NOTIFICATIONS),
    }
    if bond.mode is BondMode.LACP:
        settings |= {
            IFLA_BOND_MIN_LINKS: (4, bond.min_links),
            IFLA_BOND_AD_LACP_RATE: (1, _RATES[bond.lacp_rate]),
            IFLA_BOND_XMIT_HASH_POLICY: (1, _HASHES[bond.transmit_hash]),
        }
    return settings


_WHILE_DOWN: Final = frozenset({IFLA_BOND_AD_LACP_RATE, IFLA_BOND_XMIT_HASH_POLICY})
"""Those of the settings that can be changed only while the bond is down
(BOND_OPTFLAG_IFDOWN)."""


def _data(values: dict[int, tuple[int, int]]) -> bytes:
    return b"".join(
        attrs.attr(option, value.to_bytes(width, sys.byteorder))
        for option, (width, value) in values.items()
    )


def _new_bond(bond: Bond, mtu: int | None, mark: int) -> Request:
    """Create a bond, down and without members. EEXIST: the module made one."""
    values = {IFLA_BOND_MODE: (1, _MODES[bond.mode])} | _settings(bond)
    return new_link(bond.name, "bond", mtu=mtu, group=mark, data=_data(values))


def _new_vlan(vlan: Vlan, lower: Link, mtu: int | None, mark: int) -> Request:
    data = _data({IFLA_VLAN_ID: (2, vlan.id)})
    request = new_link(vlan.name, "vlan", mtu=mtu, group=mark, lower=lower.ifindex, data=data)
    return request.saying("create VLAN {}, id {}, on {}", vlan.name, vlan.id, lower.name)


def _bond_changes(bond: Bond, link: Link, mark: int) -> Iterator[Request]:
    if link.group != mark:
        yield set_link_group(link.ifindex, link.name, mark)
    present = _numbers(link)
    wrong = {k: value for k, value in _settings(bond).items() if present.get(k) != value[1]}
    if not wrong:
        return
    change = set_link_data(link.ifindex, link.name, "bond", _data(wrong))
    if link.up and wrong.keys() & _WHILE_DOWN:
        yield set_link_down(link.ifindex, link.name)
        yield change
        yield set_link_up(link.ifindex, link.name)
    else:
        yield change


def _first_mac(bond: Bond, link: Link, present: dict[str, Link]) -> Iterator[Request]:
    """Give a bond without members the MAC of the first of its members that
    exists. Otherwise it gets that of the port that is added first, in the
    kernel's order, and DHCP may give the node another address after a reboot.
    """
    first = next((present[name] for name in bond.members if name in present), None)
    if first is None or first.master is not None:
        return
    mac = first.permanent_mac or first.mac
    if mac and link.mac != mac:
        yield set_link_mac(link.ifindex, link.name, mac)


def _members(
    bond: Bond, link: Link, present: dict[str, Link], links: Sequence[Link]
) -> Iterator[Request]:
    """Yield requests about members, in the order of the configuration."""
    for other in links:
        if other.master == link.ifindex and other.name not in bond.members:
            yield _set_master(other, None)
    for name in bond.members:
        member = present.get(name)
        if member is None:
            continue
        if member.master == link.ifindex:
            if not member.up:
                yield set_link_up(member.ifindex, name)
            continue
        if member.master is not None:
            continue
        # The kernel adds only a link that is down, and sets it up
        # (bond_enslave).
        yield set_link_down(member.ifindex, name)
        yield _set_master(member, link)
    primary = present.get(bond.primary)
    wanted = primary.ifindex if primary is not None and primary.master == link.ifindex else 0
    if bond.mode is BondMode.ACTIVE_BACKUP and wanted != _numbers(link).get(IFLA_BOND_PRIMARY, 0):
        data = _data({IFLA_BOND_PRIMARY: (4, wanted)})
        change = set_link_data(link.ifindex, link.name, "bond", data)
        yield change.saying("set primary of bond {} to {}", link.name, bond.primary or "none")


def _missing(
    bond: Bond, link: Link, present: dict[str, Link], links: Sequence[Link]
) -> Iterator[str]:
    """Yield the members that are missing, or belong to another master."""
    for name in bond.members:
        member = present.get(name)
        if member is None:
            yield name
        elif member.master not in (None, link.ifindex):
            owner = next((one.name for one in links if one.ifindex == member.master), "another")
            yield f"{name} (which belongs to {owner})"


def _set_master(member: Link, bond: Link | None) -> Request:
    if bond is None:
        return set_link_master(member.ifindex, member.name, 0).saying("release {}", member.name)
    change = set_link_master(member.ifindex, member.name, bond.ifindex)
    return change.saying("add {} to {}", member.name, bond.name)


def reconcile(
    config: Interface, mark: int, report: Callable[[str], None], *, patient: bool = False
) -> Plan:
    """Make the links as configured; return the last plan, without requests.

    patient: see plan. report: called with each request in words. Blocks for as
    long as the kernel works. Raises StackError, or NetlinkError when the kernel
    refuses; the other requests are done.
    """
    with NetlinkSocket() as sock:
        for _ in range(_PASSES):
            links = [parse_link(message) for message in sock.dump(dump_links())]
            now = plan(config, links, mark, patient=patient)
            if not now.requests:
                return now
            for request in now.requests:
                report(request.what)
            # A link may have been made or removed meanwhile: look again.
            sock.batch(now.requests, tolerate={errno.EEXIST, errno.ENODEV})
    raise StackError(f"{now.requests[0].what}: is not there after {_PASSES} attempts")


async def maintain(
    config: Interface,
    mark: int,
    built: event.Value[bool],
    *,
    quiet_groups: Iterable[int] = (),
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Keep the links as configured, until cancelled. Return at once if there is
    nothing to maintain: no bond, no VLAN and no MTU.

    built: set after each look, to whether the topmost link can be used; true if
    no link is made here. quiet_groups: link groups whose events are dropped.
    report: see reconcile; also called with the awaited links. Raises
    StackError, NetlinkError, OSError.
    """
    loop = asyncio.get_running_loop()
    waiting: tuple[str, ...] = ()
    patience: float | None = None
    made = config.bond is not None or config.vlan is not None
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    ) as events:
        without_groups(events, tuple(quiet_groups))
        events.bind((0, 0))
        events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
        while True:
            patient = patience is None or time.monotonic() < patience
            try:
                now = await in_thread(reconcile, config, mark, report, patient=patient)
            except StackError:
                built.set(False)
                raise
            except NetlinkError:
                # A request about one member failed; others may be usable.
                built.set((await in_thread(_look, config, mark)).top is not None)
                raise
            if made and now.missing and now.missing != waiting:
                report(f"waiting for {', '.join(now.missing)}")
            waiting = now.missing
            built.set(now.top is not None or not made)
            if not made and config.mtu is None:
                return
            if now.held and patience is None:
                patience = time.monotonic() + PATIENCE_S
            elif now.top is not None:
                patience = None
            await appeared(loop, events, patience if now.held else None)


def _look(config: Interface, mark: int) -> Plan:
    with NetlinkSocket() as sock:
        return plan(config, [parse_link(message) for message in sock.dump(dump_links())], mark)
