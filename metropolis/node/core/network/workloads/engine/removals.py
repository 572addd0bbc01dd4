# SPDX-License-Identifier: Apache-2.0
"""The links that wait to be deleted, and the thread that deletes them.

    Detach ─ cut off, DETACHED ─> add ─> waiting ── at_once at a time ──> gone
                                            │                               │
             Attach, CNI DEL ─ await_gone ──┴─ hurries them, and waits ─────┘

No packet passes these links, so nobody needs their end but an attach that wants
a name, an address or a namespace of theirs, and a CNI DEL. A link waits for
others for a moment, since a deletion takes as long for many as for one, and so
that the answer is on its way before the deletion takes the processor. Who waits
for a link ends that.

A deletion that the kernel refuses is tried again by itself, later each time,
until it succeeds, and whenever somebody waits for it; only then is its error
raised. Refused ones and others take turns.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

from metropolis.node.core.network.workloads.datapath.interface import Datapath
from metropolis.node.core.network.workloads.engine.entries import Entry, owner_text
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.locks import TimeRemaining
from metropolis.node.core.network.workloads.errors import (
    GivenUp,
    KernelRefused,
    Unavailable,
    WorkloadError,
)

log = logging.getLogger(__name__)

MAX_WAITING: Final = 1024
"""Links; a Detach beyond waits for room."""
PATIENCE_S: Final = 10.0
"""For which a call waits for links."""
_GATHER_S: Final = 0.02
_AGAIN_S: Final = (1.0, 60.0)  # after the first refusal, and the most
_DOUBLINGS: Final = 10  # of the former, to the latter or beyond
_CLOSE_S: Final = 2.0


class _Job:
    """A link that waits. due: when it is deleted, monotonic. refused: how often
    it was. error: of the last time.
    """

    __slots__ = ("due", "entry", "error", "refused")

    def __init__(self, entry: Entry, due: float) -> None:
        self.entry = entry
        self.due = due
        self.refused = 0
        self.error: WorkloadError | None = None


class Removals:
    """See the module. Thread-safe, except `start` and `close`."""

    def __init__(self, ledger: Ledger, datapath: Datapath) -> None:
        self._ledger = ledger
        self._datapath = datapath
        self._mutex = threading.Lock()
        # The mutex guards all attributes below.
        self._came = threading.Condition(self._mutex)
        self._ended = threading.Condition(self._mutex)
        self._jobs: dict[Entry, _Job] = {}  # oldest first
        self._closing = False
        self._closed = False
        self._wakes = 0.0  # when the thread looks next, monotonic
        self._refused_next = False  # whose turn it is
        self._thread: threading.Thread | None = None

    # ---- Life ---------------------------------------------------------------

    def start(self) -> None:
        """Begin, with nothing. Raises KernelRefused when there can be no
        thread.
        """
        self._jobs.clear()
        self._closing = self._closed = False
        thread = threading.Thread(target=self._run, name="removals", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise KernelRefused(f"start removals: {error}") from error
        self._thread = thread

    def close(self) -> None:
        """End, after what waits; the next service deletes what is refused, or
        takes too long. Who still waits for that gets Unavailable.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._mutex:
            self._closing = True
            self._came.notify()
        thread.join(_CLOSE_S)
        with self._mutex:
            self._closed = True
            self._ended.notify_all()

    # ---- Calls --------------------------------------------------------------

    def await_room(self, time_remaining: TimeRemaining) -> None:
        """Return when there are fewer than MAX_WAITING. Raises Unavailable."""
        if len(self._jobs) < MAX_WAITING:
            return
        with self._mutex:
            self._wait(lambda: len(self._jobs) < MAX_WAITING, "many others are", time_remaining)

    def add(self, entries: Collection[Entry]) -> None:
        """Move LEAVING entries, which are cut off, to DETACHED; delete their
        links soon. At once: what a call finds DETACHED it can wait for.
        """
        with self._mutex:
            self._ledger.detached(entries)
            self._add(entries)

    def go_on(self, entries: Collection[Entry]) -> None:
        """Delete the links of entries that are DETACHED since a start."""
        with self._mutex:
            self._add(entries)

    def _add(self, entries: Collection[Entry]) -> None:
        due = time.monotonic() + _GATHER_S
        self._jobs |= {entry: _Job(entry, due) for entry in entries}
        if entries and due < self._wakes:
            self._came.notify()

    def await_gone(
        self, entries: Sequence[Entry], time_remaining: TimeRemaining, *, one: bool = False
    ) -> None:
        """Return when the links are gone. one: when one of them is.

        Raises KernelRefused if one cannot be deleted (one: if none can),
        Unavailable after PATIENCE_S, GivenUp when the caller's time is over.
        """
        with self._mutex:
            jobs = [self._jobs[entry] for entry in entries if entry in self._jobs]
            if not jobs or (one and len(jobs) < len(entries)):
                return
            for job in jobs:
                job.due = 0.0
            self._came.notify()
            before = [(job, job.refused) for job in jobs]

            def refused() -> list[_Job]:
                return [job for job, times in before if job.refused > times]

            def ended() -> bool:
                left = sum(job.entry in self._jobs for job in jobs)
                if one:
                    return left < len(jobs) or len(refused()) == len(jobs)
                return not left or bool(refused())

            self._wait(ended, f"{owner_text(jobs[0].entry.record.workload_id)} is", time_remaining)
            if one and any(job.entry not in self._jobs for job in jobs):
                return
            error = next((job.error for job in refused()), None)
        if error is not None:
            raise KernelRefused(f"an earlier attachment is not gone: {error}")

    def settle(self) -> None:
        """Return when none waits, for tests."""
        with self._mutex:
            jobs = list(self._jobs)
        self.await_gone(jobs, lambda: PATIENCE_S)

    def _wait(self, ended: Callable[[], bool], what: str, time_remaining: TimeRemaining) -> None:
        """Wait under the mutex."""
        seconds = time_remaining()
        patience = max(min(PATIENCE_S, seconds), 0.0)
        if self._ended.wait_for(lambda: ended() or self._closed, patience):
            if not ended():
                raise Unavailable(f"{what} still being removed, and the service has stopped")
            return
        if seconds < PATIENCE_S:
            raise GivenUp(f"{what} still being removed when the caller's time was over")
        raise Unavailable(f"{what} still being removed after {PATIENCE_S:g} s; try again")

    # ---- The thread ---------------------------------------------------------

    def _run(self) -> None:
        while taken := self._take():
            self._remove(taken)

    def _take(self) -> list[_Job]:
        """Wait for due jobs, and return some; [] at the end."""
        with self._mutex:
            while True:
                now = time.monotonic()
                self._wakes = min((job.due for job in self._jobs.values()), default=math.inf)
                if self._closing or self._wakes <= now:
                    self._wakes = 0.0
                    # Others go with those that are due.
                    return self._choose(
                        [one for one in self._jobs.values() if one.due <= now or not one.refused]
                    )
                self._came.wait(None if self._wakes == math.inf else self._wakes - now)
                self._wakes = 0.0

    def _choose(self, ready: Sequence[_Job]) -> list[_Job]:
        """Return what to delete now. One that was refused goes alone: with it
        the others would have to be tried again one by one.
        """
        refused = [job for job in ready if job.refused]
        if refused and (self._refused_next or len(refused) == len(ready)):
            self._refused_next = False
            return [min(refused, key=lambda job: job.due)]
        self._refused_next = True
        # Those that somebody waits for come first.
        others = sorted((job for job in ready if not job.refused), key=lambda job: job.due)
        return others[: self._datapath.at_once]

    def _remove(self, jobs: Sequence[_Job]) -> None:
        error = self._delete(jobs)
        if error is not None and len(jobs) > 1:
            # It is unknown which one failed.
            for job in jobs:
                self._end([job], self._delete([job]))
        else:
            self._end(jobs, error)

    def _delete(self, jobs: Sequence[_Job]) -> WorkloadError | None:
        try:
            self._datapath.remove([job.entry.record for job in jobs])
        except WorkloadError as error:
            return error
        except Exception as error:
            log.exception("a removal failed")
            return KernelRefused(f"detach: unexpected {type(error).__name__}")
        return None

    def _end(self, jobs: Sequence[_Job], error: WorkloadError | None) -> None:
        if error is None:
            for job in jobs:
                self._ledger.drop(job.entry)
        with self._mutex:
            for job in jobs:
                if error is None:
                    del self._jobs[job.entry]
                    continue
                if not job.refused:
                    log.error("%s; it is tried again", error)
                first, most = _AGAIN_S
                doublings = min(job.refused, _DOUBLINGS)
                job.due = time.monotonic() + min(first * 2**doublings, most)
                job.refused += 1
                job.error = error
            self._ended.notify_all()
