# SPDX-License-Identifier: Apache-2.0
"""Changes the text of a part while the attachment lives.

The kernel has the new text before the ledger has it: a caller that gets no
answer finds either, by a List, and may repeat the call. A Watch sees the
attachment again, with the new text.
"""

from dataclasses import replace

from metropolis.node.core.network.workloads.datapath.interface import Datapath, Record
from metropolis.node.core.network.workloads.engine.detach import Detacher
from metropolis.node.core.network.workloads.engine.entries import State
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.left_alone import LeftAlone
from metropolis.node.core.network.workloads.engine.locks import Locks, TimeRemaining
from metropolis.node.core.network.workloads.errors import NotAttached
from metropolis.node.core.network.workloads.parts import with_text
from metropolis.node.core.network.workloads.validate import show


class Changer:
    """See the module."""

    def __init__(
        self,
        ledger: Ledger,
        datapath: Datapath,
        locks: Locks,
        left_alone: LeftAlone,
        detacher: Detacher,
    ) -> None:
        self._ledger = ledger
        self._datapath = datapath
        self._locks = locks
        self._left_alone = left_alone
        self._detacher = detacher

    def change(
        self, workload_id: str, if_name: str, letter: str, text: str, time_remaining: TimeRemaining
    ) -> tuple[Record, bool]:
        """See Engine.change. Also return whether it was another text."""
        with self._locks.workload.hold(workload_id, time_remaining):
            self._left_alone.claim(workload_id)
            found = self._ledger.find(workload_id, if_name)
            entry = None if found is None else self._ledger.begin_repair(found.record)
            if entry is None:
                raise NotAttached(self._missing(workload_id, if_name))
            before = entry.record
            now = replace(before, parts=with_text(before.parts, letter, text))
            try:
                if now.parts != before.parts:
                    self._datapath.change(before, now)
                    self._ledger.change(entry, now)
            finally:
                lives = self._detacher.settle(entry, State.ATTACHED)
            if not lives:
                raise NotAttached(
                    f"workload {show(workload_id)}: its network namespace was removed"
                )
            return now, now.parts != before.parts

    def _missing(self, workload_id: str, if_name: str) -> str:
        """Say what there is instead."""
        there = [
            show(one.record.if_name)
            for one in self._ledger.of_workload(workload_id)
            if one.state is State.ATTACHED
        ]
        if not there:
            return f"workload {show(workload_id)}: is not attached"
        return (
            f"workload {show(workload_id)}: has no interface {show(if_name)}; it has "
            + ", ".join(there)
        )
