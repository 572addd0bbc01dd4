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
import ctypes
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from osbase import event
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import decode
from osbase.netlink.rtnl import (
    IFF_UP,
    RTM_DELLINK,
    RTM_NEWLINK,
    RTNLGRP_LINK,
    Link,
    dump_links,
    parse_link,
    parse_link_removed,
)
from osbase.netlink.transport import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, NetlinkSocket

_IFF_LOOPBACK: Final = 0x8
_IFF_LOWER_UP: Final = 0x10000
_SO_ATTACH_FILTER: Final = 26
_INDEX_OFFSET: Final = 20  # of ifi_index and ifa_index: after 16 bytes of header


@dataclass(frozen=True)
class LinkState:
    """A link as it is now. mtu: bytes. carrier: packets can flow."""

    ifindex: int
    name: str
    mac: bytes
    mtu: int
    up: bool
    carrier: bool


def choose(links: Iterable[Link], name: str) -> Link | None:
    """Return the link of that name; for "" the lowest index that is Ethernet
    hardware: with a MAC, and of no software kind.
    """
    for link in sorted(links, key=lambda link: link.ifindex):
        if name:
            if link.name == name:
                return link
        elif not link.kind and len(link.mac) == 6 and not link.flags & _IFF_LOOPBACK:
            return link
    return None


def state_of(link: Link) -> LinkState:
    """Reduce a link to what is followed."""
    return LinkState(
        link.ifindex,
        link.name,
        link.mac,
        link.mtu,
        bool(link.flags & IFF_UP),
        bool(link.flags & _IFF_LOWER_UP),
    )


async def follow(name: str, into: event.Value[LinkState | None]) -> None:
    """Set `into` to the state of the link, at each change; None while there
    is no such link. Runs until cancelled. Raises OSError or NetlinkError.
    """
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        ) as events:
            events.bind((0, 0))
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
            link = await asyncio.to_thread(_find, name)
            into.set(None if link is None else state_of(link))
            if link is None:
                await _appearance(loop, events, name)
                continue
            only_link(events, link.ifindex)
            await _changes(loop, events, link, into)


def _find(name: str) -> Link | None:
    with NetlinkSocket() as sock:
        return choose([parse_link(message) for message in sock.dump(dump_links())], name)


async def _datagram(loop: asyncio.AbstractEventLoop, events: socket.socket) -> bytes | None:
    """The kernel's next; None when some were lost, or it makes no sense."""
    try:
        data, (sender, _) = await loop.sock_recvfrom(events, 65536)
    except OSError:  # ENOBUFS
        return None
    return data if sender == 0 else b""


async def _appearance(loop: asyncio.AbstractEventLoop, events: socket.socket, name: str) -> None:
    """Return when the links may contain the wanted one."""
    while True:
        data = await _datagram(loop, events)
        if data is None:
            return
        try:
            new = [parse_link(message) for message in decode(data) if message.kind == RTM_NEWLINK]
        except ProtocolError:
            return
        if choose(new, name) is not None:
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
    """Pass only datagrams of which the first message is of this link, or of one
    of its addresses: the index is at the same place in both.
    """
    # Classic BPF loads big-endian, the field is host-order: compare swapped.
    code = struct.pack(
        "=" + "HBBI" * 4,
        *(0x20, 0, 0, _INDEX_OFFSET),
        *(0x15, 0, 1, socket.htonl(ifindex)),
        *(0x06, 0, 0, 0xFFFFFFFF),
        *(0x06, 0, 0, 0),
    )
    program = ctypes.create_string_buffer(code, len(code))
    descriptor = struct.pack("HL", len(code) // 8, ctypes.addressof(program))
    events.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
