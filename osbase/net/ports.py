# SPDX-License-Identifier: Apache-2.0
"""Choose the uplink among a host's Ethernet ports, if none is configured.

The uplink is the port with a carrier that has the lowest index. It stays:

- a port that has lost its carrier stays the uplink for 30 s (a switch restarts,
  a cable is replugged), and for as long as no other has one
- a port that never had a carrier since it was chosen gives way after 5 s,
  which is about how long ports negotiate after they are set up
- the port that takes over must have had its carrier for 5 s
- the uplink does not move back when the former port has a carrier again

So a flapping port never becomes the uplink, and if two fail in turns the uplink
moves twice a minute at most. A removed port is replaced at once. After a
restart the first choice is the port that has the addresses of the last run.

A port shows its carrier only when it is set up. So if there are several, all
are set up, once each: a port that others set down again stays down.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from osbase import event
from osbase.net.links import LinkState, appeared, is_port, state_of, without_groups
from osbase.netlink.errors import NetlinkError
from osbase.netlink.ifla import RTNLGRP_LINK
from osbase.netlink.link import Link, dump_links, parse_link, set_link_up
from osbase.netlink.transport import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, NetlinkSocket
from osbase.supervisor import in_thread

HOLD_S: Final = 30.0
SETTLE_S: Final = 5.0


class Choice:
    """The choice among the ports. Pure; times are of any one clock."""

    def __init__(self, preferred: Iterable[int] = ()) -> None:
        """preferred: indexes of ports with addresses of an earlier run."""
        self._preferred = frozenset(preferred)
        self._chosen: int | None = None
        self._worked = False
        self._lost = 0.0
        self._since: dict[int, float] = {}

    def update(
        self, now: float, ports: Sequence[LinkState]
    ) -> tuple[LinkState | None, float | None]:
        """Return the port to use (None: there is none), and when to call again
        without an event (None: not needed).
        """
        there = {port.ifindex: port for port in ports}
        self._since = {
            index: self._since.get(index, now) for index, port in there.items() if port.carrier
        }
        current = there.get(self._chosen) if self._chosen is not None else None
        if current is None:
            return self._take(now, min(there.values(), key=self._rank, default=None)), None
        if current.carrier:
            self._worked, self._lost = True, now
            return current, None
        if not self._since:
            return current, None
        patience = self._lost + (HOLD_S if self._worked else SETTLE_S)
        due = {index: max(patience, since + SETTLE_S) for index, since in self._since.items()}
        ready = [index for index, when in due.items() if when <= now]
        if ready:
            return self._take(now, there[min(ready)]), None
        return current, min(due.values())

    def _rank(self, port: LinkState) -> tuple[bool, bool, int]:
        return not port.carrier, port.ifindex not in self._preferred, port.ifindex

    def _take(self, now: float, port: LinkState | None) -> LinkState | None:
        self._chosen = None if port is None else port.ifindex
        self._worked = port is not None and port.carrier
        self._lost = now
        return port


async def follow(
    into: event.Value[LinkState | None],
    *,
    preferred: Iterable[int] = (),
    quiet_groups: Iterable[int] = (),
    eligible: Callable[[Link], bool] = is_port,
) -> None:
    """Set `into` to the state of the chosen port, at each change; None while
    there is none. Runs until cancelled. Raises OSError or NetlinkError.

    quiet_groups: link groups whose events are dropped. eligible: whether a link
    is a port.
    """
    loop = asyncio.get_running_loop()
    choice = Choice(preferred)
    set_up: set[int] = set()
    unset = True
    last: LinkState | None = None
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    ) as events:
        without_groups(events, tuple(quiet_groups))
        events.bind((0, 0))
        events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_LINK)
        while True:
            ports = await in_thread(_look, eligible, set_up)
            chosen, again = choice.update(time.monotonic(), ports)
            if unset or chosen != last:
                into.set(chosen)
                unset, last = False, chosen
            await appeared(loop, events, again)


def _look(eligible: Callable[[Link], bool], set_up: set[int]) -> list[LinkState]:
    """List the ports; if there are several, set up those that never were."""
    with NetlinkSocket() as sock:
        ports = [link for link in map(parse_link, sock.dump(dump_links())) if eligible(link)]
        for port in ports if len(ports) > 1 else ():
            if port.ifindex in set_up:
                continue
            set_up.add(port.ifindex)
            if not port.up:
                try:
                    sock.batch([set_link_up(port.ifindex, port.name)])
                except NetlinkError:
                    continue  # gone, or broken: no carrier, then
    return [state_of(port) for port in ports]
