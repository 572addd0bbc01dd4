# SPDX-License-Identifier: Apache-2.0
"""Attach, Detach and List: what is whose, and in which order things happen.

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

    workload   one call a workload at a time; held across kernel work
    namespace  one attach a network namespace at a time; likewise
    mutex      the tables and the address pool; never across kernel work

so Status and List, which need only the mutex, always answer at once, and an
attachment that hangs in the kernel stops its own workload and nobody else.

What the tables hold is a copy of what the kernel knows: `start` reads it back.
"""

import enum
import logging
import secrets
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from metropolis.node.core.network.workloads import names
from metropolis.node.core.network.workloads.datapath import (
    Datapath,
    IndexTaken,
    Netns,
    Record,
    UndoFailed,
)
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    InvalidArgument,
    KernelRefused,
    NotFound,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.locks import KeyedLocks
from metropolis.node.core.network.workloads.model import (
    AttachIntent,
    Attachment,
    IPAddress,
    IPNetwork,
    first_hop,
    routes_of,
)
from metropolis.node.core.network.workloads.pool import AddressPool
from metropolis.node.core.network.workloads.validate import check_attach, check_detach, show

log = logging.getLogger(__name__)

DEFAULT_MTU = 1500  # bytes
MTU_MIN = 1280  # IPv6's, RFC 8200 section 5
MTU_MAX = 65535  # what a veth takes

# Interface indexes are chosen here, since one that the kernel chooses would
# have to be asked for. High ones, which the kernel does not come to.
_INDEX_MIN = 1 << 20
_INDEX_MAX = 1 << 30
_INDEX_ATTEMPTS = 8
_PEER_INDEX = 2  # the first after lo
# Metric of routes of a namespace's further interfaces: behind the first one's
# (0, in IPv6 1024), and different for each.
_FURTHER_METRIC = 2048


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


@dataclass(slots=True)
class _Entry:
    """gone: the link was removed while a call was busy with it."""

    record: Record
    state: _State
    gone: bool = False

    def to(self, state: _State) -> None:
        assert state in _TRANSITIONS[self.state], (self.state, state)
        self.state = state


