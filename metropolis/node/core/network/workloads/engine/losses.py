# SPDX-License-Identifier: Apache-2.0
"""Attachments that were lost: their links are gone, usually with a namespace.

The elements of their parts outlive the links, and lead to the addresses. So
they are removed first, and then the addresses and resources are freed. So it is
for a link that was left alone. An attach that needs what a lost one still has
waits for that. If the kernel refuses, all stays in use, since an element may
lead to an address; each look of the reconciler tries again.
"""

import logging
import threading
from collections.abc import Collection

from metropolis.node.core.network.workloads.datapath.interface import Datapath, Held
from metropolis.node.core.network.workloads.engine.entries import Entry, owner_text
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.locks import TimeRemaining
from metropolis.node.core.network.workloads.engine.policies import Policies
from metropolis.node.core.network.workloads.engine.removals import PATIENCE_S
from metropolis.node.core.network.workloads.errors import WorkloadError
from metropolis.node.core.network.workloads.validate import show

log = logging.getLogger(__name__)


class Losses:
    """See the module. Thread-safe."""

    def __init__(self, ledger: Ledger, datapath: Datapath, policies: Policies) -> None:
        self._ledger = ledger
        self._datapath = datapath
        self._policies = policies
        self._changed = threading.Condition()
        # What was refused; guarded by the condition.
        self._refused: dict[Entry | Held, None] = {}

    def clean_up(self, entry: Entry) -> None:
        """Forget a lost entry; remove the elements of one with parts, then free
        its addresses and resources; see Ledger.removed.
        """
        self._policies.forget([entry.record])
        if not entry.record.parts:
            return
        try:
            self._datapath.clean_up(entry.record)
        except WorkloadError as error:
            owner = owner_text(entry.record.workload_id)
            log.error("%s is gone: %s; its addresses stay in use", owner, error)
            self._refuse(entry)
        else:
            self._ledger.free(entry)
            self._end(entry)

    def clean_up_held(self, held: Held) -> None:
        """Do the same for a link that was left alone, and is gone."""
        try:
            self._datapath.clean_up_link(held.ifindex)
        except WorkloadError as error:
            log.error("link %s is gone: %s; its addresses stay in use", show(held.name), error)
            self._refuse(held)
        else:
            self._ledger.free_held(held)
            self._end(held)

    def again(self) -> None:
        """Try again what was refused."""
        with self._changed:
            refused = list(self._refused)
        for lost in refused:
            if isinstance(lost, Held):
                self.clean_up_held(lost)
            else:
                self.clean_up(lost)

    def await_free(self, entries: Collection[Entry], time_remaining: TimeRemaining) -> bool:
        """Return when one of the lost entries is free, or the time is over;
        False: all were refused.
        """

        def refused() -> bool:
            return self._refused.keys() >= set(entries)

        def ended() -> bool:
            return refused() or not all(map(self._ledger.is_lost, entries))

        with self._changed:
            self._changed.wait_for(ended, max(0.0, min(PATIENCE_S, time_remaining())))
            return not refused()

    def _refuse(self, lost: Entry | Held) -> None:
        with self._changed:
            self._refused[lost] = None
            self._changed.notify_all()

    def _end(self, lost: Entry | Held) -> None:
        with self._changed:
            self._refused.pop(lost, None)
            self._changed.notify_all()
