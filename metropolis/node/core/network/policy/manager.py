# SPDX-License-Identifier: Apache-2.0
"""Keeps the kernel's tables as the policies of all sources, and the workloads,
ask for.

    change      of a source's policies, of what a workload is, of attachments
    world       all of it together
    compile     to tables; only what the change touches is compiled again
    difference  from what the kernel has
    apply       one transaction: packets see the old tables or the new ones
    revoke      tracked flows that are not allowed any more are cut

A change is kept in a file before it is applied, and what was kept before comes
back if it is refused. So a restart has what the last answer said; a call that
got none may be in force or not. A restart compares with the kernel's tables,
which stay in force until then, whatever became of the service meanwhile; also
if the files cannot be read. It judges all flows, since its predecessor may have
ended before it cut those that a change forbids.

One lock for all: a change takes as long as its compilation and transaction. A
removal does not wait for so long: what has left is forgotten behind the change.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol

from metropolis.node.core.network.policy import messages, wire
from metropolis.node.core.network.policy.attachments import Attachments, Key, Member
from metropolis.node.core.network.policy.compiler import Compiler, Numbers, PolicyError
from metropolis.node.core.network.policy.difference import Difference, difference
from metropolis.node.core.network.policy.evaluate import Evaluator
from metropolis.node.core.network.policy.lookup import Lookup
from metropolis.node.core.network.policy.model import Policy, World
from metropolis.node.core.network.policy.sources import Source, merged, namespaces, unreadable
from metropolis.node.core.network.policy.spec import policy_pb2 as pb
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.policy.tables import Identity as Number
from metropolis.node.core.network.policy.tables import Tables
from metropolis.node.core.network.workloads.api import identity as identities
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import (
    Exhausted,
    FailedPrecondition,
    InvalidArgument,
    KernelRefused,
    NotAttached,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import Identity, IPAddress
from metropolis.node.core.network.workloads.validate import show

log = logging.getLogger(__name__)

PATIENCE_S: Final = 1.0
"""How long a removal waits for a change that is under way."""

CONDITION: Final = "policies"
"""The key of the problem of tables that are not as they should be."""

LOST: Final = (
    "what was kept of them is lost: those in force stay, and new workloads are refused all "
    "connections, until a source sets policies again"
)
"""Its text after such a loss."""

GENERATION_MAX: Final = (1 << 64) - 1

_UNKNOWN: Final = Identity(known=False)
_NOTHING: Final = Tables()


class Kernel(Protocol):
    """The kernel's tables. Raises KernelRefused; Exhausted: a set is full."""

    def read(self) -> Tables | None:
        """Return what they have; None: they are missing, or have what no
        policies make.
        """

    def apply(
        self, removed: Tables, added: Tables, *, policed: bool, present: Collection[Number] | None
    ) -> None:
        """Change them in one transaction. policed: whether there are policies
        then. present: see PolicyKernel.apply.
        """

    def replace(self, tables: Tables, *, policed: bool) -> None:
        """Make them these, whatever they have."""

    def revoke(
        self,
        changed: Collection[Number],
        lookup: Lookup,
        *,
        every: bool,
        ended: Collection[IPAddress] = (),
    ) -> int:
        """Cut the tracked flows of identities that are not allowed; return how
        many. every: of all identities, present or former, and from before there
        were policies. ended: addresses none of whose flows is allowed.
        """

    def policed(self) -> bool:
        """Return whether there are policies, as they have it."""


@dataclass(frozen=True, slots=True)
class State:
    """What GetPolicies returns. version: grows with each change."""

    version: int
    sources: tuple[Source, ...]
    policies: tuple[tuple[Source, Policy], ...]
    tables: Tables
    unknown: tuple[str, ...]


