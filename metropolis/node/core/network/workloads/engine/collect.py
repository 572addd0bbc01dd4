# SPDX-License-Identifier: Apache-2.0
"""Collect: remove what is not live, many at a time.

is_live is called once for each attachment that exists when the collection
begins. An attach that is under way then, or begins later, protects its workload
for as long as the collection lasts, so nothing newer than the answer is
removed.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence

from metropolis.node.core.network.workloads.engine.detach import Detacher
from metropolis.node.core.network.workloads.engine.entries import Entry, attachment_of
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.locks import (
    Locks,
    TimeRemaining,
    check_still_wanted,
)
from metropolis.node.core.network.workloads.engine.removals import Removals
from metropolis.node.core.network.workloads.errors import Unavailable, WorkloadError
from metropolis.node.core.network.workloads.model import Attachment, Collected

_AT_ONCE = 256  # workloads


class Collector:
    """See the module."""

    def __init__(
        self, ledger: Ledger, locks: Locks, detacher: Detacher, removals: Removals
    ) -> None:
        self._removals = removals
        self._ledger = ledger
        self._locks = locks
        self._detacher = detacher

    def collect(
        self,
        is_live: Callable[[str, str], bool],
        of_owner: Callable[[str], bool],
        time_remaining: TimeRemaining,
    ) -> Collected:
        """See Engine.collect."""
        with (
            self._locks.collection.hold("", time_remaining),
            self._ledger.collection(of_owner) as seen,
        ):
            stale: dict[str, list[Entry]] = {}
            for entry in seen:
                workload_id = entry.record.workload_id
                if not is_live(workload_id, entry.record.if_name):
                    stale.setdefault(workload_id, []).append(entry)
            return self._remove(stale, time_remaining)

    def _remove(self, stale: dict[str, list[Entry]], time_remaining: TimeRemaining) -> Collected:
        """Remove many at a time where no call is busy, then the others."""
        collected = Collected((), ())
        busy: dict[str, list[Entry]] = {}
        for some in itertools.batched(stale.items(), _AT_ONCE, strict=False):
            check_still_wanted(time_remaining)
            self._removals.await_room(time_remaining)
            with contextlib.ExitStack() as held:
                idle: list[Entry] = []
                for workload_id, entries in some:
                    lock = self._locks.workload.try_hold(workload_id)
                    if lock is None:
                        busy[workload_id] = entries
                        continue
                    held.callback(lock.release)
                    idle += entries
                collected = _sum(collected, self._remove_held(idle))
        for workload_id, entries in busy.items():
            if not self._ledger.unprotected(entries):
                continue  # it does not wait for an attach
            try:
                with self._locks.workload.hold(workload_id, time_remaining):
                    collected = _sum(collected, self._remove_held(entries))
            except Unavailable as error:
                failed = tuple((attachment_of(entry.record), str(error)) for entry in entries)
                collected = _sum(collected, Collected((), failed))
        return collected

    def _remove_held(self, entries: Sequence[Entry]) -> Collected:
        """Remove entries of workloads whose locks are held: an attach that has
        not protected its workload yet comes after.
        """
        entries = self._ledger.unprotected(entries)
        try:
            self._detacher.remove(entries)
            return Collected(tuple(attachment_of(entry.record) for entry in entries), ())
        except WorkloadError:
            # It is unknown which one failed: remove each by itself.
            removed: list[Attachment] = []
            remaining: list[tuple[Attachment, str]] = []
            for entry in entries:
                try:
                    self._detacher.remove([entry])
                    removed.append(attachment_of(entry.record))
                except WorkloadError as error:
                    remaining.append((attachment_of(entry.record), str(error)))
            return Collected(tuple(removed), tuple(remaining))


def _sum(one: Collected, other: Collected) -> Collected:
    return Collected(one.removed + other.removed, one.remaining + other.remaining)
