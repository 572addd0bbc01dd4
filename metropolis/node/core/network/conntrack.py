# SPDX-License-Identifier: Apache-2.0
"""Guards conntrack's table, so that no workload fills it alone.

    count, 1 to 5 times a second ── below 75 % ──> nothing
        └─ above ─> census, at most every 5 s ─> entries of each workload
               ├─ one above its fair share  ─> its new flows refused, 10 s
               └─ none above it, and 95 %   ─> the largest sources logged

The rules limit the rate of a workload's new flows (rules.base), so it fills the
table slowly; the guard stops it. A refusal is an element with a timeout in a
set of the rules, which the next census renews: nothing stays refused when this
service is away. Existing flows continue, and so do new flows *to* the workload.

For each destination, all workloads together have the masquerading ports of
allocs.MASQUERADE_PORTS. A large table has room for more flows than that. So the
census also begins when there are half as many flows as these ports; a workload
with more masqueraded flows than that to one destination is refused, too.

A fair share is the guarded part of the table divided by the number of
workloads: when workloads fill that part, at least one is above its share.
Limits: the guard only logs it if many workloads, all within their shares, fill
the table together, or if flows from outside do, which only the uplink's
firewall can refuse.

Why not a limit of flows per workload in the rules: nftables counts a source's
flows by walking them, which takes milliseconds a packet at 10,000 (`ct count`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.errors import WorkloadError
from metropolis.node.core.network.workloads.model import Attachment, IPAddress
from osbase import conntrack
from osbase.conntrack import Census, ConntrackError
from osbase.netlink.errors import NetlinkError
from osbase.nftables import Nftables, NftablesError
from osbase.supervisor import Context, in_thread

GUARDED: Final = 0.75
"""Above this part of the table, workloads above their share are refused."""
FULL: Final = 0.95
"""Above this part, it is logged if no workload is above its share."""
CROWD: Final = (allocs.MASQUERADE_PORTS[1] + 1 - allocs.MASQUERADE_PORTS[0]) // 2
"""Masqueraded flows that a workload may have to one destination and port."""
SHARE_MIN: Final = 64
"""Flows that a workload may always have."""
CENSUS_EVERY_S: Final = 5.0
"""Least pause between two. It is also at least ten times the duration of the
last, since a million entries take seconds of a CPU."""

_LOOK_S: Final = 1.0
_LOOK_SOON_S: Final = 0.2  # above half of the guarded part
_LOGGED_EVERY_S: Final = 60.0  # that the table is full
_NAMED: Final = 10  # sources or workloads in a text

_PER_MIB: Final = 32  # entries; at 320 bytes each, a hundredth of the memory
_LIMIT_MIN: Final = 65_536
_LIMIT_MAX: Final = 1_048_576

_KEY: Final = "conntrack"

log = logging.getLogger(__name__)


def limit_for(memory: int) -> int:
    """Return how many flows a machine with `memory` bytes should track."""
    return min(max(memory // 2**20 * _PER_MIB, _LIMIT_MIN), _LIMIT_MAX)


def wanted_limit() -> int:
    """Return how many flows this machine should track."""
    return limit_for(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def prepare() -> None:
    """Set the kernel's limit high enough. If it cannot be set, as in a network
    namespace, it stays, and a log line says so.
    """
    wanted = wanted_limit()
    try:
        if not conntrack.raise_limit(wanted):
            log.info("%d tracked flows at most; %d are not ours to set", conntrack.limit(), wanted)
    except ConntrackError as error:
        log.warning("raise the limit of tracked flows to %d: %s", wanted, error)


class Limit:
    """The limit of the table as a ward (see network.reconcile.ward): others,
    such as kube-proxy and sysctl files, lower it. A higher one stays.

    If the kernel does not let this namespace set it, the ward does nothing:
    `prepare` has logged that.
    """

    name = "conntrack-limit"

    def __init__(
        self,
        wanted: int | None = None,
        *,
        limit: Callable[[], int] = conntrack.limit,
        raise_limit: Callable[[int], bool] = conntrack.raise_limit,
    ) -> None:
        """wanted: None to compute it from the machine's memory."""
        self._wanted = wanted_limit() if wanted is None else wanted
        self._limit = limit
        self._raise = raise_limit
        self._settable = True

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See Ward."""
        if not self._settable:
            return ()
        key = "sysctl net.netfilter.nf_conntrack_max"
        try:
            found = self._limit()
            if found >= self._wanted:
                return ()
            what = f"net.netfilter.nf_conntrack_max was {found}, not {self._wanted}"
            if not allow(key):
                return (Repair(key, what, left=True),)
            self._settable = self._raise(self._wanted)
        except ConntrackError as error:
            return (Repair(key, "the limit of tracked flows is unknown or low", str(error)),)
        return (Repair(key, what),) if self._settable else ()


@dataclass(frozen=True)
class Load:
    """A workload, its links on the host, and its number of entries. crowd: the
    largest number of its masqueraded entries with one destination.
    """

    workload_id: str
    ifindexes: tuple[int, ...]
    entries: int
    crowd: int = 0


def loads(census: Census, attachments: Iterable[Attachment]) -> list[Load]:
    """Return the entries of each workload, summed over its interfaces."""
    found: dict[str, Load] = {}
    for one in attachments:
        known = found.get(one.workload_id, Load(one.workload_id, (), 0))
        found[one.workload_id] = Load(
            one.workload_id,
            (*known.ifindexes, one.host_ifindex),
            known.entries + sum(census.entries.get(ip, 0) for ip in one.ips),
            max(known.crowd, *(census.crowds.get(ip, 0) for ip in one.ips), 0),
        )
    return list(found.values())


def offenders(found: Sequence[Load], limit: int) -> list[Load]:
    """Return those above their share of a table of `limit`, largest first."""
    if not found:
        return []
    share = max(int(limit * GUARDED) // len(found), SHARE_MIN)
    return sorted(
        (load for load in found if load.entries > share),
        key=lambda load: (-load.entries, load.workload_id),
    )


def largest(census: Census, owners: Mapping[IPAddress, str]) -> str:
    """Describe the sources with the most entries, workloads by name."""
    ordered = sorted(census.entries.items(), key=lambda item: (-item[1], str(item[0])))
    return ", ".join(
        f"{owners.get(source, source)} {number:,}" for source, number in ordered[:_NAMED]
    )


def _named(found: Sequence[Load]) -> str:
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(f"{one.workload_id} ({one.entries:,})" for one in found[:_NAMED]) + more


def refuse(ifindexes: Sequence[int], seconds: int) -> str:
    """Return the transaction that refuses new flows from links for a while.

    Elements are deleted first: adding an existing one would keep its timeout.
    """
    where = f"element inet {allocs.NFTABLES_TABLE} {allocs.REFUSED_LINKS}"
    plain = ", ".join(str(one) for one in ifindexes)
    timed = ", ".join(f"{one} timeout {seconds}s" for one in ifindexes)
    return f"destroy {where} {{ {plain} }}\nadd {where} {{ {timed} }}\n"


class Guard:
    """Watches the table and refuses new flows. `run` is a runnable."""

    def __init__(
        self,
        attachments: Callable[[], list[Attachment]],
        conditions: Conditions,
        *,
        limit: Callable[[], int] = conntrack.limit,
        crowd: int = CROWD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """attachments: returns the present ones. limit: of the table. crowd: of
        one workload to one destination.
        """
        self._attachments = attachments
        self._conditions = conditions
        self._limit = limit
        self._crowd = crowd
        self._clock = clock
        self._next_census = 0.0
        self._next_log = 0.0
        self._refused: dict[str, Load] = {}
        self._failure = ""
        self.refusals = 0
        """How many times a refusal of a workload began."""

    async def run(self, ctx: Context) -> None:
        """Watch until cancelled."""
        ctx.signal_healthy()
        while True:
            wait_s = await in_thread(self.look)
            await asyncio.sleep(wait_s)

    def look(self) -> float:
        """Check once, and refuse if needed; return seconds until the next."""
        try:
            count, limit = conntrack.count(), self._limit()
            self._judge(count, limit)
        except (ConntrackError, NetlinkError, NftablesError, WorkloadError) as error:
            # The table of rules may be missing for a moment, or attachments not
            # recovered yet. A kernel may also be unable to make a census: then
            # only the rate limit of new flows remains.
            self._fail(str(error))
            return _LOOK_S
        self._fail("")
        return _LOOK_SOON_S if count > limit * GUARDED / 2 else _LOOK_S

    def _fail(self, why: str) -> None:
        if why and why != self._failure:
            log.warning("guarding the table of tracked flows: %s", why)
        self._failure = why

    def _judge(self, count: int, limit: int) -> None:
        now = self._clock()
        if count <= min(limit * GUARDED, self._crowd):
            self._now_refused({})
            self._conditions.note(_KEY, "")
            return
        if now < self._next_census:
            return
        census = conntrack.census()
        pause_s = max(CENSUS_EVERY_S, 10 * (self._clock() - now))
        self._next_census = now + pause_s
        attachments = self._attachments()
        found = loads(census, attachments)
        blamed = offenders(found, limit) if count > limit * GUARDED else []
        blamed += [load for load in found if load.crowd > self._crowd and load not in blamed]
        if blamed:
            # The next census renews it; if there is none, it ends by itself.
            links = [index for load in blamed for index in load.ifindexes]
            with Nftables() as nft:
                nft.apply(refuse(links, round(2 * pause_s)))
        self._now_refused({load.workload_id: load for load in blamed})
        fill = f"{count:,} of {limit:,} flows are tracked"
        if blamed:
            self._conditions.note(_KEY, f"{fill}; new flows refused of {_named(blamed)}")
        elif count > limit * FULL:
            owners = {ip: one.workload_id for one in attachments for ip in one.ips}
            text = f"{fill}; no workload is above its share; most have: {largest(census, owners)}"
            self._conditions.note(_KEY, text)
            if now >= self._next_log:
                self._next_log = now + _LOGGED_EVERY_S
                log.warning("%s", text)
        else:
            self._conditions.note(_KEY, "")

    def _now_refused(self, refused: dict[str, Load]) -> None:
        """Count and log refusals that begin, and those that end."""
        began = [load for key, load in refused.items() if key not in self._refused]
        ended = [load for key, load in self._refused.items() if key not in refused]
        self._refused = refused
        self.refusals += len(began)
        if began:
            log.warning("new flows refused, too many tracked: %s", _named(began))
        if ended:
            log.info("new flows no longer refused: %s", ", ".join(one.workload_id for one in ended))
