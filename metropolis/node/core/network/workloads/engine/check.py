# SPDX-License-Identifier: Apache-2.0
"""Differences between the records and the kernel: reported, or repaired."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Datapath, Netns, Record
from metropolis.node.core.network.workloads.engine.detach import Detacher
from metropolis.node.core.network.workloads.engine.entries import State, attachment_of
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.left_alone import LeftAlone
from metropolis.node.core.network.workloads.engine.locks import Locks, TimeRemaining
from metropolis.node.core.network.workloads.engine.losses import Losses
from metropolis.node.core.network.workloads.errors import NotAttached
from metropolis.node.core.network.workloads.model import Checked, Finding
from metropolis.node.core.network.workloads.validate import show


class Checker:
    """See the module."""

    def __init__(
        self,
        ledger: Ledger,
        datapath: Datapath,
        locks: Locks,
        conditions: Conditions,
        left_alone: LeftAlone,
        detacher: Detacher,
        losses: Losses,
    ) -> None:
        self._ledger = ledger
        self._datapath = datapath
        self._locks = locks
        self._conditions = conditions
        self._left_alone = left_alone
        self._detacher = detacher
        self._losses = losses

    def check(
        self, workload_id: str, if_name: str, netns_path: str, time_remaining: TimeRemaining
    ) -> list[Checked]:
        """See Engine.check."""
        with (
            self._locks.workload.hold(workload_id, time_remaining),
            contextlib.ExitStack() as stack,
        ):
            self._left_alone.claim(workload_id)
            entries = self._ledger.of_workload(workload_id, if_name)
            records = [one.record for one in entries if one.state is State.ATTACHED]
            if not records:
                what = f"interface {show(if_name)}" if if_name else "interface"
                raise NotAttached(f"check {show(workload_id)}: has no {what}")
            netns = None
            if netns_path:
                netns = stack.enter_context(self._datapath.open_netns(netns_path))
            problems = tuple(
                Finding(key, "no problem of the node's network", problem)
                for key, problem in self._conditions.problems().items()
            )
            found = [self._compare(record, netns, netns_path) for record in records]
        return [replace(one, findings=one.findings + problems) for one in found]

    def _compare(self, record: Record, netns: Netns | None, path: str) -> Checked:
        if netns is None or netns.cookie == record.netns_cookie:
            findings = self._datapath.check(record, netns)
            return Checked(attachment_of(record), findings, entered=netns is not None)
        expected, found = f"cookie {record.netns_cookie}", f"cookie {netns.cookie}"
        other = Finding(f"network namespace at {show(path)}", expected, found)
        return Checked(
            attachment_of(record), (other, *self._datapath.check(record, None)), entered=False
        )

    def repair(self, allow: Allow) -> Sequence[Repair]:
        """See Engine.repair."""
        self._losses.again()
        return self._datapath.repair(self._ledger.attached(), allow, self._lock_if_idle)

    @contextlib.contextmanager
    def _lock_if_idle(self, record: Record) -> Iterator[bool]:
        """Lock an attachment's workload, if no call is busy with it."""
        lock = self._locks.workload.try_hold(record.workload_id)
        if lock is None:
            yield False
            return
        with contextlib.ExitStack() as stack:
            stack.callback(lock.release)
            entry = self._ledger.begin_repair(record)
            if entry is not None:
                # What the repair put back after the link was gone outlives it.
                stack.callback(self._detacher.settle, entry, State.ATTACHED)
            yield entry is not None
