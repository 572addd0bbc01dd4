# SPDX-License-Identifier: Apache-2.0
"""A datapath without a kernel, for tests of the layers above it.

It refuses what the kernel refuses: names and indexes that are taken, addresses
that have a route, namespaces that do not exist. Its state outlives `close`, as
the kernel's does: give the same FakeKernel to a new FakeDatapath.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.datapath import names, plan
from metropolis.node.core.network.workloads.datapath.elements import Element, NftSet
from metropolis.node.core.network.workloads.datapath.interface import (
    Held,
    IndexTaken,
    LockIfIdle,
    Netns,
    NoIPv6,
    Record,
    RouteTaken,
    Scan,
    UndoFailed,
)
from metropolis.node.core.network.workloads.datapath.parts import LinkPart, Parts
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    InvalidArgument,
    KernelRefused,
    NotFound,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import Finding, IPAddress, Route
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink.sock_diag import Listener

HOME = 1  # the host's cookie


@dataclass(frozen=True)
class FakeNetns:
    """An open namespace."""

    cookie: int


@dataclass
class FakeKernel:
    """What is there. links: by host index; metrics: the same; names_inside:
    (cookie, name) of interfaces of others, as half_made are names of links.
    routes_lost: host indexes of links whose routes inside somebody took.
    changed: what others made of links on the host, by index; `links` has what
    their records say. held: links that are left alone. cut_off:
    indexes of links that no packet passes. without_ipv6: cookies
    of namespaces that have IPv6 switched off. default_routes: cookie and metric
    of others' in namespaces. elements: of nftables, by set and key: the host
    index of the attachment, and the element. local: addresses of the host.
    sockets: of the host, each with its protocol. The last two are HostFacts.
    """

    namespaces: dict[str, int] = field(default_factory=dict)
    links: dict[int, Record] = field(default_factory=dict)
    metrics: dict[int, int] = field(default_factory=dict)
    names_inside: set[tuple[int, str]] = field(default_factory=set)
    indexes: set[int] = field(default_factory=set)
    routes_lost: set[int] = field(default_factory=set)
    changed: dict[int, Record] = field(default_factory=dict)
    held: dict[int, Held] = field(default_factory=dict)
    cut_off: set[int] = field(default_factory=set)
    without_ipv6: set[int] = field(default_factory=set)
    default_routes: set[tuple[int, int]] = field(default_factory=set)
    elements: dict[tuple[NftSet, bytes], tuple[int, Element]] = field(default_factory=dict)
    local: set[IPAddress] = field(default_factory=set)
    sockets: list[tuple[str, Listener]] = field(default_factory=list)
    half_made: list[str] = field(default_factory=list)
    cookies: Iterator[int] = field(default_factory=lambda: itertools.count(1000))
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add_netns(self, path: str) -> int:
        """Add a namespace at the path; return its cookie."""
        self.namespaces[path] = next(self.cookies)
        return self.namespaces[path]

    def is_local(self, ip: IPAddress) -> bool:
        """See HostFacts."""
        return ip in self.local

    def listeners(self, protocol: str, ports: Collection[int]) -> list[Listener]:
        """See HostFacts."""
        return [one for of, one in self.sockets if of == protocol and one.port in ports]

    def process_of(self, listener: Listener) -> str:
        """See HostFacts."""
        return f"test (pid {listener.inode})"

    def has_element(self, one: NftSet, key: bytes) -> bool:
        """See HostFacts."""
        return (one, key) in self.elements


class FakeDatapath:
    """Attachments in a FakeKernel. parts: see Datapath; what they add to a
    link, and find there, is not tried.

    on_create, on_change, on_cut_off, on_remove: called within create (after the
    interface is made), change, cut_off and remove (before it is); raise from
    them to fail the call.
    undo_fails: a create that fails leaves its link behind. ipv6: the host's.
    repair_error: raised by repair.
    """

    def __init__(self, kernel: FakeKernel | None = None, *, parts: Sequence[LinkPart] = ()) -> None:
        self.kernel = kernel or FakeKernel()
        self._parts = Parts(parts)
        self.on_create: Callable[[Record], None] = lambda _: None
        self.on_change: Callable[[Record], None] = lambda _: None
        self.on_cut_off: Callable[[Sequence[Record]], None] = lambda _: None
        self.on_remove: Callable[[Sequence[Record]], None] = lambda _: None
        self.ipv6 = True
        self.undo_fails = False
        self.scan_error: WorkloadError | None = None
        self.repair_error: WorkloadError | None = None
        self._on_removed: Callable[[int], None] | None = None
        self._on_overrun: Callable[[], None] | None = None

    @property
    def parts(self) -> Sequence[LinkPart]:
        """See Datapath."""
        return self._parts.all

    def open(self, on_removed: Callable[[int], None], on_overrun: Callable[[], None]) -> None:
        """See Datapath."""
        self._on_removed, self._on_overrun = on_removed, on_overrun

    def scan(self) -> Scan:
        """See Datapath."""
        if self.scan_error is not None:
            raise self.scan_error
        half_made, self.kernel.half_made = self.kernel.half_made, []
        cut_off = self.kernel.cut_off
        links = [one for index, one in self.kernel.links.items() if index not in cut_off]
        leaving = [one for index, one in self.kernel.links.items() if index in cut_off]
        complete, duplicates = plan.resolve(links, self._routes(), self._parts)
        for record in duplicates:
            self.take_link(record.host_ifindex)
        return Scan(
            complete,
            repairs=(
                *self._remove_stale_elements(),
                *self.repair(complete, lambda _: True, lambda _: contextlib.nullcontext(True)),
            ),
            half_made=tuple(half_made),
            duplicates=tuple(record.host_interface for record in duplicates),
            held=tuple(self.kernel.held.values()),
            foreign=tuple(held.name for held in self.kernel.held.values()),
            leaving=tuple(leaving),
        )

    def _remove_stale_elements(self) -> Iterator[Repair]:
        present = self.present()
        for key, (index, element) in list(self.kernel.elements.items()):
            if index not in present:
                del self.kernel.elements[key]
                yield Repair(str(element), f"{element}: is of no attachment")

    def _routes(self) -> set[tuple[IPAddress, int]]:
        """Return the routes; a route belongs to the first to request it."""
        first: dict[IPAddress, int] = {}
        for index, record in self.kernel.links.items():
            for ip in record.ips:
                first.setdefault(ip, index)
        return set(first.items())

    def watch(self) -> None:
        """See Datapath."""

    def present(self) -> frozenset[int]:
        """See Datapath."""
        return frozenset(self.kernel.links | self.kernel.held)

    @contextlib.contextmanager
    def open_netns(self, path: str) -> Iterator[Netns]:
        """See Datapath. Paths that contain `file` are no namespaces."""
        if "file" in path:
            raise InvalidArgument(f"netns.netns_path {show(path)} is not a network namespace")
        if path not in self.kernel.namespaces:
            raise NotFound(f"netns.netns_path {show(path)} does not exist")
        yield FakeNetns(self.kernel.namespaces[path])

    def is_host_netns(self, netns: Netns) -> bool:
        """See Datapath."""
        return netns.cookie == HOME

    def host_interface(self, workload_id: str, if_name: str) -> str:
        """See Datapath."""
        return names.host_interface(workload_id, if_name)

    def create(
        self, netns: Netns, record: Record, *, metric: int, routes: Sequence[Route] = ()
    ) -> None:
        """See Datapath."""
        kernel = self.kernel
        self._parts.refuse(record, kernel)
        with kernel.lock:
            peers = {(link.netns_cookie, link.peer_ifindex) for link in kernel.links.values()} | {
                (record.netns_cookie, index) for index in kernel.indexes
            }
            if (
                record.host_ifindex in kernel.links
                or record.host_ifindex in kernel.indexes
                or (record.netns_cookie, record.peer_ifindex) in peers
            ):
                raise IndexTaken
            inside = {(link.netns_cookie, link.if_name) for link in kernel.links.values()}
            if (record.netns_cookie, record.if_name) in inside | kernel.names_inside:
                raise AlreadyExists(f"if_name {show(record.if_name)}: is taken")
            if record.host_interface in {link.host_interface for link in kernel.links.values()}:
                raise AlreadyExists(f"a link {record.host_interface} exists on the host")
            if {ip for link in kernel.links.values() for ip in link.ips} & set(record.ips):
                raise KernelRefused("add route: EEXIST")
            taken_routes = kernel.default_routes | {
                (link.netns_cookie, kernel.metrics.get(index, 0))
                for index, link in kernel.links.items()
            }
            kernel.links[record.host_ifindex] = record
            kernel.metrics[record.host_ifindex] = metric
        try:
            if record.ips[-1].version == 6 and record.netns_cookie in kernel.without_ipv6:
                raise NoIPv6(f"attach {show(record.workload_id)}: IPv6 is switched off")
            if (record.netns_cookie, metric) in taken_routes:
                raise RouteTaken(f"attach {show(record.workload_id)}: EEXIST")
            self._create_elements(record, self._parts.elements(record))
            self.on_create(record)
        except BaseException as error:
            if self.undo_fails:
                raise UndoFailed(f"{error}; undo failed") from error
            self._take_elements(record)
            self.take_link(record.host_ifindex)
            raise
        if record.host_ifindex not in kernel.links and not self.undo_fails:
            return  # its namespace died; the removal was reported

    def _create_elements(self, record: Record, elements: Sequence[Element]) -> None:
        """All, or none."""
        with self.kernel.lock:
            made = {(one.set, one.key): (record.host_ifindex, one) for one in elements}
            for key in made.keys() & self.kernel.elements.keys():
                raise AlreadyExists(f"create {made[key][1]}: exists")
            self.kernel.elements |= made

    def _missing(self, record: Record) -> list[Element]:
        return [
            one
            for one in self._parts.elements(record)
            if self.kernel.elements.get((one.set, one.key)) != (record.host_ifindex, one)
        ]

    def change(self, before: Record, now: Record) -> None:
        """See Datapath."""
        self.on_change(now)
        with self.kernel.lock:
            if before.host_ifindex in self.kernel.links:
                self.kernel.links[before.host_ifindex] = now

    def leave(self, netns: Netns, records: Sequence[Record]) -> None:
        """See Datapath: there are no rules."""

    def check(self, record: Record, netns: Netns | None) -> tuple[Finding, ...]:
        """See Datapath."""
        links = self.kernel.links | self.kernel.changed
        link = links.get(record.host_ifindex)
        name = record.host_interface
        if link is None:
            return (Finding(f"link {name}", f"index {record.host_ifindex}", "nothing"),)
        findings: list[Finding] = []
        for what in ("mtu", "ips"):
            expected, found = getattr(record, what), getattr(link, what)
            if expected != found:
                findings.append(Finding(f"{what.upper()} of {name}", str(expected), str(found)))
        if record.host_ifindex in self.kernel.routes_lost and netns is not None:
            findings.append(Finding("route to 0.0.0.0/0 inside", "one", "nothing"))
        for one in self._missing(record):
            findings.append(Finding(str(one), one.value, "nothing"))
        return tuple(findings)

    def repair(
        self, records: Sequence[Record], allow: Allow, hold: LockIfIdle
    ) -> tuple[Repair, ...]:
        """See Datapath."""
        if self.repair_error is not None:
            raise self.repair_error
        done: list[Repair] = []
        for record in records:
            link = self.kernel.changed.get(record.host_ifindex, record)
            if link == record and not self._missing(record):
                continue
            if self.kernel.links.get(record.host_ifindex) != record:
                continue
            with hold(record) as held:
                if held:
                    done += self._mend(record, link, allow)
        return tuple(done)

    def _mend(self, record: Record, link: Record, allow: Allow) -> Iterator[Repair]:
        name = record.host_interface
        differing = []
        if link.mtu != record.mtu:
            differing.append((f"link {name}: MTU", "mtu"))
        for ip in set(record.ips) - set(link.ips):
            differing.append((f"route {ip}/{ip.max_prefixlen}", "ips"))
        for key, field_name in differing:
            if left := not allow(key):
                yield Repair(key, key, left=left)
                continue
            link = replace(link, **{field_name: getattr(record, field_name)})
            yield Repair(key, key)
        self.kernel.changed.pop(record.host_ifindex, None)
        if link != record:
            self.kernel.changed[record.host_ifindex] = link
        for element in self._missing(record):
            if left := not allow(str(element)):
                yield Repair(str(element), str(element), left=left)
                continue
            self._create_elements(record, [element])
            yield Repair(str(element), str(element))

    def cut_off(self, records: Sequence[Record]) -> None:
        """See Datapath."""
        self.on_cut_off(records)
        for record in records:
            self._take_elements(record)
        with self.kernel.lock:
            self.kernel.cut_off |= {
                one.host_ifindex
                for one in records
                if self.kernel.links.get(one.host_ifindex) == one
            }

    @property
    def at_once(self) -> int:
        """See Datapath."""
        return 8

    def remove(self, records: Sequence[Record]) -> None:
        """See Datapath."""
        self.on_remove(records)
        for record in records:
            self._take_elements(record)
            if self.kernel.links.get(record.host_ifindex) == record:
                self.take_link(record.host_ifindex)

    def clean_up(self, record: Record) -> None:
        """See Datapath."""
        self._take_elements(record)

    def clean_up_link(self, ifindex: int) -> None:
        """See Datapath."""
        with self.kernel.lock:
            for key, (index, _) in list(self.kernel.elements.items()):
                if index == ifindex:
                    del self.kernel.elements[key]

    def _take_elements(self, record: Record) -> None:
        with self.kernel.lock:
            for one in self._parts.elements(record):
                index, _ = self.kernel.elements.get((one.set, one.key), (0, one))
                if index == record.host_ifindex:
                    del self.kernel.elements[one.set, one.key]

    def close(self) -> None:
        """See Datapath."""
        self._on_removed = self._on_overrun = None

    # ---- Events in a kernel --------------------------------------------------

    def take_link(self, ifindex: int, *, reported: bool = True) -> None:
        """Remove the link; reported: the event is delivered."""
        with self.kernel.lock:
            self.kernel.links.pop(ifindex, None)
            self.kernel.metrics.pop(ifindex, None)
            self.kernel.changed.pop(ifindex, None)
            self.kernel.held.pop(ifindex, None)
            self.kernel.cut_off.discard(ifindex)
        if reported and self._on_removed is not None:
            self._on_removed(ifindex)

    def kill_netns(self, path: str, *, reported: bool = True) -> None:
        """End the namespace, with its links."""
        cookie = self.kernel.namespaces.pop(path)
        for index, link in list(self.kernel.links.items()):
            if link.netns_cookie == cookie:
                self.take_link(index, reported=reported)

    def overrun(self) -> None:
        """Lose events."""
        assert self._on_overrun is not None
        self._on_overrun()
