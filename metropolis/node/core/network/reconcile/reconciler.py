# SPDX-License-Identifier: Apache-2.0
"""Calls the looks of wards at the kernel's events, and periodically.

    kernel -> watch -> run: gathers events for a moment -> guard: a ward's look,
              clock ------------------------------------>   in a thread
                                                          -> log, counts, Status

A look compares everything that its ward watches, so a lost event only delays a
repair. Looks of one ward never overlap. The pause after a look is a multiple of
its duration, within limits, so a program that commits rules or writes settings
all day costs the node a bounded share.

An object that could not be restored, or is left as it is (see fights), is a
problem of the node until a look finds it right: Status is then unavailable, and
has the reason.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from metropolis.node.core.network.reconcile import watch
from metropolis.node.core.network.reconcile.fights import REPAIRS, WITHIN_S, Fights
from metropolis.node.core.network.reconcile.ward import Repair, Ward
from metropolis.node.core.network.reconcile.watch import Kind
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.errors import WorkloadError
from osbase.netlink.errors import BatchError, NetlinkError
from osbase.netlink.link import get_link
from osbase.netlink.transport import NetlinkSocket
from osbase.supervisor import Context, in_thread
from osbase.supervisor.tree import Runnable

SETTLE_S: Final = 0.1
"""Pause after the first event of a burst, before the look."""

_REST_MIN_S: Final = 0.25
_REST_MAX_S: Final = 1.0
_REST: Final = 9.0  # pause after a look, as a multiple of its duration
_AGAIN_S: Final = 2.0  # until the next look, after a repair that failed
_LINKS: Final = 64  # if more links changed at once, all are listed
_NAMED: Final = 5  # repairs in a log line or a condition
_FAILURES: Final = 3  # so many looks in a row that fail are a problem


class _Guard:
    """A ward's task, and the events that wake it."""

    def __init__(self, kinds: frozenset[Kind]) -> None:
        self.kinds = kinds
        self.woken = asyncio.Event()


