# SPDX-License-Identifier: Apache-2.0
"""The engine's public face: start, close, settings, and the calls.

The modules of this folder do the work; `locks` says which calls may run
concurrently.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Datapath, Scan
from metropolis.node.core.network.workloads.engine.attach import Attacher
from metropolis.node.core.network.workloads.engine.change import Changer
from metropolis.node.core.network.workloads.engine.check import Checker
from metropolis.node.core.network.workloads.engine.collect import Collector
from metropolis.node.core.network.workloads.engine.detach import Detacher
from metropolis.node.core.network.workloads.engine.entries import attachment_of, owner_text
from metropolis.node.core.network.workloads.engine.journal import NOTHING, Journal, verb
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.left_alone import LeftAlone, count_of
from metropolis.node.core.network.workloads.engine.locks import Locks, TimeRemaining, forever
from metropolis.node.core.network.workloads.engine.losses import Losses
from metropolis.node.core.network.workloads.engine.policies import NoPolicies, Policies
from metropolis.node.core.network.workloads.engine.protected import Protection
from metropolis.node.core.network.workloads.engine.readiness import NOT_RUNNING, Readiness
from metropolis.node.core.network.workloads.engine.removals import Removals
from metropolis.node.core.network.workloads.engine.settings import Settings
from metropolis.node.core.network.workloads.engine.watchers import BACKLOG, Watcher
from metropolis.node.core.network.workloads.errors import (
    InvalidArgument,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import (
    AttachIntent,
    Attachment,
    Checked,
    Collected,
    IPAddress,
    IPNetwork,
    PartText,
)
from metropolis.node.core.network.workloads.parts import check_texts
from metropolis.node.core.network.workloads.validate import check_attach, check_detach, show

log = logging.getLogger(__name__)


class Engine:
    """The service's logic; synchronous and thread-safe.

    All methods except `start` and `close` raise only errors of the
    WorkloadError family. time_remaining: see `locks`.
    """

    def __init__(
        self,
        datapath: Datapath,
        conditions: Conditions | None = None,
        journal: Journal | None = None,
        policies: Policies | None = None,
    ) -> None:
        """conditions: other problems of the node's network, for Status.
        journal: gets each call that attaches, removes or fails; `close` ends
        it. policies: None: there are none.
        """
        conditions = conditions or Conditions()
        policies = self._policies = policies or NoPolicies()
        self._journal = journal
        self._datapath = datapath
        self._start_lock = threading.Lock()
        self._started = False
        self._closed = False
        ledger, locks, settings = Ledger(datapath.parts), Locks(), Settings()
        self._ledger, self._locks, self._settings = ledger, locks, settings
        self._readiness = Readiness(ledger, datapath, conditions, settings, lambda: self._started)
        self._left_alone = LeftAlone(ledger, datapath, conditions)
        self._removals = Removals(ledger, datapath)
        self._losses = Losses(ledger, datapath, policies)
        self._detacher = Detacher(
            ledger, datapath, locks, self._left_alone, self._removals, self._losses, policies
        )
        self._attacher = Attacher(
            ledger,
            datapath,
            locks,
            settings,
            self._readiness,
            self._left_alone,
            self._detacher,
            self._removals,
            self._losses,
            policies,
        )
        self._changer = Changer(ledger, datapath, locks, self._left_alone, self._detacher)
        self._collector = Collector(ledger, locks, self._detacher, self._removals)
        self._checker = Checker(
            ledger, datapath, locks, conditions, self._left_alone, self._detacher, self._losses
        )

    # ---- Life ---------------------------------------------------------------

    def start(self) -> None:
        """Recover the attachments from the kernel; then calls are served.

        Raises KernelRefused, and may then be called again. After a success it
        does nothing.
        """
        with self._start_lock:
            if self._closed:
                raise Unavailable("the workload network service was stopped")
            if self._started:
                return
            try:
                self._datapath.open(self._on_removed, self._on_overrun)
                scan = self._datapath.scan()
                self._removals.start()
                leaving = self._ledger.adopt(scan.complete, scan.held, scan.leaving)
                self._policies.adopt(scan.complete)
                self._datapath.watch()
                self._removals.go_on(leaving)
                self._started = True
            except BaseException:
                self._removals.close()
                self._datapath.close()
                raise
        _report(scan)
        self._left_alone.note()

    def close(self) -> None:
        """End the service; attachments stay. Later calls are refused."""
        with self._start_lock:
            was_open, self._closed = self._started and not self._closed, True
            self._started = False
            if was_open:
                self._removals.close()
                self._datapath.close()
        self._ledger.watchers.end("the workload network service has stopped")
        if self._journal is not None:
            self._journal.close()

    # ---- Settings -----------------------------------------------------------

    def set_prefixes(
        self,
        prefixes: Sequence[IPNetwork],
        reserved: Collection[IPAddress] = (),
        draining: Collection[IPNetwork] = (),
        *,
        lacking: str = "",
    ) -> None:
        """Replace the prefixes that new attachments get addresses from.

        Thread-safe; attachments are untouched. Without prefixes the service is
        not ready. draining: prefixes that hand out nothing new; remove them
        when `in_use` returns 0. lacking: why a wanted prefix is missing, which
        prevents new attachments. Raises InvalidArgument when two overlap, and
        changes nothing then.
        """
        self._ledger.set_prefixes(prefixes, reserved, draining)
        self._readiness.lacking = lacking

    def in_use(self, prefix: IPNetwork) -> int:
        """Return how many addresses of the prefix are in use."""
        return self._ledger.in_use(prefix)

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU of new attachments, in bytes. Raises InvalidArgument."""
        self._settings.set_mtu(mtu)

    def set_ipv6_optional(self, optional: bool) -> None:
        """Set whether workloads get IPv4 alone where IPv6 is switched off,
        instead of an error.
        """
        self._settings.ipv6_optional = optional

    # ---- Status -------------------------------------------------------------

    def status(self) -> None:
        """Raise Unavailable, with the reason, unless an attach could be served
        and the node's network is as it should be.
        """
        if problems := self.problems():
            raise Unavailable("; ".join(dict.fromkeys(problems.values())))

    def problems(self) -> dict[str, str]:
        """Return why the status is not OK, by name; empty if it is."""
        return self._readiness.problems()

    def notes(self) -> dict[str, str]:
        """Return notes on the node's network, by name."""
        return self._readiness.notes()

    def check_room(self) -> None:
        """Raise Exhausted when a family with prefixes has no address left for
        an attach.
        """
        self._readiness.check_room()

    # ---- Calls --------------------------------------------------------------

    def attach(
        self, intent: AttachIntent, *, time_remaining: TimeRemaining = forever
    ) -> Attachment:
        """Make the attachment, or return the one from the same request.

        All or nothing.
        """
        began = time.perf_counter()
        try:
            check_attach(intent)
            check_texts(self._datapath.parts, intent.parts)
            if not self._started:
                self._readiness.refuse_unless_ready()
            made, is_new = self._attacher.attach(intent, time_remaining)
        except Exception as error:
            self.failed(verb(intent.owner), intent.workload_id, intent.if_name, error, began)
            raise
        if self._journal is not None:
            if is_new:
                self._journal.done(verb(intent.owner), made, began)
            else:
                why = "it is attached already, by the same request"
                what = verb(intent.owner)
                self._journal.failed(what, made.workload_id, made.if_name, NOTHING, why, began)
        return made

    def detach(
        self,
        workload_id: str,
        netns_path: str = "",
        if_name: str = "",
        *,
        until_gone: bool = False,
        time_remaining: TimeRemaining = forever,
    ) -> None:
        """Remove a workload's interface, or all; a missing one is no error.

        No packet passes it when this returns; its link is gone a moment later.
        until_gone: it is gone when this returns. A path of another namespace
        than the attachment's leaves it alone; a vanished path is ignored. Works
        without prefixes, and before `start`.
        """
        began = time.perf_counter()
        try:
            check_detach(workload_id, netns_path, if_name)
            if not self._started:
                self.start()
            removed = self._detacher.detach(
                workload_id, netns_path, if_name, time_remaining, until_gone=until_gone
            )
        except Exception as error:
            self.failed("detach", workload_id, if_name, error, began)
            raise
        if self._journal is not None:
            for record in removed:
                self._journal.done("detach", record, began)
            if not removed:
                why = "no such interface, or in another namespace"
                self._journal.failed("detach", workload_id, if_name, NOTHING, why, began)

    def change(
        self,
        workload_id: str,
        if_name: str,
        part: PartText,
        *,
        time_remaining: TimeRemaining = forever,
    ) -> None:
        """Give an attachment's part another text, which the part's module made
        for that (see parts.CHANGED). All or nothing; the same again does
        nothing. Raises NotAttached.
        """
        began = time.perf_counter()
        try:
            check_detach(workload_id, "", if_name)
            if not if_name:
                raise InvalidArgument("if_name: is empty; say which interface", field="if_name")
            check_texts(self._datapath.parts, [part])
            self._readiness.refuse_unless_running()
            now, is_new = self._changer.change(workload_id, if_name, *part, time_remaining)
        except Exception as error:
            self.failed("change", workload_id, if_name, error, began)
            raise
        if self._journal is not None:
            if is_new:
                names = {one.letter: one.name for one in self._datapath.parts}
                detail = f"{names[part[0]]} {part[1]}"
                self._journal.done("change", now, began, detail)
            else:
                why = "it is so already"
                self._journal.failed("change", workload_id, if_name, NOTHING, why, began)

    def settle(self) -> None:
        """Return when the links of all that was removed are gone."""
        self._removals.settle()

    def check(
        self,
        workload_id: str,
        if_name: str = "",
        netns_path: str = "",
        *,
        time_remaining: TimeRemaining = forever,
    ) -> list[Checked]:
        """Compare a workload's interface, or all of them, with the kernel.

        Changes nothing. netns_path: the namespace, to look inside. Raises
        NotAttached when there is nothing to compare.
        """
        check_detach(workload_id, netns_path, if_name)
        self._readiness.refuse_unless_running()
        return self._checker.check(workload_id, if_name, netns_path, time_remaining)

    def protect(self, workload_id: str) -> Protection:
        """Keep `collect` from a workload for a `with` block: for a caller that
        attaches to it, until it has returned the answer.
        """
        return self._ledger.protect(workload_id)

    def collect(
        self,
        is_live: Callable[[str, str], bool],
        *,
        of_owner: Callable[[str], bool] = lambda _: True,
        until_gone: bool = False,
        time_remaining: TimeRemaining = forever,
    ) -> Collected:
        """Remove attachments that are not live, unless an attach is busy.

        is_live: takes a workload id and an interface name; this thread calls it
        once for each attachment that exists when the collection begins.
        of_owner: takes an owner, "" where it is unknown; attachments of other
        owners stay. So do workloads that are protected at any time since the
        collection began, as an attach does. until_gone: as for `detach`. Works
        before `start`.
        """
        if not self._started:
            self.start()
        began = time.perf_counter()
        collected = self._collector.collect(is_live, of_owner, time_remaining)
        if self._journal is not None:
            for one in collected.removed:
                self._journal.done("collect", one, began)
            for one, why in collected.remaining:
                self._journal.failed("collect", one.workload_id, one.if_name, "left", why, began)
        if until_gone:
            removed = [(one.workload_id, one.if_name) for one in collected.removed]
            leaving = [entry for key in removed for entry in self._ledger.leaving(*key)]
            self._removals.await_gone(leaving, time_remaining)
        return collected

    def failed(
        self, what: str, workload_id: str, if_name: str, error: Exception, began: float
    ) -> None:
        """Have the log name a call that failed, also one that comes no further
        than its caller. began: time.perf_counter() at its begin.
        """
        if self._journal is not None:
            kind = error.code.name if isinstance(error, WorkloadError) else type(error).__name__
            self._journal.failed(what, workload_id, if_name, kind, str(error), began)

    def repair(self, allow: Allow) -> Sequence[Repair]:
        """Restore what others changed in the attachments; see ward.Ward.

        Attachments that a call is busy with are skipped. Raises KernelRefused
        when the kernel's state cannot be read.
        """
        return self._checker.repair(allow) if self._started else ()

    def watch(self, backlog: int = BACKLOG) -> Watcher:
        """Return a watcher: all attachments, and then every change.

        Use it in a `with` block. backlog: changes that it may be behind.
        """
        self._readiness.refuse_unless_running()
        return self._ledger.watch(backlog)

    # ---- Events of the datapath ---------------------------------------------

    def _on_removed(self, ifindex: int) -> None:
        entry, held = self._ledger.removed(ifindex)
        if held is not None:
            self._losses.clean_up_held(held)
            self._left_alone.note()
        if entry is not None:
            log.info(
                "%s of %s is gone with its network namespace",
                show(entry.record.if_name),
                owner_text(entry.record.workload_id),
            )
            self._losses.clean_up(entry)

    def _on_overrun(self) -> None:
        """Find the removals whose events were lost."""
        before = self._ledger.overrun()
        present = self._datapath.present()
        missing = [index for index in before if index not in present]
        log.warning("link events were lost; %d attachments were gone", len(missing))
        for index in missing:
            self._on_removed(index)

    # Last, since within the class its name hides the builtin type.

    def list(self, workload_id: str = "") -> list[Attachment]:
        """Return the attachments, of one workload or all. Raises Unavailable
        before they are recovered: an empty list would be wrong.
        """
        if not self._started and not self._closed:
            raise Unavailable(NOT_RUNNING)
        return [attachment_of(record) for record in self._ledger.attached(workload_id)]


def _report(scan: Scan) -> None:
    """Log what a start has found and done."""
    for repair in scan.repairs:
        done = f"not repaired: {repair.error}" if repair.error else "repaired"
        log.warning("%s; %s", repair.what, done)
    log.info(
        "recovered %d attachments (%d repairs), and %d that are leaving; removed %s that never "
        "finished, %s that claimed what another has; left alone %s that look like ours",
        len(scan.complete),
        len(scan.repairs),
        len(scan.leaving),
        count_of(scan.half_made),
        count_of(scan.duplicates),
        count_of(scan.foreign),
    )