class Engine:
    """The service's logic; synchronous, for any number of threads.

    Every method but `start` and `close` raises errors of the WorkloadError
    family only.
    """

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath
        self._workloads = KeyedLocks[str]("workload")
        self._namespaces = KeyedLocks[int]("network namespace", waiters=64)
        self._start_lock = threading.Lock()
        self._started = False
        self._closed = False
        # All below: guarded by the mutex.
        self._mutex = threading.Lock()
        self._entries: dict[str, dict[str, _Entry]] = {}  # workload id, if_name
        self._by_index: dict[int, _Entry] = {}
        self._by_netns: dict[int, dict[str, _Entry]] = {}  # cookie, if_name
        self._pool = AddressPool()
        self._prefixes: tuple[tuple[IPNetwork, ...], tuple[IPAddress, ...]] = ((), ())
        self._mtu = DEFAULT_MTU
        self._indexes = _index_numbers()
        self._overruns = 0

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
                        self._add(_Entry(record, _State.ATTACHED))
                        for ip in record.ips:
                            self._pool.adopt(ip, _owner(record))
                    self._pool.set_prefixes(*self._prefixes)
                    self._started = True
                self._datapath.watch()
            except BaseException:
                self._datapath.close()
                raise
        log.info(
            "recovered %d attachments (%d repaired); removed %s that never finished, "
            "%s that claimed what another has; left alone %s that look like ours",
            len(scan.complete),
            scan.repaired,
            _count(scan.half_made),
            _count(scan.duplicates),
            _count(scan.foreign),
        )

    def close(self) -> None:
        """End the service; attachments stay. Calls after this are refused."""
        with self._start_lock:
            was_open, self._closed = self._started and not self._closed, True
            self._started = False
            if was_open:
                self._datapath.close()

    def set_prefixes(
        self, prefixes: Sequence[IPNetwork], reserved: Collection[IPAddress] = ()
    ) -> None:
        """Replace the prefixes that new attachments get addresses of.

        Any time, from any thread; attachments are untouched. None: not ready.
        Raises InvalidArgument when two overlap, and changes nothing then.
        """
        with self._mutex:
            if self._started:
                self._pool.set_prefixes(prefixes, reserved)
            else:
                # The pool looks at what is in use to choose where to begin.
                AddressPool().set_prefixes(prefixes, reserved)
            self._prefixes = (tuple(prefixes), tuple(reserved))

    def set_mtu(self, mtu: int) -> None:
        """The MTU of new attachments, in bytes."""
        if not MTU_MIN <= mtu <= MTU_MAX:
            raise InvalidArgument(f"mtu {mtu}: must be {MTU_MIN} to {MTU_MAX}")
        with self._mutex:
            self._mtu = mtu

    # ---- Calls --------------------------------------------------------------

    def status(self) -> None:
        """Raise Unavailable, saying why, unless an attach could be served."""
        if not self._started:
            raise Unavailable("the workload network service is not running yet")
        with self._mutex:
            if not self._pool.versions:
                raise Unavailable("the node has no address prefix for workloads yet")

    def attach(self, intent: AttachIntent) -> Attachment:
        """Make the attachment, or return the one that the same request made.

        All or nothing.
        """
        check_attach(intent)
        if not self._started:
            raise Unavailable("the workload network service is not running yet")
        with self._workloads.hold(intent.workload_id):
            known = self._find(intent)
            if known is None:
                self.status()
            with self._datapath.open_netns(intent.netns_path) as netns:
                if self._datapath.is_home(netns):
                    raise InvalidArgument(
                        f"netns.netns_path {show(intent.netns_path)}: is the namespace of the host"
                    )
                if known is not None and known.state is _State.BROKEN:
                    self._remove([known])
                elif known is not None and not known.gone:
                    return _same_or_raise(known.record, intent, netns.cookie)
                with self._namespaces.hold(netns.cookie):
                    return self._attach(intent, netns)

    def detach(self, workload_id: str, netns_path: str = "", if_name: str = "") -> None:
        """Remove a workload's interface, or all; what is not there is no error.

        A path of another namespace than the attachment's leaves it alone; one
        that is gone does not count. Works without prefixes, and before `start`.
        """
        check_detach(workload_id, netns_path, if_name)
        if not self._started:
            self.start()
        with self._workloads.hold(workload_id):
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
            if entries:
                self._remove(entries)

    # ---- Steps --------------------------------------------------------------

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

    def _attach(self, intent: AttachIntent, netns: Netns) -> Attachment:
        with self._mutex:
            entry, metric = self._reserve(intent, netns.cookie)
            overruns = self._overruns
        try:
            self._create(entry, netns, metric)
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
            for version in self._pool.versions:
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
        )
        entry = _Entry(record, _State.ATTACHING)
        self._add(entry)
        return entry, _FURTHER_METRIC + peer if len(there) > 1 else 0

    def _create(self, entry: _Entry, netns: Netns, metric: int) -> None:
        for _ in range(_INDEX_ATTEMPTS):
            try:
                self._datapath.create(netns, entry.record, metric=metric)
                return
            except IndexTaken:
                # By a link of somebody else, here or in the namespace.
                with self._mutex:
                    del self._by_index[entry.record.host_ifindex]
                    entry.record = replace(
                        entry.record,
                        host_ifindex=self._free_index(),
                        peer_ifindex=_random_index(),
                    )
                    entry.gone = False
                    self._by_index[entry.record.host_ifindex] = entry
        raise KernelRefused(
            f"attach {show(entry.record.workload_id)}: found no free interface index in "
            f"{_INDEX_ATTEMPTS} attempts"
        )

    def _remove(self, entries: list[_Entry]) -> None:
        with self._mutex:
            entries = [entry for entry in entries if not entry.gone]
            for entry in entries:
                entry.to(_State.LEAVING)
        try:
            self._datapath.remove([entry.record for entry in entries])
        except BaseException:
            for entry in entries:
                self._settle(entry, _State.BROKEN)
            raise
        for entry in entries:
            self._forget(entry)

    def _settle(self, entry: _Entry, state: _State) -> bool:
        """End a step in this state; False, and dropped, if the link is gone."""
        with self._mutex:
            if not entry.gone:
                entry.to(state)
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
        for ip in record.ips:
            self._pool.release(ip)

    def _free_index(self) -> int:
        return next(index for index in self._indexes if index not in self._by_index)

    # ---- Removals that we did not ask for ----------------------------------

    def _on_removed(self, ifindex: int) -> None:
        with self._mutex:
            entry = self._by_index.get(ifindex)
            if entry is None:
                return
            if entry.state in (_State.ATTACHING, _State.LEAVING):
                entry.gone = True  # the call that is busy with it goes on
                return
            self._drop(entry)
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
        present = self._datapath.present()
        missing = [index for index in before if index not in present]
        log.warning("link events were lost; %d attachments were gone", len(missing))
        for index in missing:
            self._on_removed(index)

    # Last, since within the class its name hides the type's.

    def list(self, workload_id: str = "") -> list[Attachment]:
        """The attachments, of one workload or all."""
        with self._mutex:
            chosen = [self._entries.get(workload_id, {})] if workload_id else self._entries.values()
            records = [
                entry.record
                for entries in chosen
                for entry in entries.values()
                if entry.state is _State.ATTACHED
            ]
        return [_attachment(record) for record in records]


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
    return Attachment(
        workload_id=record.workload_id,
        if_name=record.if_name,
        ips=record.ips,
        mac=record.mac,
        host_interface=record.host_interface,
        host_ifindex=record.host_ifindex,
        mtu=record.mtu,
        gateways=tuple(first_hop(ip.version) for ip in record.ips),
        routes=routes_of(record.ips),
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