class Reconciler:
    """`run` and the results of `guard` are runnables. The history of repairs
    remains when they are restarted.
    """

    def __init__(
        self,
        conditions: Conditions,
        *,
        now: Callable[[], float] = time.monotonic,
        settle_s: float = SETTLE_S,
    ) -> None:
        """Nothing happens before `run`. now: monotonic seconds."""
        self._conditions = conditions
        self._now = now
        self._settle_s = settle_s
        self._guards: list[_Guard] = []
        self._fights: dict[str, Fights] = {}
        self._counts: dict[str, int] = {}
        # The problems that the log has, by ward: keys, and whether it is left.
        self._logged: dict[str, frozenset[tuple[str, bool]]] = {}
        # Written by the threads of events, under the lock:
        self._lock = threading.Lock()
        self._pending: dict[Kind, set[int]] = {}

    # --- Events ---------------------------------------------------------------

    async def run(self, ctx: Context) -> None:
        """Subscribe, and wake the guards at events."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def on_event(kind: Kind, ifindex: int) -> None:
            with self._lock:
                first = not self._pending
                self._pending.setdefault(kind, set()).add(ifindex)
            if first:
                loop.call_soon_threadsafe(woken.set)

        def on_overrun() -> None:
            for kind in Kind:
                on_event(kind, 0)

        sources = []
        try:
            sources.append(watch.route_events(on_event, on_overrun))
            sources.append(watch.rules_events(on_event, on_overrun))
            for source in sources:
                source.start()
            # There may have been changes before the subscription.
            self._wake(Kind)
            ctx.signal_healthy()
            while True:
                await woken.wait()
                woken.clear()
                await asyncio.sleep(self._settle_s)
                with self._lock:
                    events, self._pending = self._pending, {}
                self._wake(await in_thread(_concerned, events))
        finally:
            for source in sources:
                await in_thread(source.close)
            with self._lock:
                self._pending = {}

    def _wake(self, kinds: Iterable[Kind]) -> None:
        came = frozenset(kinds)
        for guard in self._guards:
            if guard.kinds & came:
                guard.woken.set()

    # --- Looks ----------------------------------------------------------------

    def guard(self, ward: Ward, *, kinds: Iterable[Kind], every_s: float) -> Runnable:
        """Return a runnable that calls the ward's look at once, at events of
        the kinds, and `every_s` seconds after the last look. Only one for a
        ward's name may run at a time.
        """
        wanted = frozenset(kinds)

        async def run(ctx: Context) -> None:
            me = _Guard(wanted)
            self._guards.append(me)
            ctx.signal_healthy()
            failures = 0
            try:
                while True:
                    began = time.monotonic()
                    patience_s = every_s
                    try:
                        if not await self._look(ctx.logger, ward, me):
                            patience_s = min(every_s, _AGAIN_S)
                        failures = 0
                    except (NetlinkError, OSError, WorkloadError) as error:
                        patience_s = min(every_s, _AGAIN_S)
                        failures += 1
                        self._failed(ctx.logger, ward, failures, error)
                    took = time.monotonic() - began
                    rest = min(_REST_MAX_S, max(_REST_MIN_S, took * _REST))
                    await asyncio.sleep(rest)
                    try:
                        async with asyncio.timeout(max(0.0, patience_s - rest)):
                            await me.woken.wait()
                    except TimeoutError:
                        pass
                    me.woken.clear()
            finally:
                self._guards.remove(me)

        return run

    async def _look(self, log: logging.Logger, ward: Ward, me: _Guard) -> bool:
        """Look once; return whether no repair failed."""
        fights = self._fights.setdefault(ward.name, Fights(self._now))
        repairs = await in_thread(ward.look, fights.allow)
        fights.looked(repairs)
        done = [one for one in repairs if not one.error and not one.left]
        if done:
            self._count(ward.name, len(done))
            log.warning("put back: %s", _listing([one.what for one in done]))
            # Objects of other wards may be gone, too: routes with lo's address.
            for guard in self._guards:
                if guard is not me:
                    guard.woken.set()
        self._judge(log, ward.name, [one for one in repairs if one.error or one.left])
        return not any(one.error for one in repairs)

    def _count(self, name: str, number: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + number
        each = ", ".join(f"{name} {count}" for name, count in sorted(self._counts.items()))
        self._conditions.note("repairs", f"{sum(self._counts.values())}: {each}")

    def _judge(self, log: logging.Logger, name: str, wrong: Sequence[Repair]) -> None:
        """Set the condition for the repairs that failed or were not tried."""
        problems = frozenset((one.key, one.left) for one in wrong)
        if wrong:
            problem = _listing([_problem(one) for one in wrong])
            self._conditions.set(_condition(name), problem)
            # The text may differ each time; it must not be logged each time.
            if problems != self._logged.get(name):
                log.error("%s", problem)
        elif self._conditions.clear(_condition(name)):
            log.info("all is as it should be again")
        self._logged[name] = problems

    def _failed(self, log: logging.Logger, ward: Ward, failures: int, error: Exception) -> None:
        if failures < _FAILURES:
            log.info("look failed: %s", error)
        elif self._conditions.set(_condition(ward.name), f"cannot be looked at: {error}"):
            log.error("looks fail, %d in a row: %s", failures, error)


def _condition(name: str) -> str:
    return f"reconcile {name}"


def _problem(repair: Repair) -> str:
    if repair.left:
        return (
            f"{repair.what}; put back {REPAIRS} times within {WITHIN_S:.0f} s and changed again "
            "by another program: left so"
        )
    return f"{repair.what}; cannot be put back: {repair.error}"


def _listing(texts: Sequence[str]) -> str:
    named = "; ".join(texts[:_NAMED])
    return f"{named}; and {len(texts) - _NAMED:,} more" if len(texts) > _NAMED else named


def _concerned(pending: dict[Kind, set[int]]) -> set[Kind]:
    """Return the kinds with an event that is not about a vanished link. A
    removed link takes its routes and addresses along: these events need no
    look. Blocks. pending: link indexes by kind; 0: no link.
    """
    links = set().union(*pending.values())
    if len(links) > _LINKS:
        present = {index for index, _ in socket.if_nameindex()}
    else:
        with NetlinkSocket() as sock:
            present = {index for index in links if index and _exists(sock, index)}
    present.add(0)
    return {kind for kind, about in pending.items() if about & present}


def _exists(sock: NetlinkSocket, ifindex: int) -> bool:
    try:
        sock.get(get_link(ifindex))
    except BatchError as error:
        if error.errors[0].errno == errno.ENODEV:
            return False
        raise
    return True
