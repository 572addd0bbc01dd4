# SPDX-License-Identifier: Apache-2.0
"""The API's calls: what is whose, and in which order things happen.

An attachment's life, as the engine sees it (what is not in the table
below cannot happen, and is an AssertionError):

    (none) ─ reserve ─> ATTACHING ─ created ─> ATTACHED ─ remove ─> LEAVING
                            │                                        ^   │
                            └ undo failed ─> BROKEN ─── remove again ┘   │
                                               ^                         │
                                               └─── could not be removed ┘

Wherever the link is gone, the attachment is forgotten, and its addresses are
free.

Locks, taken in this order, each for as short as it may be:

    collection one Collect at a time; held across kernel work
    workload   one call a workload at a time; likewise. A Collect holds many,
               and waits for none while it holds another
    namespace  one attach a network namespace at a time; likewise
    mutex      the tables and the address pool; never across kernel work

so Status and List, which need only the mutex, always answer at once, and an
attachment that hangs in the kernel stops its own workload and nobody else.

What the tables hold is a copy of what the kernel knows: `start` reads it back.

A caller may stop to wait at any time. left_s, where it can be given, says for
how many seconds it still will, 0 when it does not. It is asked before anything
is begun, and not after: what was begun is finished, and found by the retry.
"""

import contextlib
import enum
import itertools
import logging
import math
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath import names
from metropolis.node.core.network.workloads.datapath.interface import (
    Datapath,
    Held,
    IndexTaken,
    Netns,
    NoIPv6,
    Record,
    RouteTaken,
    UndoFailed,
)
from metropolis.node.core.network.workloads.engine.locks import Hold, KeyedLocks
from metropolis.node.core.network.workloads.engine.pool import AddressPool
from metropolis.node.core.network.workloads.engine.watchers import (
    BACKLOG,
    Event,
    Kind,
    Watcher,
    Watchers,
)
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    GivenUp,
    InvalidArgument,
    KernelRefused,
    NotAttached,
    NotFound,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import (
    MTU_MIN,
    AttachIntent,
    Attachment,
    Checked,
    Collected,
    Finding,
    IPAddress,
    IPNetwork,
    first_hop,
    routes_of,
)
from metropolis.node.core.network.workloads.validate import check_attach, check_detach, show

log = logging.getLogger(__name__)

DEFAULT_MTU = 1500  # bytes
MTU_MAX = 65535  # what a veth takes

# Interface indexes are chosen here, since one that the kernel chooses would
# have to be asked for. High ones, which the kernel does not come to.
_INDEX_MIN = 1 << 20
_INDEX_MAX = 1 << 30
_INDEX_ATTEMPTS = 8
_PEER_INDEX = 2  # the first after lo
# Metric of routes of a namespace's further interfaces: behind those of the
# first one (0, in IPv6 1024), ours or another plugin's, and different for each.
_FURTHER_METRIC = 2048

_COLLECT_AT_ONCE = 256  # workloads

_NOTE_HELD = "workloads"  # key of the note
_NO_IPV6 = (
    'switch IPv6 on, or set `ipv6: "optional"` in the node\'s network configuration, by which '
    "such workloads have IPv4 alone"
)

_NOT_RUNNING = "the workload network service is not running yet"


def _forever() -> float:
    return math.inf


class _State(enum.Enum):
    ATTACHING = enum.auto()
    ATTACHED = enum.auto()
    LEAVING = enum.auto()
    BROKEN = enum.auto()


_TRANSITIONS = {
    _State.ATTACHING: {_State.ATTACHED, _State.BROKEN},
    _State.ATTACHED: {_State.LEAVING},
    _State.BROKEN: {_State.LEAVING},
    _State.LEAVING: {_State.BROKEN},
}


@dataclass(slots=True, eq=False)
class _Entry:
    """gone: the link was removed while a call was busy with it. known: it is
    in the set that watchers have.
    """

    record: Record
    state: _State
    gone: bool = False
    known: bool = False

    def to(self, state: _State) -> None:
        assert state in _TRANSITIONS[self.state], (self.state, state)
        self.state = state


