# SPDX-License-Identifier: Apache-2.0
"""Where the reverse path may be strict: on the uplink, while all default routes
of the family lead there and no routing rule leads past them.

A node with several uplinks may get on one link the answer to what it sent on
another, and a strict check would cut it off; so would one that is set before
the route exists. A VPN for all traffic is such an uplink: by a rule and a table
of its own, or by routes for the halves of the address space in the main one. So
default routes and rules are checked: at the events of both, when the uplink
changes, and periodically, since a link that goes down takes its IPv4 routes
along without an event. Routes of workloads are no events here: the kernel
filters them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Final

from metropolis.node.core.network.rules.ruleset import RuleSet
from osbase import event
from osbase.ip import AF_INET, AF_INET6
from osbase.net.links import LinkState
from osbase.netlink import bpf, fibrules
from osbase.netlink.errors import BatchError
from osbase.netlink.message import Message
from osbase.netlink.route import (
    RT_TABLE_MAIN,
    RTN_UNICAST,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    Route,
    dump_main_routes,
    parse_route,
)
from osbase.netlink.transport import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, NetlinkSocket
from osbase.supervisor import in_thread

LOOK_S: Final = 30.0
"""How long a default route that vanished without an event may be missed, s."""

type Note = Callable[[str, str], None]

_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
_DESTINATION_BITS: Final = 17  # offset of rtm_dst_len, with the header
_SHORTEST: Final = 3
"""Prefixes up to this length are default routes, too: 0.0.0.0/1, 2000::/3."""

# Local, main and default: without policy a family's rules look up only these.
_TABLES: Final = (255, RT_TABLE_MAIN, 253)
# The rules quote a name, and an asterisk at its end would match more.
_NAME: Final = re.compile(r"[\w.:@+-]+", re.ASCII)


def judge(
    link: LinkState | None, defaults: Iterable[Route], policy: Iterable[fibrules.Rule] = ()
) -> tuple[bool, str]:
    """Return whether to be strict, and the reason as text. Pure.

    defaults: routes of one family, and the halves. A route with several next
    hops has no one link. policy: the family's routing rules.
    """
    if link is None:
        return False, "off: no uplink"
    if not _NAME.fullmatch(link.name):
        return False, "off: the uplink's name"
    routes = [route for route in defaults if route.kind == RTN_UNICAST]
    if not routes:
        return False, "off: no default route"
    others = [route for route in routes if route.ifindex != link.ifindex]
    if others:
        return False, f"off: {len(routes)} default routes, {len(others)} not by {link.name}"
    if not any(route.destination.prefixlen == 0 for route in routes):
        return False, "off: no default route"
    if others_rules := [one for one in policy if not (one.everything and one.table in _TABLES)]:
        return False, f"off: {len(others_rules)} routing rules of others"
    return True, f"strict on {link.name}"


def look(link: LinkState | None) -> dict[int, tuple[bool, str]]:
    """Ask the kernel, by IP version. Raises NetlinkError."""
    if link is None:
        return {version: judge(None, ()) for version in _FAMILIES}
    with NetlinkSocket() as sock:
        return {
            version: judge(
                link, _defaults(sock.dump(dump_main_routes(family))), _rules(sock, family)
            )
            for version, family in _FAMILIES.items()
        }


def _defaults(messages: Iterable[Message]) -> list[Route]:
    """Parse default routes only: there are as many others as workloads."""
    found = [parse_route(one) for one in messages if one.body[1:2] <= bytes([_SHORTEST])]
    return [
        route for route in found if route is not None and route.destination.prefixlen <= _SHORTEST
    ]


def _rules(sock: NetlinkSocket, family: int) -> list[fibrules.Rule]:
    """Return the rules; empty without IPv6, or without rules in the kernel."""
    try:
        return [fibrules.parse_rule(one) for one in sock.dump(fibrules.dump_rules(family))]
    except BatchError as error:
        if error.errors[0].errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise
        return []


async def follow(
    link: event.Value[LinkState | None], rules: RuleSet, note: Note, *, look_s: float = LOOK_S
) -> None:
    """Keep the rules' `strict` right until cancelled, with a note for each
    family. Raises OSError, NetlinkError, NftablesError.
    """
    again = event.Value[None]("a reason to look at default routes")
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    ) as events:
        _only_defaults(events)
        events.bind((0, 0))
        for group in (
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_ROUTE,
            # Rules have a route's header; most have no destination.
            fibrules.RTNLGRP_IPV4_RULE,
            fibrules.RTNLGRP_IPV6_RULE,
        ):
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        tasks = [
            asyncio.create_task(part)
            for part in (
                _listen(events, again),
                _watch(link, again),
                _program(link, again, rules, note, look_s),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _listen(events: socket.socket, again: event.Value[None]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            await loop.sock_recv(events, 65536)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # events were lost: look
                raise
        again.set(None)


async def _watch(link: event.Value[LinkState | None], again: event.Value[None]) -> None:
    async for _ in link.watch():
        again.set(None)


async def _program(
    link: event.Value[LinkState | None],
    again: event.Value[None],
    rules: RuleSet,
    note: Note,
    look_s: float,
) -> None:
    await link.watch().get()
    watcher = again.watch()
    while True:
        state = link.peek()
        judged = await in_thread(look, state)
        name = "" if state is None else state.name
        strict = tuple((version, name) for version, (on, _) in judged.items() if on)
        await in_thread(rules.update, strict=strict)
        for version, (_, text) in judged.items():
            note(f"reverse_path_ipv{version}", text)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(look_s):
                await watcher.get()


def _only_defaults(events: socket.socket) -> None:
    """Pass only datagrams that begin with a default route, in classic BPF."""
    code = struct.pack(
        "=" + "HBBI" * 4,
        *(0x30, 0, 0, _DESTINATION_BITS),  # load a byte
        *(0x25, 1, 0, _SHORTEST),  # longer: skip one
        *(0x06, 0, 0, 0xFFFFFFFF),  # accept
        *(0x06, 0, 0, 0),  # drop
    )
    bpf.attach_program(events, code)
