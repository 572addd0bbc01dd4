# SPDX-License-Identifier: Apache-2.0
"""The steps of a removal, in their order; for Detach and other removals.

    step      by         does                         after a crash there is
    --------  ---------  ---------------------------  --------------------------
    lock      locks      the workload                 an attachment
    leave     ledger     LEAVING; List hides it       an attachment
    remove    datapath   deletes the links            an attachment, or nothing
    drop      ledger     frees addresses and names    nothing

After an error of `remove` the entry is BROKEN, and a repeated call tries again.
"""

from collections.abc import Iterable

from metropolis.node.core.network.workloads.datapath.interface import Datapath
from metropolis.node.core.network.workloads.engine.entries import Entry, State
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.left_alone import LeftAlone
from metropolis.node.core.network.workloads.engine.locks import Locks, TimeRemaining
from metropolis.node.core.network.workloads.errors import InvalidArgument, NotFound


class Detacher:
    """See the module."""

    def __init__(
        self, ledger: Ledger, datapath: Datapath, locks: Locks, left_alone: LeftAlone
    ) -> None:
        self._ledger = ledger
        self._datapath = datapath
        self._locks = locks
        self._left_alone = left_alone

    def detach(
        self, workload_id: str, netns_path: str, if_name: str, time_remaining: TimeRemaining
    ) -> None:
        """See Engine.detach."""
        with self._locks.workload.hold(workload_id, time_remaining):
            self._left_alone.claim(workload_id)
            entries = self._ledger.of_workload(workload_id, if_name)
            if entries and netns_path:
                cookie = self._cookie_of(netns_path)
                if cookie is not None:
                    entries = [one for one in entries if one.record.netns_cookie == cookie]
            self.remove(entries)

    def _cookie_of(self, path: str) -> int | None:
        """Return the namespace's cookie; None when it is gone."""
        try:
            with self._datapath.open_netns(path) as netns:
                return netns.cookie
        except NotFound, InvalidArgument:
            return None

    def remove(self, entries: Iterable[Entry]) -> None:
        """Remove entries of workloads whose locks the caller holds.

        Raises KernelRefused; entries that may still exist are BROKEN then.
        """
        leaving = self._ledger.leave(entries)
        if not leaving:
            return
        try:
            self._datapath.remove([entry.record for entry in leaving])
        except BaseException:
            for entry in leaving:
                self._ledger.settle(entry, State.BROKEN)
            raise
        for entry in leaving:
            self._ledger.drop(entry)