class _Turn:
    """The workload's lock, for a caller that still waits when it has it. Not
    a generator, as it is on the way of every call.
    """

    __slots__ = ("_hold", "_left_s")

    def __init__(self, hold: Hold[str], left_s: Callable[[], float]) -> None:
        self._hold = hold
        self._left_s = left_s

    def __enter__(self) -> None:
        self._hold.__enter__()
        try:
            _still_wanted(self._left_s)
        except BaseException:
            self._hold.__exit__(None, None, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hold.__exit__(kind, error, trace)


class Engine:
    """The service's logic; synchronous, for any number of threads.

    Every method but `start` and `close` raises errors of the WorkloadError
    family only.
    """

    def __init__(self, datapath: Datapath, conditions: Conditions | None = None) -> None:
        """conditions: what else of the node's network decides Status."""
        self._datapath = datapath
        self._conditions = conditions or Conditions()
        self._workloads = KeyedLocks[str]("workload")
        self._namespaces = KeyedLocks[int]("network namespace", waiters=64)
        self._collections = KeyedLocks[str]("garbage collection", waiters=1)
        self._start_lock = threading.Lock()
        self._started = False
        self._closed = False
        # All below: guarded by the mutex.
        self._mutex = threading.Lock()
        self._entries: dict[str, dict[str, _Entry]] = {}  # workload id, if_name
        self._by_index: dict[int, _Entry] = {}
        self._by_netns: dict[int, dict[str, _Entry]] = {}  # cookie, if_name
        self._pool = AddressPool()
        self._prefixes: tuple[
            tuple[IPNetwork, ...], tuple[IPAddress, ...], tuple[IPNetwork, ...]
        ] = ((), (), ())
        self._lacking = ""
        self._mtu = DEFAULT_MTU
        self._ipv6_optional = False
        self._held: dict[int, Held] = {}  # by host index
        self._indexes = _index_numbers()
        self._overruns = 0
        self._watchers = Watchers()
        self._attaching: Counter[str] = Counter()  # calls by workload
        # Workloads attached to since the Collect under way, if any, began.
        self._spared: set[str] | None = None

    # ---- Life ---------------------------------------------------------------

    def start(self) -> None:
        """Recover the attachments from the kernel; then calls are served.

        Raises KernelRefused, and may then be called again. Repeating it after
        success does nothing.
        """
        with self._start_lock:
            if self._closed:
                raise Unavailable("the workload network service was stopped")
            if self._started:
                return
            try:
                self._datapath.open(self._on_removed, self._on_overrun)
                scan = self._datapath.scan()
                with self._mutex:
                    for record in scan.complete:
                        self._add(_Entry(record, _State.ATTACHED, known=True))
                        for ip in record.ips:
                            self._pool.adopt(ip, _owner(record))
                    self._hold_back(scan.held)
                    self._pool.set_prefixes(*self._prefixes)
                    self._started = True
                self._datapath.watch()
            except BaseException:
                self._datapath.close()
                raise
        for repair in scan.repairs:
            done = f"not put back: {repair.error}" if repair.error else "put back"
            log.warning("%s; %s", repair.what, done)
        log.info(
            "recovered %d attachments (%d repairs); removed %s that never finished, "
            "%s that claimed what another has; left alone %s that look like ours",
            len(scan.complete),
            len(scan.repairs),
            _count(scan.half_made),
            _count(scan.duplicates),
            _count(scan.foreign),
        )
        self._note_held()

    def _hold_back(self, held: Sequence[Held]) -> None:
        """Hand out none of their addresses. Under the mutex."""
        used = {ip for entry in self._by_index.values() for ip in entry.record.ips}
        for one in held:
            ips = tuple(ip for ip in one.ips if ip not in used)
            used.update(ips)
            for ip in ips:
                self._pool.adopt(ip, f"link {show(one.name)}, which is left alone")
            self._held[one.ifindex] = replace(one, ips=ips)

    def _note_held(self) -> None:
        """Say which links are left alone, and why: in Status and in the log."""
        with self._mutex:
            held = tuple(self._held.values())
        newer = [one.name for one in held if one.newer]
        lost = [one.name for one in held if one.record is not None]
        others = [one.name for one in held if not one.newer and one.record is None]
        texts = [
            f"{_count(links)} {why}"
            for links, why in (
                (newer, "made by a newer version"),
                (lost, "of workloads whose id was lost with the link's alias"),
                (others, "of others, with routes of workloads"),
            )
            if links
        ]
        text = f"links left alone: {'; '.join(texts)}" if texts else ""
        self._conditions.note(_NOTE_HELD, text)
        if text:
            log.warning("%s", text)

    def close(self) -> None:
        """End the service; attachments stay. Calls after this are refused."""
        with self._start_lock:
            was_open, self._closed = self._started and not self._closed, True
            self._started = False
            if was_open:
                self._datapath.close()
        self._watchers.end("the workload network service has stopped")

    def set_prefixes(
        self,
        prefixes: Sequence[IPNetwork],
        reserved: Collection[IPAddress] = (),
        draining: Collection[IPNetwork] = (),
        *,
        lacking: str = "",
    ) -> None:
        """Replace the prefixes that new attachments get addresses of.

        Any time, from any thread; attachments are untouched. None: not ready.
        draining: prefixes that hand out nothing new; take them away when
        `in_use` says 0. lacking: why there is no prefix where there should be
        one, and so no new attachment. Raises InvalidArgument when two overlap,
        and changes nothing then.
        """
        with self._mutex:
            if self._started:
                self._pool.set_prefixes(prefixes, reserved, draining)
            else:
                # The pool looks at what is in use to choose where to begin.
                AddressPool().set_prefixes(prefixes, reserved, draining)
            self._prefixes = (tuple(prefixes), tuple(reserved), tuple(draining))
            self._lacking = lacking

    def in_use(self, prefix: IPNetwork) -> int:
        """How many addresses of the prefix attachments have."""
        with self._mutex:
            return self._pool.in_use(prefix)

    def set_mtu(self, mtu: int) -> None:
        """The MTU of new attachments, in bytes."""
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise InvalidArgument(f"mtu {mtu}: must be {MTU_MIN} to {MTU_MAX}")
        with self._mutex:
            self._mtu = mtu

    def set_ipv6_optional(self, optional: bool) -> None:
        """Whether workloads get IPv4 alone where IPv6 is switched off, instead
        of nothing.
        """
        with self._mutex:
            self._ipv6_optional = optional

    # ---- Calls --------------------------------------------------------------

    def status(self) -> None:
        """Raise Unavailable, saying why, unless an attach could be served and
        the node's network is as it should be.
        """
        if problems := self.problems():
            raise Unavailable("; ".join(dict.fromkeys(problems.values())))

    def problems(self) -> dict[str, str]:
        """Why the status is not OK, by name; none: it is."""
        problems = self._conditions.problems()
        try:
            self._can_attach()
        except Unavailable as error:
            # The same may be why there is no prefix, and a problem of the node.
            if str(error) not in problems.values():
                problems["attach"] = str(error)
        return problems

    def notes(self) -> dict[str, str]:
        """What is worth knowing of the node's network, by name."""
        notes = self._conditions.notes()
        try:
            self.check_room()
        except Exhausted as error:
            notes["addresses"] = str(error)
        return notes

    def check_room(self) -> None:
        """Raise Exhausted when an attach would get no address of a family that
        there are prefixes of.
        """
        with self._mutex:
            for version in self._versions():
                self._pool.check_room(version)

    def _can_attach(self) -> None:
        if not self._started:
            raise Unavailable(_NOT_RUNNING)
        with self._mutex:
            if self._lacking:
                raise Unavailable(self._lacking)
            versions = self._versions()
            if not self._pool.versions:
                raise Unavailable("the node has no address prefix for workloads yet")
            if not versions or (versions != self._pool.versions and not self._ipv6_optional):
                raise Unavailable(
                    "the node has an IPv6 prefix for workloads, and its kernel has no IPv6: "
                    + (_NO_IPV6 if versions else "switch it on, or give the node an IPv4 prefix")
                )

    def _refuse_unless_ready(self) -> None:
        """Raise Unavailable when no attach can be served. What is wrong with
        the node's network is in it, as it may be the reason.
        """
        try:
            self._can_attach()
        except Unavailable as error:
            problems = self._conditions.problems().values()
            raise Unavailable("; ".join(dict.fromkeys((str(error), *problems)))) from error

    def _versions(self) -> tuple[int, ...]:
        """The IP versions that workloads can have. Under the mutex."""
        return tuple(
            [version for version in self._pool.versions if version == 4 or self._datapath.ipv6]
        )

    def attach(self, intent: AttachIntent, *, left_s: Callable[[], float] = _forever) -> Attachment:
        """Make the attachment, or return the one that the same request made.

        All or nothing.
        """
        check_attach(intent)
        if not self._started:
            self._refuse_unless_ready()
        self._begin_attach(intent.workload_id)
        try:
            with self._turn(intent.workload_id, left_s):
                return self._attach_in_turn(intent, left_s)
        finally:
            self._end_attach(intent.workload_id)

    def detach(
        self,
        workload_id: str,
        netns_path: str = "",
        if_name: str = "",
        *,
        left_s: Callable[[], float] = _forever,
    ) -> None:
        """Remove a workload's interface, or all; what is not there is no error.

        A path of another namespace than the attachment's leaves it alone; one
        that is gone does not count. Works without prefixes, and before `start`.
        """
        check_detach(workload_id, netns_path, if_name)
        if not self._started:
            self.start()
        with self._turn(workload_id, left_s):
            self._claim_held(workload_id)
            with self._mutex:
                entries = [
                    entry
                    for name, entry in self._entries.get(workload_id, {}).items()
                    if if_name in ("", name)
                ]
            if entries and netns_path:
                cookie = self._cookie_of(netns_path)
                if cookie is not None:
                    entries = [one for one in entries if one.record.netns_cookie == cookie]
            self._remove(entries)

    def check(
        self,
        workload_id: str,
        if_name: str = "",
        netns_path: str = "",
        *,
        left_s: Callable[[], float] = _forever,
    ) -> list[Checked]:
        """Compare a workload's interface, or all of them, with the kernel.

        Changes nothing. netns_path: of the namespace, so that it can be
        entered. Raises NotAttached when there is nothing to compare.
        """
        check_detach(workload_id, netns_path, if_name)
        if not self._started:
            raise Unavailable(_NOT_RUNNING)
        with self._turn(workload_id, left_s), contextlib.ExitStack() as stack:
            self._claim_held(workload_id)
            with self._mutex:
                records = [
                    entry.record
                    for name, entry in self._entries.get(workload_id, {}).items()
                    if if_name in ("", name) and entry.state is _State.ATTACHED
                ]
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
            found = [self._check(record, netns, netns_path) for record in records]
        return [replace(one, findings=one.findings + problems) for one in found]

    def collect(
        self,
        is_live: Callable[[str, str], bool],
        *,
        whose: Callable[[str], bool] = lambda _: True,
        left_s: Callable[[], float] = _forever,
    ) -> Collected:
        """Remove what is not live, but never what an attach has to do with.

        whose: of an owner, "" where it is not known; the others are left alone.
        is_live: of a workload id and an interface name; it is asked twice, when
        the collection begins and right before the removal, and by this thread.
        Spared are workloads that an attach is under way for, or was at any
        time since the collection began. Works before `start`.
        """
        if not self._started:
            self.start()
        with self._collections.hold("", left_s=left_s()):
            with self._mutex:
                self._spared = set(self._attaching)
                seen = [
                    entry
                    for entries in self._entries.values()
                    for entry in entries.values()
                    if entry.state in (_State.ATTACHED, _State.BROKEN) and whose(entry.record.owner)
                ]
            try:
                stale: dict[str, list[_Entry]] = {}
                for entry in seen:
                    workload_id = entry.record.workload_id
                    if not is_live(workload_id, entry.record.if_name):
                        stale.setdefault(workload_id, []).append(entry)
                return self._collect(stale, is_live, left_s)
            finally:
                with self._mutex:
                    self._spared = None

    def repair(self, allow: Allow) -> Sequence[Repair]:
        """Put back what others changed of the attachments; see ward.Ward.

        Of those that a call is busy with nothing is touched. Raises
        KernelRefused when the kernel does not say what there is.
        """
        if not self._started:
            return ()
        with self._mutex:
            records = [
                entry.record
                for entry in self._by_index.values()
                if entry.state is _State.ATTACHED and entry.known
            ]
        return self._datapath.repair(records, allow, self._hold_idle)

    @contextlib.contextmanager
    def _hold_idle(self, record: Record) -> Iterator[bool]:
        """Keep calls away from an attachment, if none is busy with it."""
        try:
            hold = self._workloads.hold(record.workload_id, left_s=0.0)
            hold.__enter__()
        except GivenUp, Unavailable:
            yield False
            return
        try:
            with self._mutex:
                entry = self._by_index.get(record.host_ifindex)
                idle = entry is not None and entry.state is _State.ATTACHED
                idle = idle and entry is not None and entry.record is record
            yield idle
        finally:
            hold.__exit__(None, None, None)

    def watch(self, backlog: int = BACKLOG) -> Watcher:
        """All attachments, and then every change; see watchers.

        To be left by `with`. backlog: how many changes it may be behind.
        """
        if not self._started:
            raise Unavailable(_NOT_RUNNING)
        with self._mutex:
            present = [
                _attachment(entry.record)
                for entries in self._entries.values()
                for entry in entries.values()
                if entry.known
            ]
            return self._watchers.add(present, backlog)

    # ---- Steps --------------------------------------------------------------

    def _turn(self, workload_id: str, left_s: Callable[[], float]) -> _Turn:
        """Hold the workload for a caller that still waits when it has it."""
        return _Turn(self._workloads.hold(workload_id, left_s=left_s()), left_s)

    def _begin_attach(self, workload_id: str) -> None:
        """An attach is under way: no Collect touches the workload."""
        with self._mutex:
            self._attaching[workload_id] += 1
            if self._spared is not None:
                self._spared.add(workload_id)

    def _end_attach(self, workload_id: str) -> None:
        with self._mutex:
            left = self._attaching[workload_id] - 1
            if left:
                self._attaching[workload_id] = left
            else:
                del self._attaching[workload_id]

    def _claim_held(self, workload_id: str) -> None:
        """Adopt the links that lost this id: their names are hashes of it."""
        if not self._held:
            return
        claimed = False
        with self._mutex:
            for index, held in list(self._held.items()):
                record = held.record
                if record is None or held.ips != record.ips:
                    continue
                if held.name == names.host_interface(workload_id, record.if_name):
                    del self._held[index]
                    entry = _Entry(replace(record, workload_id=workload_id), _State.ATTACHED)
                    entry.known = True
                    self._add(entry)
                    self._tell(Kind.ATTACHED, entry)
                    claimed = True
        if claimed:
            log.info("workload %s has claimed what had lost its id", show(workload_id))
            self._note_held()

    def _find(self, intent: AttachIntent) -> _Entry | None:
        with self._mutex:
            return self._entries.get(intent.workload_id, {}).get(intent.if_name)

    def _cookie_of(self, path: str) -> int | None:
        """None when there is no such namespace any more."""
        try:
            with self._datapath.open_netns(path) as netns:
                return netns.cookie
        except NotFound, InvalidArgument:
            return None

    def _check(self, record: Record, netns: Netns | None, path: str) -> Checked:
        if netns is None or netns.cookie == record.netns_cookie:
            findings = self._datapath.check(record, netns)
            return Checked(_attachment(record), findings, entered=netns is not None)
        expected, found = f"cookie {record.netns_cookie}", f"cookie {netns.cookie}"
        other = Finding(f"network namespace at {show(path)}", expected, found)
        return Checked(
            _attachment(record), (other, *self._datapath.check(record, None)), entered=False
        )

    def _attach_in_turn(self, intent: AttachIntent, left_s: Callable[[], float]) -> Attachment:
        self._claim_held(intent.workload_id)
        known = self._find(intent)
        if known is None:
            self._refuse_unless_ready()
        with self._datapath.open_netns(intent.netns_path) as netns:
            if self._datapath.is_home(netns):
                raise InvalidArgument(
                    f"netns.netns_path {show(intent.netns_path)}: is the namespace of the host"
                )
            if known is not None and known.state is _State.BROKEN:
                self._remove([known])
            elif known is not None and not known.gone:
                return _same_or_raise(known.record, intent, netns.cookie)
            with self._namespaces.hold(netns.cookie, left_s=left_s()):
                _still_wanted(left_s)
                return self._attach(intent, netns)

    def _attach(self, intent: AttachIntent, netns: Netns) -> Attachment:
        with self._mutex:
            entry, metric = self._reserve(intent, netns.cookie)
            overruns = self._overruns
        try:
            self._create(entry, netns, metric, intent.requested_ips)
            if overruns != self._overruns:
                # Its removal may be among the events that were lost.
                entry.gone = entry.record.host_ifindex not in self._datapath.present()
        except UndoFailed:
            self._settle(entry, _State.BROKEN)
            raise
        except BaseException:
            self._forget(entry)
            raise
        if not self._settle(entry, _State.ATTACHED):
            raise NotFound(
                f"attach {show(intent.workload_id)}: the network namespace was removed meanwhile"
            )
        return _attachment(entry.record)

    def _reserve(self, intent: AttachIntent, cookie: int) -> tuple[_Entry, int]:
        """Take all that the attachment needs, or nothing. Under the mutex."""
        there = self._by_netns.get(cookie, {})
        if intent.if_name in there:
            other = there[intent.if_name].record.workload_id
            raise AlreadyExists(
                f"if_name {show(intent.if_name)}: is taken in the network namespace by "
                f"workload {show(other)}"
            )
        owner = f"workload {show(intent.workload_id)}"
        ips: list[IPAddress] = []
        try:
            for ip in intent.requested_ips:
                self._pool.take_requested(ip, owner)
                ips.append(ip)
            for version in self._versions():
                if all(ip.version != version for ip in ips):
                    ips.append(self._pool.take(version, owner))
        except WorkloadError:
            for ip in ips:
                self._pool.release(ip)
            raise
        peers = {entry.record.peer_ifindex for entry in there.values()}
        peer = next(index for index in range(_PEER_INDEX, _INDEX_MIN) if index not in peers)
        record = Record(
            workload_id=intent.workload_id,
            if_name=intent.if_name,
            netns_cookie=cookie,
            host_interface=names.host_interface(intent.workload_id, intent.if_name),
            host_ifindex=self._free_index(),
            peer_ifindex=peer,
            mac=intent.requested_mac or _random_mac(),
            mtu=self._mtu,
            ips=tuple(sorted(ips, key=lambda ip: ip.version)),
            request=names.digest(intent),
            owner=intent.owner,
        )
        entry = _Entry(record, _State.ATTACHING)
        self._add(entry)
        return entry, _FURTHER_METRIC + peer if len(there) > 1 else 0

    def _create(self, entry: _Entry, netns: Netns, metric: int, asked: Sequence[IPAddress]) -> None:
        for _ in range(_INDEX_ATTEMPTS):
            try:
                self._datapath.create(netns, entry.record, metric=metric)
                return
            except IndexTaken:
                # By a link of somebody else, here or in the namespace.
                self._renew(entry, peer_ifindex=_random_index())
            except NoIPv6 as error:
                self._without_ipv6(entry, asked, error)
            except RouteTaken:
                # By an interface of another plugin: its route is the first.
                if metric:
                    raise
                metric = _FURTHER_METRIC + entry.record.peer_ifindex
                self._renew(entry)
        raise KernelRefused(
            f"attach {show(entry.record.workload_id)}: found no free interface index in "
            f"{_INDEX_ATTEMPTS} attempts"
        )

    def _renew(self, entry: _Entry, **changes: Any) -> None:
        """For another attempt: also another index, since that of the last one
        may still be told to be gone.
        """
        with self._mutex:
            del self._by_index[entry.record.host_ifindex]
            entry.record = replace(entry.record, host_ifindex=self._free_index(), **changes)
            entry.gone = False
            self._by_index[entry.record.host_ifindex] = entry

    def _without_ipv6(self, entry: _Entry, asked: Sequence[IPAddress], error: NoIPv6) -> None:
        """Make it one of IPv4 alone; or raise, when it must not be."""
        ips = entry.record.ips
        if not self._ipv6_optional:
            raise KernelRefused(f"{error}; {_NO_IPV6}") from error
        if ips[0].version == 6 or any(ip.version == 6 for ip in asked):
            raise KernelRefused(f"{error}; and IPv6 is all there is, or was asked for") from error
        with self._mutex:
            self._pool.release(ips[1])
        self._renew(entry, ips=ips[:1])

    def _remove(self, entries: Sequence[_Entry]) -> None:
        with self._mutex:
            entries = [entry for entry in entries if not entry.gone]
            for entry in entries:
                entry.to(_State.LEAVING)
        if not entries:
            return
        try:
            self._datapath.remove([entry.record for entry in entries])
        except BaseException:
            for entry in entries:
                self._settle(entry, _State.BROKEN)
            raise
        for entry in entries:
            self._forget(entry)

    def _collect(
        self,
        stale: dict[str, list[_Entry]],
        is_live: Callable[[str, str], bool],
        left_s: Callable[[], float],
    ) -> Collected:
        """Many at a time where nobody else is busy, then the others."""
        collected = Collected((), ())
        busy: dict[str, list[_Entry]] = {}
        for some in itertools.batched(stale.items(), _COLLECT_AT_ONCE, strict=False):
            _still_wanted(left_s)
            with contextlib.ExitStack() as stack:
                idle: list[_Entry] = []
                for workload_id, entries in some:
                    try:
                        stack.enter_context(self._workloads.hold(workload_id, left_s=0.0))
                        idle += entries
                    except GivenUp, Unavailable:
                        busy[workload_id] = entries
                collected = _sum(collected, self._collect_held(idle, is_live))
        for workload_id, entries in busy.items():
            if not self._unspared(entries):
                continue  # wait for no attach
            try:
                with self._turn(workload_id, left_s):
                    collected = _sum(collected, self._collect_held(entries, is_live))
            except Unavailable as error:
                failed = tuple((_attachment(entry.record), str(error)) for entry in entries)
                collected = _sum(collected, Collected((), failed))
        return collected

    def _collect_held(
        self, entries: Sequence[_Entry], is_live: Callable[[str, str], bool]
    ) -> Collected:
        """Remove those that still are what was seen. Their workloads are held,
        so an attach that is not spared by now comes after.
        """
        entries = [e for e in entries if not is_live(e.record.workload_id, e.record.if_name)]
        entries = self._unspared(entries)
        try:
            self._remove(entries)
            return Collected(tuple(_attachment(entry.record) for entry in entries), ())
        except WorkloadError:
            # Some of them, it is not known which: each on its own.
            removed: list[Attachment] = []
            remaining: list[tuple[Attachment, str]] = []
            for entry in entries:
                try:
                    self._remove([entry])
                    removed.append(_attachment(entry.record))
                except WorkloadError as error:
                    remaining.append((_attachment(entry.record), str(error)))
            return Collected(tuple(removed), tuple(remaining))

    def _unspared(self, entries: Sequence[_Entry]) -> Sequence[_Entry]:
        """Those that are there and that no attach has to do with."""
        with self._mutex:
            spared = self._spared or ()
            return [e for e in entries if not e.gone and e.record.workload_id not in spared]

    def _settle(self, entry: _Entry, state: _State) -> bool:
        """End a step in this state; False, and dropped, if the link is gone."""
        with self._mutex:
            if not entry.gone:
                entry.to(state)
                if state is _State.ATTACHED:
                    entry.known = True
                    self._tell(Kind.ATTACHED, entry)
                return True
            self._drop(entry)
            return False

    def _forget(self, entry: _Entry) -> None:
        with self._mutex:
            self._drop(entry)

    # ---- Tables, under the mutex -------------------------------------------

    def _add(self, entry: _Entry) -> None:
        record = entry.record
        self._entries.setdefault(record.workload_id, {})[record.if_name] = entry
        self._by_netns.setdefault(record.netns_cookie, {})[record.if_name] = entry
        self._by_index[record.host_ifindex] = entry

    def _drop(self, entry: _Entry) -> None:
        record = entry.record
        if self._by_index.pop(record.host_ifindex, None) is None:
            return
        entry.gone = True
        _discard(self._entries, record.workload_id, record.if_name)
        _discard(self._by_netns, record.netns_cookie, record.if_name)
        if entry.known:
            left = entry.state is _State.LEAVING
            self._tell(Kind.DETACHED if left else Kind.LOST, entry)
        for ip in record.ips:
            self._pool.release(ip)

    def _tell(self, kind: Kind, entry: _Entry) -> None:
        if self._watchers:
            self._watchers.publish(Event(kind, _attachment(entry.record)))

    def _free_index(self) -> int:
        return next(index for index in self._indexes if index not in self._by_index)

    # ---- Removals that we did not ask for ----------------------------------

    def _on_removed(self, ifindex: int) -> None:
        with self._mutex:
            held = self._held.pop(ifindex, None)
            for ip in held.ips if held is not None else ():
                self._pool.release(ip)
            entry = self._by_index.get(ifindex)
            if entry is not None and entry.state in (_State.ATTACHING, _State.LEAVING):
                entry.gone = True  # the call that is busy with it goes on
                return
            if entry is not None:
                self._drop(entry)
        if held is not None:
            self._note_held()
        if entry is not None:
            log.info(
                "%s of %s is gone with its network namespace",
                show(entry.record.if_name),
                _owner(entry.record),
            )

    def _on_overrun(self) -> None:
        """Removals were missed: find out which. What is being attached now is
        looked at by its own call.
        """
        with self._mutex:
            self._overruns += 1
            before = [index for index, e in self._by_index.items() if e.state is _State.ATTACHED]
            before += self._held
        present = self._datapath.present()
        missing = [index for index in before if index not in present]
        log.warning("link events were lost; %d attachments were gone", len(missing))
        for index in missing:
            self._on_removed(index)

    # Last, since within the class its name hides the type's.

    def list(self, workload_id: str = "") -> list[Attachment]:
        """The attachments, of one workload or all. Raises Unavailable before
        they are recovered: none would not be true.
        """
        if not self._started and not self._closed:
            raise Unavailable(_NOT_RUNNING)
        with self._mutex:
            chosen = [self._entries.get(workload_id, {})] if workload_id else self._entries.values()
            records = [
                entry.record
                for entries in chosen
                for entry in entries.values()
                if entry.state is _State.ATTACHED
            ]
        return [_attachment(record) for record in records]


def _still_wanted(left_s: Callable[[], float]) -> None:
    if left_s() <= 0:
        raise GivenUp("the caller does not wait any more; nothing was begun")


def _sum(one: Collected, other: Collected) -> Collected:
    return Collected(one.removed + other.removed, one.remaining + other.remaining)


def _discard[K](table: dict[K, dict[str, _Entry]], key: K, name: str) -> None:
    inner = table.get(key)
    if inner is not None:
        inner.pop(name, None)
        if not inner:
            del table[key]


def _count(links: Sequence[str]) -> str:
    """`3 (a, b, c)`, of many the first."""
    shown = ", ".join(show(name) for name in links[:8])
    more = ", ..." if len(links) > 8 else ""
    return f"{len(links)} ({shown}{more})" if links else "0"


def _owner(record: Record) -> str:
    return f"workload {show(record.workload_id)}"


def _random_mac() -> bytes:
    """A locally administered unicast address."""
    drawn = secrets.token_bytes(6)
    return bytes([drawn[0] & 0xFC | 0x02]) + drawn[1:]


def _random_index() -> int:
    return _INDEX_MIN + secrets.randbelow(_INDEX_MAX - _INDEX_MIN)


def _index_numbers() -> Iterator[int]:
    """Indexes, one after the other from a random one, round and round."""
    index = _random_index()
    while True:
        yield index
        index = index + 1 if index + 1 < _INDEX_MAX else _INDEX_MIN


def _attachment(record: Record) -> Attachment:
    versions = [ip.version for ip in record.ips]
    return Attachment(
        workload_id=record.workload_id,
        if_name=record.if_name,
        ips=record.ips,
        mac=record.mac,
        host_interface=record.host_interface,
        host_ifindex=record.host_ifindex,
        mtu=record.mtu,
        gateways=tuple([first_hop(version) for version in versions]),
        routes=routes_of(versions),
        owner=record.owner,
    )


def _same_or_raise(record: Record, intent: AttachIntent, cookie: int) -> Attachment:
    """The attachment, if the intent is what made it."""
    operation = f"attach {show(intent.workload_id)}, interface {show(intent.if_name)}"
    if record.netns_cookie != cookie:
        raise AlreadyExists(f"{operation}: exists in another network namespace")
    if record.request != names.digest(intent):
        raise AlreadyExists(
            f"{operation}: exists with {', '.join(map(str, record.ips))}, MAC "
            f"{record.mac.hex(':')}, made by a request for other addresses or another MAC"
        )
    return _attachment(record)