class Manager:
    """See the module. Thread-safe. Implements engine.policies.Policies."""

    def __init__(self, kernel: Kernel, store: Store, conditions: Conditions) -> None:
        """store: not opened. conditions: see CONDITION."""
        self._kernel = kernel
        self._store = store
        self._conditions = conditions
        self._changed = threading.Condition()  # and the lock
        self._version = 0
        self._attachments = Attachments()
        self._sources: dict[str, Source] = {}
        self._compiler: Compiler | None = None
        self._evaluator: Evaluator | None = None  # of the present world
        self._tables = Tables()  # wanted
        self._leaving: deque[Record] = deque()  # to be forgotten
        self._adopted = False  # the attachments of a start are known
        self._opened = False  # what was kept is known
        self._lost = False  # which is nothing, and the kernel has policies
        # Addresses of attachments that have ended, whose flows may be tracked;
        # no more than the node's prefixes have.
        self._ended: set[IPAddress] = set()
        self._uncut = ""  # why flows that are not allowed may live on
        # What the kernel has; None: it must be read.
        self._loaded: Tables | None = None
        self._policed = False  # and whether it has policies

    # ---- Attachments: engine.policies.Policies ------------------------------

    def adopt(self, records: Sequence[Record]) -> None:
        """See Policies."""
        with self._locked():
            for record in records:
                self._attachments.put(_member(record))
            self._adopted = True
            try:
                self._apply()
            except WorkloadError as error:
                self._conditions.set(CONDITION, f"not in force: {error}")
                log.error("policies are not in force: %s", error)

    def _open(self) -> None:
        """Read what was kept, once the attachments of a start are known. Until
        that is done nothing changes: the kernel has the tables of before.
        Raises Unavailable or KernelRefused.
        """
        if self._opened:
            return
        if not self._adopted:
            raise Unavailable("policies: attachments are not recovered yet")
        try:
            are_whole = self._store.open()
            sources = {name: _kept_source(name, kept) for name, kept in self._store.sources()}
            workload_ids = {one.key[0] for one in self._attachments}
            self._store.keep_workloads(workload_ids)
            for workload_id in workload_ids:
                if self._store.has_workload(workload_id):
                    self._attachments.identify(workload_id, self._kept(workload_id))
                elif not are_whole:
                    # Written down, for later starts find a whole directory.
                    self._attachments.identify(workload_id, _UNKNOWN)
                    self._write(workload_id, _UNKNOWN)
            # There were policies, and nobody knows any more what they said.
            policies = any(source.policies for source in sources.values())
            self._lost = not are_whole and not policies and self._kernel.policed()
            if not self._lost:
                self._store.complete()
        except OSError as error:
            raise KernelRefused(f"read the policies that were kept: {error}") from error
        self._sources = sources
        self._opened = True

    def _kept(self, workload_id: str) -> Identity:
        """Return what a workload is, from its file."""
        kept = self._store.workload(workload_id)
        if kept is None or not kept.HasField("identity"):
            return _UNKNOWN
        try:
            return identities.identity(kept.identity)
        except InvalidArgument as error:
            log.warning("workload %s: %s; its labels count as unknown", show(workload_id), error)
            return _UNKNOWN

    def admit(self, record: Record, identity: Identity | None) -> None:
        """See Policies."""
        member = _member(record)
        with self._locked(), self._undoing() as undo:
            self._cut_ended(member)
            before = self._attachments.put(member)
            undo.append(lambda: self._put_back(member, before))
            if identity is not None and (identity.known or self._is_news(record.workload_id)):
                self._identify(record.workload_id, identity, undo)
            if before is not None or not self._join(member):
                self._apply()

    def _join(self, member: Member) -> bool:
        """Do what `_apply` does for a new workload of a class that there is:
        to add its addresses. False: it must be compiled.
        """
        loaded, compiler = self._loaded, self._compiler
        if loaded is None or compiler is None or len(self._attachments.of(member.key[0])) > 1:
            return False
        found = compiler.identity_of(self._attachments.workload(member))
        if found is None or not loaded.identities.keys().isdisjoint(found):
            return False
        self._step(
            Tables(), Tables(found), replace(loaded, identities={**loaded.identities, **found})
        )
        return True

    def _part(self, ips: Iterable[IPAddress]) -> bool:
        """Do what `_apply` does for workloads that ended, if each has others in
        its class: to remove their addresses. False: it must be compiled.
        """
        loaded = self._loaded
        if loaded is None or self._compiler is None:
            return False
        # A copy does not hash the addresses again, which takes a while.
        rest = dict(loaded.identities)
        gone = {ip: rest.pop(ip) for ip in ips if ip in rest}
        if not set(rest.values()).issuperset(gone.values()):
            return False
        if gone:
            self._step(Tables(gone), Tables(), replace(loaded, identities=rest))
        return True

    def _step(self, removed: Tables, added: Tables, now: Tables) -> None:
        """Change identities alone. The compiler hears of it by its next world,
        and then gives these addresses the same numbers.
        """
        self._evaluator, self._loaded = None, None
        self._kernel.apply(removed, added, policed=True, present=None)
        self._loaded = self._tables = now
        self._notify()

    def _cut_ended(self, member: Member) -> None:
        """Cut the flows of those who had the addresses before, and of all that
        have ended since this was done last: one look at all flows then serves
        many attachments. Raises KernelRefused.
        """
        if self._ended.isdisjoint(member.ips) or not self._has_policies():
            return
        ended = self._nobodys()
        self._kernel.revoke((), Lookup(self._tables), every=True, ended=ended)
        self._ended.clear()

    def _nobodys(self) -> set[IPAddress]:
        """Return the addresses of those who have ended that nobody has now."""
        return {ip for ip in self._ended if not self._attachments.has(ip)}

    def _is_news(self, workload_id: str) -> bool:
        """Return whether nothing is known of a workload: what a runtime does
        not know takes nothing back.
        """
        return not self._attachments.is_identified(workload_id)

    def _put_back(self, member: Member, before: Member | None) -> None:
        if before is None:
            self._drop(member.key, member.ifindex)
        else:
            self._attachments.put(before)

    def forget(self, records: Sequence[Record]) -> None:
        """See Policies. If a change takes long, it is left to that."""
        patience_s = 0.0 if self._leaving else PATIENCE_S
        self._leaving.extend(records)
        if self._changed.acquire(timeout=patience_s):
            try:
                self._forget()
            finally:
                self._changed.release()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, and forget what others could not wait to forget."""
        with self._changed:
            self._forget()
            try:
                yield
            finally:
                self._forget()

    def _forget(self) -> None:
        """Forget what has left."""
        count, ips = 0, set[IPAddress]()
        while self._leaving:
            record = self._leaving.popleft()
            ips |= self._drop(_key(record), record.host_ifindex)
            count += 1
        if not count:
            return
        try:
            if not self._part(ips):
                self._apply()
        except WorkloadError as error:
            # The addresses have identities that nobody uses; the next
            # change removes them.
            log.warning("policies: forget %d attachments: %s", count, error)

    def _drop(self, key: Key, ifindex: int) -> set[IPAddress]:
        """Drop an attachment; return the addresses that nobody has then."""
        ips = set(self._attachments.ips(key, ifindex))
        is_last = self._attachments.drop(key, ifindex)
        self._ended.update(ips)
        if is_last:
            try:
                self._store.drop_workload(key[0])
            except OSError as error:
                log.warning("policies: %s", error)
        return ips

    # ---- Calls --------------------------------------------------------------

    def set_labels(self, workload_id: str, identity: Identity) -> None:
        """Say what a workload is. Raises NotAttached, Exhausted or
        KernelRefused.
        """
        with self._locked(), self._undoing() as undo:
            if not self._attachments.of(workload_id):
                raise NotAttached(f"workload {show(workload_id)}: is not attached")
            self._identify(workload_id, identity, undo)
            self._apply()
            self._notify()

    def _identify(
        self, workload_id: str, identity: Identity, undo: list[Callable[[], None]]
    ) -> None:
        """Keep what a workload is; append what takes it back to `undo`."""
        before = self._attachments.identity(workload_id)
        if before == identity:
            return
        was = self._attachments.is_identified(workload_id)

        def back() -> None:
            # Files last: what refused the change may refuse this, too.
            if was:
                self._attachments.identify(workload_id, before)
                self._write(workload_id, before)
            else:
                self._attachments.disown(workload_id)
                self._store.drop_workload(workload_id)

        undo.append(back)
        self._write(workload_id, identity)
        self._attachments.identify(workload_id, identity)

    def _write(self, workload_id: str, identity: Identity) -> None:
        known = identities.message_of(identity) if identity.known else None
        self._store.put_workload(pb.SetLabelsRequest(workload_id=workload_id, identity=known))

    def set_policies(self, source: Source) -> None:
        """Replace a source's policies. Raises FailedPrecondition if the
        generation is older, Exhausted, KernelRefused.
        """
        with self._locked(), self._undoing() as undo:
            before = self._sources.get(source.name)
            if before is not None and source.generation < before.generation:
                raise FailedPrecondition(
                    f"generation {source.generation}: the source {source.name} has set "
                    f"{before.generation} before"
                )

            def back() -> None:
                if before is None:
                    self._sources.pop(source.name, None)
                    self._store.drop_source(source.name)
                else:
                    self._sources[source.name] = before
                    self._store.put_source(messages.request(before))

            undo.append(back)
            lost, self._lost = self._lost, False
            undo.append(lambda: setattr(self, "_lost", lost))
            self._store.put_source(messages.request(source))
            self._sources[source.name] = source
            self._apply()
            if lost:
                self._store.complete()
            self._notify()

    def replace_policies(self, source: Source) -> None:
        """Do as set_policies, for a source that counts no generations."""
        with self._locked():
            before = self._sources.get(source.name)
            if before is None and not source.policies and not source.namespaces:
                return  # it says nothing, and has not before
            # Somebody may have set the last one in the name of this source.
            generation = 1 if before is None else min(before.generation + 1, GENERATION_MAX)
        self.set_policies(replace(source, generation=generation))

    def has_source(self, name: str) -> bool:
        """Return whether a source has set policies, also before a restart."""
        with self._locked():
            return name in self._sources

    def state(self) -> State:
        """Return the present state."""
        with self._locked():
            return self._state()

    def states(self, is_wanted: Callable[[], bool]) -> Iterator[State]:
        """Yield the present state, and the latest one after each change, while
        `is_wanted` returns true; see `wake`.
        """
        seen = -1
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._version != seen or not is_wanted())  # noqa: B023
                if not is_wanted():
                    return
                state = self._state()
            seen = state.version
            yield state

    def wake(self) -> None:
        """Have `states` ask again whether it is wanted."""
        with self._changed:
            self._changed.notify_all()

    def _state(self) -> State:
        sources = tuple(self._sources[name] for name in sorted(self._sources))
        policies = tuple(merged(sources))
        return State(
            self._version, sources, policies, self._tables, tuple(self._attachments.unknown())
        )

    def ends(self, workload_id: str, if_name: str = "") -> list[Member]:
        """Return a workload's attachments, or the one of a name. Raises
        NotAttached if there is none.
        """
        with self._locked():
            found = [
                one for one in self._attachments.of(workload_id) if if_name in ("", one.key[1])
            ]
        if not found:
            of = f" by {show(if_name)}" if if_name else ""
            raise NotAttached(f"workload {show(workload_id)}: is not attached{of}")
        return found

    def evaluator(self) -> Evaluator:
        """Return what judges connections by the present policies. Raises
        Unavailable if nobody knows what they say.
        """
        with self._locked():
            if self._lost:
                raise Unavailable(f"policies: {LOST}")
            return self._evaluate()

    def is_loaded(self) -> bool:
        """Return whether the kernel has policies if it should, by a look at one
        element. Raises KernelRefused.
        """
        with self._locked():
            if self._lost:
                return True
            if not self._opened or self._loaded is None or self._uncut:
                return False
            return self._kernel.policed() is self._has_policies()

    def distrust(self) -> None:
        """Have the next repair judge all tracked flows."""
        with self._locked():
            if self._has_policies():
                self._uncut = self._uncut or "flows may live on that began without rules"

    def differs(self) -> str:
        """Return how the kernel's tables differ from what they should be, for
        people, or "". Raises KernelRefused.
        """
        with self._locked():
            if not self._opened:
                return "what was kept of policies has not been read"
            if self._lost:
                return ""
            loaded = self._kernel.read()
            if loaded is None and self._has_policies():
                return "the elements of policies are missing"
            if self._kernel.policed() is not self._has_policies():
                return f"policies are switched {'off' if self._has_policies() else 'on'}"
            if loaded is not None and (differs := words(difference(loaded, self._tables))):
                return differs
            return self._uncut

    def repair(self) -> str:
        """Have the kernel's tables as they should be; return what differed, for
        people, or "". Raises KernelRefused.
        """
        with self._locked():
            self._loaded = None
            return self._apply()

    # ---- Tables -------------------------------------------------------------

    @contextmanager
    def _undoing(self) -> Iterator[list[Callable[[], None]]]:
        """Take back what was done if the block fails, last first."""
        undo: list[Callable[[], None]] = []
        self._open()
        try:
            yield undo
        except BaseException as error:
            for back in reversed(undo):
                try:
                    back()
                except OSError as failed:
                    log.error("policies: take back a change: %s", failed)
            self._evaluator = None
            if isinstance(error, OSError):
                raise KernelRefused(f"keep policies: {error}") from error
            raise

    def _apply(self) -> str:
        """Compile the world, and change the kernel's tables; return what was
        changed, for people.
        """
        self._open()
        self._evaluator = None
        if self._lost:
            # What is in force stays so; addresses without an identity, which
            # new workloads have, are refused.
            self._conditions.set(CONDITION, LOST)
            return ""
        known, self._loaded = self._loaded, None
        loaded = self._kernel.read() if known is None else known
        wanted = self._compile(loaded or _NOTHING, known)
        change = difference(loaded or _NOTHING, wanted)
        policed = self._has_policies()
        was = loaded is not None and (self._kernel.policed() if known is None else self._policed)
        if loaded is None and not policed:
            # The tables may not be there yet, and nothing is wanted.
            if self._kernel.policed():
                self._kernel.replace(_NOTHING, policed=False)
        elif change or was is not policed:
            try:
                if loaded is None:
                    self._kernel.replace(wanted, policed=policed)
                else:
                    self._change(change, wanted, policed=policed, was=was)
            except BaseException:
                # It knows tables that the kernel has not.
                self._compiler = None
                raise
        # A service that was killed may have changed them, and cut nothing.
        if policed and (change or known is None or not was):
            self._revoke(change, wanted, everything=known is None or not was)
        if loaded is not None or policed:
            self._loaded, self._policed = wanted, policed
        self._tables = wanted
        if self._uncut:
            self._conditions.set(CONDITION, self._uncut)
        else:
            self._conditions.clear(CONDITION)
        if change:
            self._notify()
        return words(change)

    def _change(self, change: Difference, wanted: Tables, *, policed: bool, was: bool) -> None:
        if was and not policed:
            # Else packets that are being judged would find no rows.
            self._kernel.apply(_NOTHING, _NOTHING, policed=False, present=None)
        rows = replace(change.removed, identities={}) != _NOTHING
        present = set(wanted.identities.values()) if rows else None
        self._kernel.apply(change.removed, change.added, policed=policed, present=present)

    def _revoke(self, change: Difference, wanted: Tables, *, everything: bool) -> None:
        """Cut what a change forbids; everything: and all others before it."""
        changed = set(wanted.identities.values()) if everything else touched(change)
        if not changed and not everything:
            return
        ended = self._nobodys() if everything else ()
        # Until it has ended, also if it ends by an error.
        before, self._uncut = self._uncut, self._uncut or "flows may live on that are not allowed"
        try:
            cut = self._kernel.revoke(changed, Lookup(wanted), every=everything, ended=ended)
        except WorkloadError as error:
            # New flows are judged; only old ones live on, until a repair.
            self._uncut = f"flows that are not allowed any more are not cut: {error}"
            log.error("policies: %s", self._uncut)
            return
        self._uncut = "" if everything else before
        if everything:
            self._ended.clear()
        if cut:
            log.info("policies: cut %d flows that are not allowed any more", cut)

    def _has_policies(self) -> bool:
        return any(source.policies for source in self._sources.values())

    def _notify(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _compile(self, loaded: Tables, known: Tables | None) -> Tables:
        """Compile the world; without policies it is nothing. Identities stay
        what they are in the kernel. known: what `_loaded` was.
        """
        if not self._has_policies():
            self._compiler = None
            return _NOTHING
        if self._compiler is None:
            numbers = dict(loaded.identities)
            self._compiler = Compiler(Numbers(numbers, max(numbers.values(), default=0)))
        try:
            return self._compiler.update(self.world()).tables
        except PolicyError as error:
            self._loaded = known
            raise Exhausted(str(error)) from error

    def world(self) -> World:
        """Return all that verdicts depend on."""
        sources = self._sources.values()
        return World(
            tuple(policy for _, policy in merged(sources)),
            namespaces(sources),
            tuple(map(self._attachments.workload, self._attachments)),
        )

    def _evaluate(self) -> Evaluator:
        if self._evaluator is None:
            self._evaluator = Evaluator(self.world())
        return self._evaluator


def touched(change: Difference) -> set[Number]:
    """Return the identities whose flows may have lost a permission, or have
    another mark by now.
    """
    removed, added = change.removed, change.added
    found = {number for pair in removed.pairs for number in pair}
    for one in removed.pair_ports:
        found |= {one.source, one.destination}
    found |= {one.identity for one in removed.world_egress | removed.world_ingress}
    found |= added.isolated_egress | added.isolated_ingress
    # An address that is not in both comes or goes with its workload.
    found |= {number for ip, number in removed.identities.items() if ip in added.identities}
    return found


def words(change: Difference) -> str:
    """Say how many elements a difference has."""
    sides = []
    for word, tables in (("too many", change.removed), ("missing", change.added)):
        counts = {
            "identities": len(tables.identities),
            "isolated": len(tables.isolated_egress) + len(tables.isolated_ingress),
            "pairs": len(tables.pairs) + len(tables.pair_ports),
            "world ranges": len(tables.world_egress) + len(tables.world_ingress),
        }
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        if said:
            sides.append(f"{word}: {said}")
    return "; ".join(sides)


def _member(record: Record) -> Member:
    return Member(_key(record), record.host_ifindex, record.ips)


def _key(record: Record) -> Key:
    return record.workload_id, record.if_name


def _kept_source(name: str, request: pb.SetPoliciesRequest | None) -> Source:
    """Return a source as it was kept."""
    if request is None or request.source != name:
        return unreadable(name, "the file that keeps them cannot be read; set them again")
    try:
        return wire.source_of(request)
    except InvalidArgument as error:
        log.error("policies of %s: %s", name, error)
        return unreadable(name, f"they were kept by another version: {error}; set them again")
