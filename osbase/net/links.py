# SPDX-License-Identifier: Apache-2.0
"""Follow one link through its life, by the kernel's events.

    subscribe -> list all -> choose one -> events of that one -> it is removed
        ^                                                            |
        +------------------------------------------------------------+

Once the link is chosen, a filter in the kernel passes events of its index
only: on a node with many workloads, each attach is several link events, and
waking Python for them would cost more than the attach.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from osbase import event
from osbase.netlink import bpf
from osbase.netlink.errors import ProtocolError
from osbase.netlink.ifla import (
    IFF_LOOPBACK,
    IFF_LOWER_UP,
    IFF_UP,
    IFLA_GROUP,
    RTM_DELLINK,
    RTM_NEWLINK,
    RTNLGRP_LINK,
)
from osbase.netlink.link import Link, dump_links, parse_link, parse_link_removed
from osbase.netlink.message import decode
from osbase.netlink.transport import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, NetlinkSocket
from osbase.supervisor import in_thread

_ATTRIBUTES_OFFSET: Final = 32  # after the headers of netlink and of links
_INDEX_OFFSET: Final = 20  # of ifi_index and ifa_index: after 16 bytes of header


@dataclass(frozen=True)
class LinkState:
    """The present state of a link. mtu: bytes. carrier: packets can flow."""

    ifindex: int
    name: str
    mac: bytes
    mtu: int
    up: bool
    carrier: bool


def is_port(link: Link) -> bool:
    """Return whether the link is Ethernet hardware, or looks so (virtio): it
    has a MAC, no software kind, and no bond or bridge as master.
    """
    plain = not link.kind and link.master is None
    return plain and len(link.mac) == 6 and not link.flags & IFF_LOOPBACK


_SHARING: Final = frozenset(
    {b"bond", b"bridge", b"hsr", b"ipvlan", b"macvlan", b"macvtap", b"team", b"vlan", b"vrf"}
)
"""Kinds of links that have the MAC of another."""


def has_address(link: Link, mac: bytes) -> bool:
    """Return whether the link is the port with this MAC: that of its hardware,
    or the present one if the hardware has none.
    """
    return link.kind not in _SHARING and (link.permanent_mac or link.mac) == mac


def choose(links: Iterable[Link], name: str, hardware_address: bytes = b"") -> Link | None:
    """Return the link with that name or address; if both are empty, the port
    with the lowest index.
    """
    for link in sorted(links, key=lambda link: link.ifindex):
        if name:
            if link.name == name:
                return link
        elif hardware_address:
            if has_address(link, hardware_address):
                return link
        elif is_port(link):
            return link
    return None


def state_of(link: Link) -> LinkState:
    """Return the state that `follow` reports."""
    return LinkState(
        link.ifindex,
        link.name,
        link.mac,
        link.mtu,
        bool(link.flags & IFF_UP),
        bool(link.flags & IFF_LOWER_UP),
    )


async def follow(
    name: str, into: event.Value[LinkState | None], hardware_address: bytes = b""
) -> None:
    """Set `into` to the state of the link, at each change; None while the link
    is missing. Runs until cancelled. Raises OSError or NetlinkError.

    name, hardware_address: see `choose`; both empty: see osbase.net.ports.
    """
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        ) as events:
            events.bind((0, 0))
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
            link = await in_thread(_find, name, hardware_address)
            into.set(None if link is None else state_of(link))
            if link is None:
                await _appearance(loop, events, name, hardware_address)
                continue
            only_link(events, link.ifindex)
            await _changes(loop, events, link, into)


def _find(name: str, hardware_address: bytes) -> Link | None:
    with NetlinkSocket() as sock:
        every = [parse_link(message) for message in sock.dump(dump_links())]
    return choose(every, name, hardware_address)


async def _datagram(loop: asyncio.AbstractEventLoop, events: socket.socket) -> bytes | None:
    """Return the kernel's next datagram; None for lost or invalid ones."""
    try:
        data, (sender, _) = await loop.sock_recvfrom(events, 65536)
    except OSError:  # ENOBUFS
        return None
    return data if sender == 0 else b""


async def _appearance(
    loop: asyncio.AbstractEventLoop, events: socket.socket, name: str, hardware_address: bytes
) -> None:
    """Return when the wanted link may have appeared."""
    while True:
        data = await _datagram(loop, events)
        if data is None:
            return
        try:
            new = [parse_link(message) for message in decode(data) if message.kind == RTM_NEWLINK]
        except ProtocolError:
            return
        if choose(new, name, hardware_address) is not None:
            return


async def _changes(
    loop: asyncio.AbstractEventLoop,
    events: socket.socket,
    link: Link,
    into: event.Value[LinkState | None],
) -> None:
    """Follow one link until it is gone, renamed, or events were lost."""
    last = state_of(link)
    while True:
        data = await _datagram(loop, events)
        if data is None:
            return
        try:
            for message in decode(data):
                removed = parse_link_removed(message)
                if removed is not None and removed.ifindex == link.ifindex:
                    return
                if message.kind not in (RTM_NEWLINK, RTM_DELLINK):
                    continue
                state = state_of(parse_link(message))
                if message.kind != RTM_NEWLINK or state.ifindex != link.ifindex:
                    continue
                if state.name != last.name:
                    return
                if state != last:
                    last = state
                    into.set(state)
        except ProtocolError:
            return


def only_link(events: socket.socket, ifindex: int) -> None:
    """Pass only datagrams whose first message is about this link, or one of its
    addresses: the index has the same offset in both.
    """
    program = bpf.Program()
    program.load_word(_INDEX_OFFSET)
    program.jump_unless_equal(socket.htonl(ifindex), "drop")
    program.end(accept=True)
    program.label("drop")
    program.end(accept=False)
    bpf.attach_program(events, program.assemble())


async def appeared(
    loop: asyncio.AbstractEventLoop, events: socket.socket, until: float | None = None
) -> None:
    """Return when links have changed, or at `until` (time.monotonic). All
    waiting events are read.
    """
    ready = asyncio.Event()
    loop.add_reader(events, ready.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await ready.wait()
    finally:
        loop.remove_reader(events)
    while True:
        try:
            events.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # events were lost: same as read
                raise


def without_groups(events: socket.socket, groups: Sequence[int]) -> None:
    """Pass only datagrams whose first link is in none of the groups."""
    program = bpf.Program()
    program.load_attribute(_ATTRIBUTES_OFFSET, IFLA_GROUP)
    for group in groups:
        program.jump_if_equal(socket.htonl(group), "drop")
    program.end(accept=True)
    program.label("drop")
    program.end(accept=False)
    bpf.attach_program(events, program.assemble())
