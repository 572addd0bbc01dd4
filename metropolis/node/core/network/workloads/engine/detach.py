# SPDX-License-Identifier: Apache-2.0
"""The steps of a removal, in their order, whichever call removes.

    step      by         does                         after a crash there is
    --------  ---------  ---------------------------  --------------------------
    lock      locks      the workload                 an attachment
    leave     ledger     LEAVING; List hides it       an attachment
    cut off   datapath   deletes nftables elements    an attachment (a start
                         of parts                       puts them back)
                         no packet passes the links   links that are cut off: a
    forget    policies   what they are                  the same
    detached  ledger     DETACHED; an event             start goes on below
    leave     datapath   deletes rules of further       the same, and rules
                         interfaces, if the call        that lead to nothing
                         names the namespace
    --- the answer; a call that wants the links gone waits for the rest ---
    remove    removals:  deletes the links, and       nothing
              datapath   elements that are left
    drop      ledger     frees addresses, resources   nothing
                         and names

Where a link cannot be cut off (a kernel without clsact, another program's on
the link), the call itself removes. After an error of that the entry is BROKEN,
and a repeated call tries again.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence

from metropolis.node.core.network.workloads.datapath.interface import (
    Datapath,
    Netns,
    Record,
)
from metropolis.node.core.network.workloads.engine.entries import Entry, State
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.left_alone import LeftAlone
from metropolis.node.core.network.workloads.engine.locks import Locks, TimeRemaining
from metropolis.node.core.network.workloads.engine.losses import Losses
from metropolis.node.core.network.workloads.engine.policies import Policies
from metropolis.node.core.network.workloads.engine.removals import Removals
from metropolis.node.core.network.workloads.errors import (
    InvalidArgument,
    NotFound,
    WorkloadError,
)

log = logging.getLogger(__name__)


class Detacher:
    """See the module."""

    def __init__(
        self,
        ledger: Ledger,
        datapath: Datapath,
        locks: Locks,
        left_alone: LeftAlone,
        removals: Removals,
        losses: Losses,
        policies: Policies,
    ) -> None:
        self._ledger = ledger
        self._datapath = datapath
        self._locks = locks
        self._left_alone = left_alone
        self._removals = removals
        self._losses = losses
        self._policies = policies
        self._uncut = False  # and it was logged

    def detach(
        self,
        workload_id: str,
        netns_path: str,
        if_name: str,
        time_remaining: TimeRemaining,
        *,
        until_gone: bool,
    ) -> list[Record]:
        """See Engine.detach. Return what was removed."""
        self._removals.await_room(time_remaining)
        cookie = None
        with self._locks.workload.hold(workload_id, time_remaining):
            self._left_alone.claim(workload_id)
            entries = self._ledger.of_workload(workload_id, if_name)
            with self._opened(netns_path if entries else "") as netns:
                if netns is not None:
                    cookie = netns.cookie
                    entries = _within(entries, cookie)
                removed = self.remove(entries)
                further = [one for one in removed if one.further]
                if netns is not None and further:
                    self._datapath.leave(netns, further)
        if until_gone:
            if netns_path and cookie is None:
                with self._opened(netns_path) as netns:
                    cookie = None if netns is None else netns.cookie
            leaving = _within(self._ledger.leaving(workload_id, if_name), cookie)
            self._removals.await_gone(leaving, time_remaining)
        return removed

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[Netns | None]:
        """Open the namespace; None when it is gone, or the path is empty."""
        with contextlib.ExitStack() as stack:
            netns = None
            if path:
                with contextlib.suppress(NotFound, InvalidArgument):
                    netns = stack.enter_context(self._datapath.open_netns(path))
            yield netns

    def remove(self, entries: Iterable[Entry], *, at_once: bool = False) -> list[Record]:
        """Remove entries of workloads whose locks the caller holds; return
        what was removed. at_once: their links are gone then.

        Raises KernelRefused; entries that may still exist are BROKEN then.
        """
        leaving = self._ledger.leave(entries)
        records = [entry.record for entry in leaving]
        if not leaving:
            return records
        try:
            if not at_once and self._cut_off(records):
                self._policies.forget(records)
                self._removals.add(leaving)
                return records
            for some in itertools.batched(records, self._datapath.at_once, strict=False):
                self._datapath.remove(some)
        except BaseException:
            for entry in leaving:
                self.settle(entry, State.BROKEN)
            raise
        self._policies.forget(records)
        for entry in leaving:
            self._ledger.drop(entry)
        return records

    def _cut_off(self, records: Sequence[Record]) -> bool:
        try:
            self._datapath.cut_off(records)
        except WorkloadError as error:
            if not self._uncut:
                log.warning("%s; the links of such are deleted within the call", error)
            self._uncut = True
            return False
        return True

    def settle(self, entry: Entry, state: State) -> bool:
        """End a step in this state. If the link is gone the entry is lost,
        cleaned up, and False returned.
        """
        if self._ledger.settle(entry, state):
            return True
        self._losses.clean_up(entry)
        return False


def _within(entries: list[Entry], cookie: int | None) -> list[Entry]:
    """Return those in the namespace; all if it is None."""
    if cookie is None:
        return entries
    return [one for one in entries if one.record.netns_cookie == cookie]
