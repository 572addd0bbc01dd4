# SPDX-License-Identifier: Apache-2.0
"""The attachments, and the owners of addresses, resources, indexes and names.

The content is a copy of the kernel's state: `adopt` fills it with the result of
a scan. Every public method takes the mutex itself and does no kernel work: the
ledger imports no netlink (build/lint checks that). So each method is atomic and
quick, but for two: `check_presence` calls its argument without the mutex, and
`collection` lasts as long as its `with` block.

Events are put into the watchers' queues under the mutex, too, so they have the
order of the steps.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from metropolis.node.core.network.workloads.datapath.interface import Held, Record
from metropolis.node.core.network.workloads.engine.entries import (
    BUSY,
    IN_USE,
    Entry,
    State,
    Tables,
    attachment_of,
    owner_text,
)
from metropolis.node.core.network.workloads.engine.held import HeldLinks
from metropolis.node.core.network.workloads.engine.numbers import (
    free_peer_index,
    further_metric,
    index_numbers,
    random_mac,
)
from metropolis.node.core.network.workloads.engine.pool import AddressPool
from metropolis.node.core.network.workloads.engine.protected import (
    ProtectedWorkloads,
    Protection,
)
from metropolis.node.core.network.workloads.engine.reservation import (
    Reservation,
    StillLeaving,
    unless,
)
from metropolis.node.core.network.workloads.engine.resources import Resources
from metropolis.node.core.network.workloads.engine.watchers import Event, Kind, Watcher, Watchers
from metropolis.node.core.network.workloads.errors import AlreadyExists, Exhausted
from metropolis.node.core.network.workloads.model import AttachIntent, IPAddress, IPNetwork
from metropolis.node.core.network.workloads.parts import Part
from metropolis.node.core.network.workloads.validate import check_families, check_mtu, show

type _Prefixes = tuple[Sequence[IPNetwork], Collection[IPAddress], Collection[IPNetwork]]


class Ledger:
    """See the module. Thread-safe; only it changes entries.

    Longer than other classes, since everything that needs the mutex is here.
    """

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        """parts: they say which resources an attachment needs."""
        self.watchers = Watchers()
        self._indexes = index_numbers()
        # The mutex guards all attributes below.
        self._mutex = threading.Lock()
        self._parts = parts
        self._clear()
        self._adopted = False
        self._prefixes: _Prefixes = ((), (), ())
        self._overruns = 0
        self._protected = ProtectedWorkloads()

    def _clear(self) -> None:
        self._tables = Tables()
        self._pool = AddressPool()
        self._resources = Resources(self._parts)
        self._held = HeldLinks(self._pool, self._resources)
        self._lost: dict[int, Entry] = {}  # not freed yet, by host index

    # ---- Recovery and settings ----------------------------------------------

    def adopt(
        self, complete: Iterable[Record], held: Iterable[Held], leaving: Iterable[Record] = ()
    ) -> list[Entry]:
        """Start with the result of a scan; also after a start that failed.
        Return the entries of what is leaving.
        """
        with self._mutex:
            self._clear()
            entries = [Entry(record, State.DETACHED) for record in leaving]
            for entry in (
                *(Entry(one, State.ATTACHED, announced=True) for one in complete),
                *entries,
            ):
                record = entry.record
                self._tables.add(entry)
                for ip in record.ips:
                    self._pool.adopt(ip, owner_text(record.workload_id))
                self._resources.adopt(record, owner_text(record.workload_id))
            used = {ip for entry in self._tables for ip in entry.record.ips}
            self._held.adopt(held, used)
            self._pool.set_prefixes(*self._prefixes)
            self._adopted = True
            return entries

    def set_prefixes(
        self,
        prefixes: Sequence[IPNetwork],
        reserved: Collection[IPAddress],
        draining: Collection[IPNetwork],
    ) -> None:
        """See Engine.set_prefixes."""
        with self._mutex:
            # A pool uses the addresses in use to choose where it begins. Before
            # these are known, prefixes are only validated.
            pool = self._pool if self._adopted else AddressPool()
            pool.set_prefixes(prefixes, reserved, draining)
            self._prefixes = (tuple(prefixes), tuple(reserved), tuple(draining))

    def in_use(self, prefix: IPNetwork) -> int:
        """Return how many addresses of the prefix are in use."""
        with self._mutex:
            return self._pool.in_use(prefix)

    @property
    def versions(self) -> tuple[int, ...]:
        """Return the IP versions that have a prefix."""
        with self._mutex:
            return self._pool.versions

    def check_room(self, *, ipv6: bool) -> None:
        """Raise Exhausted when a family has no address left, and will not have
        one when what is leaving is gone. ipv6: whether workloads can have IPv6.
        """
        with self._mutex:
            for version in self._usable_versions(ipv6=ipv6):
                try:
                    self._pool.check_room(version)
                except Exhausted:
                    if not self._leaving_with(lambda ip: ip.version == version):  # noqa: B023
                        raise

    # ---- Queries ------------------------------------------------------------

    def find(self, workload_id: str, if_name: str) -> Entry | None:
        """Return the entry of an interface, unless it is DETACHED."""
        with self._mutex:
            entry = self._tables.of_workload(workload_id).get(if_name)
            return None if entry is None or entry.state is State.DETACHED else entry

    def of_workload(self, workload_id: str, if_name: str = "") -> list[Entry]:
        """Return a workload's entries, or only that of one interface, without
        DETACHED ones.
        """
        return self._of_workload(workload_id, if_name, detached=False)

    def leaving(self, workload_id: str, if_name: str = "") -> list[Entry]:
        """Return a workload's DETACHED entries, or that of one interface."""
        return self._of_workload(workload_id, if_name, detached=True)

    def _of_workload(self, workload_id: str, if_name: str, *, detached: bool) -> list[Entry]:
        with self._mutex:
            return [
                entry
                for name, entry in self._tables.of_workload(workload_id).items()
                if if_name in ("", name) and (entry.state is State.DETACHED) is detached
            ]

    def attached(self, workload_id: str = "") -> list[Record]:
        """Return the records of attachments, of one workload or all."""
        with self._mutex:
            chosen: Iterable[Entry] = self._tables
            if workload_id:
                chosen = self._tables.of_workload(workload_id).values()
            return [one.record for one in chosen if one.state in IN_USE and not one.gone]

    @property
    def held(self) -> tuple[Held, ...]:
        """Return the links that are left alone."""
        with self._mutex:
            return tuple(self._held)

    def watch(self, backlog: int) -> Watcher:
        """Return a watcher that begins with what has been announced."""
        with self._mutex:
            present = [attachment_of(entry.record) for entry in self._tables if entry.announced]
            return self.watchers.add(present, backlog)

    # ---- The steps of an attach ---------------------------------------------

    def reserve(
        self,
        intent: AttachIntent,
        *,
        cookie: int,
        host_interface: str,
        mtu: int,
        ipv6: bool,
    ) -> Reservation:
        """Reserve all that the attachment needs, or nothing.

        cookie: its namespace's. mtu: the node's, in bytes. ipv6: whether the
        host has it.
        Raises AlreadyExists, Exhausted or InvalidArgument; StillLeaving if that
        may be over soon.
        """
        with self._mutex:
            neighbours = self._tables.in_netns(cookie)
            same = self._tables.of_workload(intent.workload_id)
            if leaving := _detached({*neighbours.values(), *same.values()}):
                raise StillLeaving(leaving)
            if taken := neighbours.get(intent.if_name):
                raise AlreadyExists(
                    f"if_name {show(intent.if_name)}: is taken in the network namespace by "
                    f"{owner_text(taken.record.workload_id)}"
                )
            versions = self._usable_versions(ipv6=ipv6)
            if intent.requested_mtu:
                check_mtu(intent.requested_mtu, largest=mtu, versions=versions)
            check_families(intent.routes, versions)
            peer = free_peer_index({one.record.peer_ifindex for one in neighbours.values()})
            try:
                ips = self._pool.take_all(
                    intent.requested_ips,
                    versions,
                    owner_text(intent.workload_id),
                )
            except AlreadyExists as error:
                wanted = intent.requested_ips.__contains__
                raise unless(self._leaving_with(wanted), error, self._lost_with(wanted)) from error
            except Exhausted as error:
                lacking = [v for v in self._pool.versions if not self._pool.has_room(v)]
                raise unless(
                    self._leaving_with(lambda ip: ip.version in lacking),
                    error,
                    self._lost_with(lambda ip: ip.version in lacking),
                ) from error
            record = Record(
                workload_id=intent.workload_id,
                if_name=intent.if_name,
                netns_cookie=cookie,
                host_interface=host_interface,
                host_ifindex=self._free_index(),
                peer_ifindex=peer,
                mac=intent.requested_mac or random_mac(),
                mtu=intent.requested_mtu or mtu,
                ips=ips,
                request=intent.digest(),
                owner=intent.owner,
                parts=intent.parts,
            )
            try:
                self._resources.take(record, owner_text(record.workload_id))
            except BaseException as error:
                self._release_addresses(record)
                if isinstance(error, AlreadyExists):
                    indexes = self._resources.holders(record)
                    holders = filter(None, map(self._tables.at_index, indexes))
                    lost = [self._lost[index] for index in indexes & self._lost.keys()]
                    raise unless(_detached(holders), error, lost) from error
                raise
            entry = Entry(record, State.ATTACHING)
            metric = further_metric(peer) if neighbours else 0
            self._tables.add(entry)
            return Reservation(entry, metric, self._overruns)

    def renumber(
        self, entry: Entry, *, peer_ifindex: int | None = None, without_ipv6: bool = False
    ) -> None:
        """Prepare another attempt of an attach.

        The entry gets another host index, since the removal of the last
        attempt's link may still be reported. peer_ifindex: None keeps it.
        without_ipv6: free the IPv6 address.
        """
        with self._mutex:
            before = entry.record
            ips = before.ips
            if without_ipv6:
                ips = tuple(ip for ip in ips if ip.version == 4)
                for ip in set(before.ips) - set(ips):
                    self._pool.release(ip)
            record = replace(
                before,
                host_ifindex=self._free_index(),
                peer_ifindex=before.peer_ifindex if peer_ifindex is None else peer_ifindex,
                ips=ips,
            )
            self._resources.release(before)
            self._resources.take(record, owner_text(record.workload_id))
            self._tables.replace(entry, record)
            entry.gone = False

    def check_presence(self, reserved: Reservation, present: Callable[[], Collection[int]]) -> None:
        """Mark the entry as gone if its link is, and the event was lost.

        present: returns the host indexes of links; it is called only if events
        were lost since the reservation, and without the mutex.
        """
        if reserved.overruns == self._overruns:
            return
        index = reserved.entry.record.host_ifindex
        missing = index not in present()
        with self._mutex:
            # An event may have come during `present`: `gone` stays true.
            reserved.entry.gone = reserved.entry.gone or missing

    def settle(self, entry: Entry, state: State) -> bool:
        """Move the entry to the state, and return True. If its link is gone
        meanwhile, lose the entry instead (see `removed`), and return False.
        """
        with self._mutex:
            if entry.gone:
                self._lose(entry)
                return False
            entry.move_to(state)
            if state is State.ATTACHED and not entry.announced:
                self._announce(entry)
            return True

    # ---- The steps of a repair ----------------------------------------------

    def begin_repair(self, record: Record) -> Entry | None:
        """Begin to repair an attachment, whose workload's lock the caller
        holds, until `settle`; None: the record is not attached any more.
        """
        with self._mutex:
            entry = self._tables.at_index(record.host_ifindex)
            if entry is None or entry.state is not State.ATTACHED or entry.record is not record:
                return None
            entry.move_to(State.REPAIRING)
            return entry

    def change(self, entry: Entry, record: Record) -> None:
        """Give an entry that a call is busy with a record with other texts."""
        with self._mutex:
            self._tables.replace(entry, record)
            if entry.announced and not entry.gone:
                self._publish(Kind.CHANGED, entry)

    # ---- The steps of a removal ---------------------------------------------

    def leave(self, entries: Iterable[Entry]) -> list[Entry]:
        """Move entries to LEAVING; return them, without those that are gone, or
        DETACHED already.
        """
        with self._mutex:
            leaving = [one for one in entries if not one.gone and one.state is not State.DETACHED]
            for entry in leaving:
                entry.move_to(State.LEAVING)
            return leaving

    def detached(self, entries: Iterable[Entry]) -> None:
        """Move entries to DETACHED: their links are cut off."""
        with self._mutex:
            for entry in entries:
                entry.move_to(State.DETACHED)
                if entry.announced:
                    entry.announced = False
                    self._publish(Kind.DETACHED, entry)

    def drop(self, entry: Entry) -> None:
        """Drop an entry and free its reservations. Idempotent."""
        with self._mutex:
            if self._forget(entry):
                self._free(entry.record)

    def free(self, entry: Entry) -> None:
        """Free a lost entry's addresses and resources; see `removed`."""
        with self._mutex:
            if self._lost.pop(entry.record.host_ifindex, None) is not None:
                self._free(entry.record)

    def is_lost(self, entry: Entry) -> bool:
        """Whether the entry is lost, and not freed yet."""
        with self._mutex:
            return self._lost.get(entry.record.host_ifindex) is entry

    def free_held(self, held: Held) -> None:
        """Free what a link had that was left alone; see `removed`."""
        with self._mutex:
            self._held.release(held)

    # ---- Collections --------------------------------------------------------

    def protect(self, workload_id: str) -> Protection:
        """Keep Collect away from a workload for a `with` block."""
        return Protection(self._protect, self._unprotect, workload_id)

    def _protect(self, workload_id: str) -> None:
        with self._mutex:
            self._protected.add(workload_id)

    def _unprotect(self, workload_id: str) -> None:
        with self._mutex:
            self._protected.remove(workload_id)

    @contextlib.contextmanager
    def collection(self, of_owner: Callable[[str], bool]) -> Iterator[list[Entry]]:
        """Yield the owners' entries to collect. Only one collection may run."""
        with self._mutex:
            self._protected.begin_collection()
            seen = [
                entry
                for entry in self._tables
                if entry.state in (*IN_USE, State.BROKEN) and of_owner(entry.record.owner)
            ]
        try:
            yield seen
        finally:
            with self._mutex:
                self._protected.end_collection()

    def unprotected(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return those entries whose links exist, that are not DETACHED, and
        whose workloads were not protected at any time since the collection
        began.
        """
        with self._mutex:
            protected = self._protected.since_collection
            return [
                one
                for one in entries
                if not one.gone
                and one.state is not State.DETACHED
                and one.record.workload_id not in protected
            ]

    # ---- Events -------------------------------------------------------------

    def claim(self, workload_id: str, host_interface: Callable[[str], str]) -> bool:
        """Adopt the held links that lost their workload's id, if it is this.

        host_interface: the name of the workload's link on the host, by the
        name inside. Returns whether there was such a link.
        """
        if not self._held:
            return False
        with self._mutex:
            records = self._held.claim(host_interface)
            for record in records:
                entry = Entry(replace(record, workload_id=workload_id), State.ATTACHED)
                self._resources.release(record)
                self._resources.adopt(entry.record, owner_text(workload_id))
                self._tables.add(entry)
                self._announce(entry)
            return bool(records)

    def removed(self, ifindex: int) -> tuple[Entry | None, Held | None]:
        """Note that the link with this index is gone. Return the entry that is
        lost by that, and the held link; each is None if there is none.

        A lost entry is dropped, and its addresses and resources are freed. An
        entry with parts keeps these until the caller calls `free`: nftables
        elements outlive the link, and lead to the addresses. The same is true
        of a link that was left alone, and `free_held`. An entry with which a
        call is busy is not lost yet: the call settles or drops it.
        """
        with self._mutex:
            held = self._held.remove(ifindex)
            entry = self._tables.at_index(ifindex)
            if entry is not None and entry.state in BUSY:
                entry.gone = True
                return None, held
            if entry is not None:
                self._lose(entry)
            return entry, held

    def overrun(self) -> list[int]:
        """Record that events were lost. Return the indexes of the links that
        may be gone: attached and held ones. See `check_presence` for others.
        """
        with self._mutex:
            self._overruns += 1
            idle = [one for one in self._tables if one.state in (*IN_USE, State.BROKEN)]
            return [one.record.host_ifindex for one in idle] + [one.ifindex for one in self._held]

    # ---- Under the mutex ----------------------------------------------------

    def _leaving_with(self, wanted: Callable[[IPAddress], bool]) -> list[Entry]:
        """Return what is leaving and has such an address of a prefix."""
        return [
            one
            for one in _detached(self._tables)
            if any(wanted(ip) and self._pool.may_be_taken(ip) for ip in one.record.ips)
        ]

    def _lost_with(self, wanted: Callable[[IPAddress], bool]) -> list[Entry]:
        """Return what is lost and has such an address."""
        return [one for one in self._lost.values() if any(map(wanted, one.record.ips))]

    def _usable_versions(self, *, ipv6: bool) -> list[int]:
        return [version for version in self._pool.versions if version == 4 or ipv6]

    def _free_index(self) -> int:
        return next(index for index in self._indexes if self._tables.at_index(index) is None)

    def _announce(self, entry: Entry) -> None:
        entry.announced = True
        self._publish(Kind.ATTACHED, entry)

    def _lose(self, entry: Entry) -> None:
        if not self._forget(entry):
            return
        if entry.record.parts:
            self._lost[entry.record.host_ifindex] = entry
        else:
            self._free(entry.record)

    def _forget(self, entry: Entry) -> bool:
        if not self._tables.drop(entry):
            return False
        entry.gone = True
        if entry.announced:
            leaving = entry.state is State.LEAVING
            self._publish(Kind.DETACHED if leaving else Kind.LOST, entry)
        return True

    def _free(self, record: Record) -> None:
        self._release_addresses(record)
        self._resources.release(record)

    def _release_addresses(self, record: Record) -> None:
        for ip in record.ips:
            self._pool.release(ip)

    def _publish(self, kind: Kind, entry: Entry) -> None:
        if self.watchers:
            self.watchers.publish(Event(kind, attachment_of(entry.record)))


def _detached(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.state is State.DETACHED]
