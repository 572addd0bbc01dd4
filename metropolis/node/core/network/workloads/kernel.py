# SPDX-License-Identifier: Apache-2.0
"""The datapath made of veth pairs and routes, by batched rtnetlink.

    batch 1  host       veth pair, down, both ends with all they need
    batch 2  namespace  lo and link up, addresses, first hop, default routes
    batch 3  host       alias, records, up, fe80::1, host routes

Batch 1 is sent alone, because the kernel goes on after a request that failed:
what follows names the link by its index, which is ours only if it was made.
Batch 3 is the commit: one send, thus whole or not at all when the process is
killed. A link that is down or without its record is an attach that never
finished; routes come after `up` since the kernel has no route through a link
that is down, and a record tells which are missing.
"""

import contextlib
import errno
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from metropolis.node import allocs
from metropolis.node.core.network.workloads import checks, names, observe, recovery
from metropolis.node.core.network.workloads.datapath import (
    IndexTaken,
    Netns,
    Record,
    Scan,
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
from metropolis.node.core.network.workloads.model import Finding, IPAddress
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink import netns as namespaces
from osbase.netlink import rtnl
from osbase.netlink.errors import (
    BatchError,
    NetlinkError,
    NetnsMissing,
    NotNetns,
    errno_name,
)
from osbase.netlink.events import RECEIVE_BUFFER, LinkEvents
from osbase.netlink.message import Request
from osbase.netlink.transport import NetlinkSocket, SocketPool

log = logging.getLogger(__name__)

_LOOPBACK = 1  # its index in every namespace
_RTPROT_STATIC = 4
_REMOVE_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class KernelNetns:
    """An open namespace: its file, and a route socket inside."""

    fd: int
    inner: socket.socket
    cookie: int


class KernelDatapath:
    """Attachments in the network namespace of the thread that calls `open`.

    event_buffer: bytes of link events that the kernel may keep for us.
    """

    def __init__(self, *, event_buffer: int = RECEIVE_BUFFER) -> None:
        self._event_buffer = event_buffer
        self._home = -1
        self._home_mutex = threading.Lock()
        self._home_cookie = 0
        self._ipv6 = False
        self._sockets = SocketPool()
        self._events: LinkEvents | None = None
        self._removals: deque[_Removal] = deque()
        self._remove_mutex = threading.Lock()

    # ---- The host ---------------------------------------------------------

    def open(self, on_removed: Callable[[int], None], on_overrun: Callable[[], None]) -> None:
        """See Datapath. Puts the IPv4 first hop on lo where it is missing."""

        def removed(event: rtnl.LinkRemoved) -> None:
            on_removed(event.ifindex)

        with _refusals("open the datapath"):
            self._home = namespaces.open_current()
            self._sockets = SocketPool()
            self._ipv6 = os.path.exists("/proc/sys/net/ipv6")
            raw = namespaces.open_socket(self._home, self._home)
            with raw:
                self._home_cookie = namespaces.cookie(raw)
            self._ensure_first_hop()
            self._events = LinkEvents(removed, on_overrun, receive_buffer=self._event_buffer)

    def watch(self) -> None:
        """See Datapath."""
        assert self._events is not None, "open comes before watch"
        self._events.start()

    def close(self) -> None:
        """See Datapath."""
        events, self._events = self._events, None
        if events is not None:
            events.close()
        self._sockets.close()
        with self._home_mutex:
            if self._home >= 0:
                os.close(self._home)
                self._home = -1

    def _ensure_first_hop(self) -> None:
        """Without the first hop's address workloads get no answer to ARP."""
        hop = allocs.FIRST_HOP_IPV4
        self._batch_tolerating(
            {errno.EEXIST},
            rtnl.set_link_up(_LOOPBACK, "lo"),
            rtnl.add_address(_LOOPBACK, "lo", hop, 32, scope=rtnl.RT_SCOPE_LINK),
        )

    def _batch(self, *requests: Request) -> None:
        with self._sockets.socket() as host:
            host.batch(requests)

    def _batch_tolerating(self, tolerated: set[int], *requests: Request) -> None:
        with self._sockets.socket() as host:
            _batch_tolerating(host, tolerated, *requests)

    # ---- Recovery ---------------------------------------------------------

    def scan(self) -> Scan:
        """See Datapath."""
        with _refusals("recover attachments"):
            return self._scan()

    def _links(self) -> list[rtnl.Link]:
        with self._sockets.socket() as host:
            return [rtnl.parse_link(message) for message in host.dump(rtnl.dump_links())]

    def _routes(self) -> set[tuple[IPAddress, int]]:
        found: set[tuple[IPAddress, int]] = set()
        protocol = allocs.ROUTE_PROTOCOL_WORKLOAD
        families = (rtnl.AF_INET, rtnl.AF_INET6) if self._ipv6 else (rtnl.AF_INET,)
        for family in families:
            with self._sockets.socket() as host:
                messages = host.dump(rtnl.dump_routes(family, protocol))
            for message in messages:
                route = rtnl.parse_route(message)
                if route is None or route.protocol != protocol or route.ifindex is None:
                    continue
                if route.destination.num_addresses == 1:
                    found.add((route.destination.network_address, route.ifindex))
        return found

    def _first_hops(self) -> set[int]:
        """Indexes of the links that have the IPv6 first hop."""
        if not self._ipv6:
            return set()
        with self._sockets.socket() as host:
            messages = host.dump(rtnl.dump_addresses(rtnl.AF_INET6, 0))
        found = (rtnl.parse_address(message) for message in messages)
        return {one.ifindex for one in found if one and one.address == allocs.FIRST_HOP_IPV6}

    def _scan(self) -> Scan:
        routes = self._routes()
        hops = self._first_hops()
        plan = recovery.plan(self._links(), routes)
        # First of all, so that what stays can have its routes.
        for name, index in [(link.name, link.ifindex) for link in plan.half_made] + [
            (record.host_interface, record.host_ifindex) for record in plan.duplicates
        ]:
            self._batch_tolerating({errno.ENODEV}, rtnl.del_link(index, name))
        repaired = 0
        for record in plan.complete:
            index = record.host_ifindex
            missing = {ip for ip in record.ips if (ip, index) not in routes}
            missing |= {ip for ip in record.ips if ip.version == 6 and index not in hops}
            if missing:
                repaired += 1
                self._repair(record, missing)
        return Scan(
            complete=plan.complete,
            repaired=repaired,
            half_made=tuple(link.name for link in plan.half_made),
            duplicates=tuple(record.host_interface for record in plan.duplicates),
            foreign=plan.foreign,
        )

    def _repair(self, record: Record, missing: set[IPAddress]) -> None:
        """Put back what was taken from a link that is in use. A failure is
        told and does not end the recovery: the rest of it still works.
        """
        requests = [
            request for ip in record.ips if ip in missing for request in _host_address(record, ip)
        ]
        try:
            self._batch_tolerating({errno.EEXIST}, *requests)
        except NetlinkError as error:
            log.error("repair attachment of %r: %s", record.workload_id, error)

    def present(self) -> frozenset[int]:
        """See Datapath."""
        with _refusals("list attachments"):
            return frozenset(link.ifindex for link in self._links() if recovery.is_ours(link))

    # ---- Namespaces -------------------------------------------------------

    @contextlib.contextmanager
    def open_netns(self, path: str) -> Iterator[Netns]:
        """See Datapath."""
        try:
            fd = namespaces.open_path(path)
        except NetnsMissing as error:
            raise NotFound(f"netns.netns_path {error}") from error
        except NotNetns as error:
            raise InvalidArgument(f"netns.netns_path {error}") from error
        except OSError as error:
            name = errno_name(error.errno or 0)
            raise KernelRefused(f"open network namespace {show(path)}: {name}") from error
        try:
            with _refusals(f"enter network namespace {show(path)}"), self._way_home() as home:
                inner = namespaces.open_socket(fd, home)
            with inner:
                yield KernelNetns(fd, inner, namespaces.cookie(inner))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _way_home(self) -> Iterator[int]:
        """A file of the home namespace that `close` cannot take away: a thread
        that does not find home ends the process.
        """
        with self._home_mutex:
            if self._home < 0:
                raise Unavailable("the workload network service has stopped")
            home = os.dup(self._home)
        try:
            yield home
        finally:
            os.close(home)

    def is_home(self, netns: Netns) -> bool:
        """See Datapath."""
        return netns.cookie == self._home_cookie

    # ---- Attach -----------------------------------------------------------

    def create(self, netns: Netns, record: Record, *, metric: int) -> None:
        """See Datapath."""
        assert isinstance(netns, KernelNetns)
        operation = f"attach {show(record.workload_id)}"
        self._create_pair(netns, record, operation)
        loopback_was_up = True
        inner = NetlinkSocket(netns.inner)
        try:
            loopback_was_up = namespaces.loopback_is_up(netns.inner)
            inner.batch(_inside(record, metric, loopback=not loopback_was_up))
            self._commit(record)
        except BaseException as error:
            self._undo(record, None if loopback_was_up else inner, operation, error)
            if isinstance(error, BatchError):
                raise _attach_error(operation, record, error) from error
            if isinstance(error, (NetlinkError, OSError)):
                raise KernelRefused(f"{operation}: {error}") from error
            raise

    def _create_pair(self, netns: KernelNetns, record: Record, operation: str) -> None:
        host = rtnl.VethEnd(record.host_interface, record.host_ifindex, allocs.FIRST_HOP_MAC)
        peer = rtnl.VethEnd(record.if_name, record.peer_ifindex, record.mac)
        request = rtnl.new_veth(
            host, peer, netns_fd=netns.fd, mtu=record.mtu, group=allocs.LINK_GROUP_WORKLOAD
        )
        try:
            self._batch(request)
        except BatchError as error:
            raise self._creation_error(record, operation, error) from error
        except (NetlinkError, OSError) as error:
            # Not known whether it was made. The index alone does not tell.
            self._undo(record, None, operation, error, verify=True)
            raise KernelRefused(f"{operation}: {error}") from error

    def _creation_error(self, record: Record, operation: str, error: BatchError) -> Exception:
        number = error.errors[0].errno
        if number == errno.EBUSY or (number == errno.EEXIST and self._link(record.host_ifindex)):
            return IndexTaken()
        if number != errno.EEXIST:
            return KernelRefused(f"{operation}: {error}")
        if self._link_named(record.host_interface):
            return AlreadyExists(
                f"{operation}: a link {record.host_interface} that this service did not record "
                "exists on the host; remove it"
            )
        return AlreadyExists(f"if_name {show(record.if_name)}: is taken in the network namespace")

    def _link(self, ifindex: int) -> rtnl.Link | None:
        return self._get(rtnl.get_link(ifindex))

    def _link_named(self, name: str) -> rtnl.Link | None:
        return self._get(rtnl.get_link_by_name(name))

    def _get(self, request: Request) -> rtnl.Link | None:
        try:
            with self._sockets.socket() as host:
                return rtnl.parse_link(host.get(request))
        except BatchError as error:
            if error.errors[0].errno == errno.ENODEV:
                return None
            raise

    def _commit(self, record: Record) -> None:
        index, name = record.host_ifindex, record.host_interface
        requests = [
            rtnl.set_link_alias(index, name, record.workload_id, ipv6=self._ipv6),
            rtnl.add_link_altnames(index, name, _key(record), _record(record)),
            rtnl.set_link_up(index, name),
        ]
        for ip in record.ips:
            requests += _host_address(record, ip)
        try:
            self._batch(*requests)
        except BatchError as error:
            # An IPv4 route whose source address somebody took off lo.
            route = len(requests) - 1 if record.ips[-1].version == 4 else 3
            failed = {(one.index, one.errno) for one in error.errors}
            if failed != {(route, errno.EINVAL)} or record.ips[0].version != 4:
                raise
            self._ensure_first_hop()
            self._batch(requests[route])

    def _undo(
        self,
        record: Record,
        loopback: NetlinkSocket | None,
        operation: str,
        cause: BaseException,
        *,
        verify: bool = False,
    ) -> None:
        """Remove the pair, and with it all that is on either end, and set lo
        down again where this attach had set it up.
        """
        try:
            link = self._link(record.host_ifindex) if verify else None
            if not verify or (link is not None and link.name == record.host_interface):
                request = rtnl.del_link(record.host_ifindex, record.host_interface)
                self._batch_tolerating({errno.ENODEV}, request)
            if loopback is not None:
                # Its IPv4 address stays when it goes down, the IPv6 one goes.
                _batch_tolerating(
                    loopback,
                    {errno.EADDRNOTAVAIL},
                    rtnl.set_link_down(_LOOPBACK, "lo"),
                    rtnl.del_address(_LOOPBACK, "lo", IPv4Address("127.0.0.1"), 8),
                )
        except (NetlinkError, OSError) as error:
            raise UndoFailed(
                f"{operation}: {cause}; then undoing it failed: {error}; Detach removes the rest"
            ) from error

    # ---- Check ------------------------------------------------------------

    def check(self, record: Record, netns: Netns | None) -> tuple[Finding, ...]:
        """See Datapath."""
        assert netns is None or isinstance(netns, KernelNetns)
        with _refusals(f"check {show(record.workload_id)}"), self._sockets.socket() as host:
            side = observe.host_side(host, record)
            findings = list(checks.compare_host(record, side))
            if netns is not None:
                there = observe.inside(NetlinkSocket(netns.inner), record, None)
                findings += checks.compare_inside(record, there)
            elif side.link is not None and side.link.peer_netns is not None:
                there = observe.inside(host, record, side.link.peer_netns)
                findings += checks.compare_inside(record, there)
        return tuple(findings)

    # ---- Detach -----------------------------------------------------------

    def remove(self, records: Sequence[Record]) -> None:
        """See Datapath.

        A removal waits for an RCU grace period, 10 to 20 ms, but one request
        removes a whole group of links in that time. So whatever calls come
        while one is under way are done together in the next.
        """
        removal = _Removal(list(records))
        self._removals.append(removal)
        with self._remove_mutex:
            if not removal.done:
                self._remove_waiting()
        if removal.error is not None:
            raise removal.error

    def _remove_waiting(self) -> None:
        taken: list[_Removal] = []
        count = 0
        while self._removals and (not taken or count < _REMOVE_AT_ONCE):
            taken.append(self._removals.popleft())
            count += len(taken[-1].records)
        records = [record for removal in taken for record in removal.records]
        failures: dict[int, WorkloadError] = {}
        try:
            failures = self._remove(records)
        except (NetlinkError, OSError) as error:
            refused = KernelRefused(f"detach: {error}")
            failures = {record.host_ifindex: refused for record in records}
        for removal in taken:
            for record in removal.records:
                removal.error = removal.error or failures.get(record.host_ifindex)
            removal.done = True

    def _remove(self, records: list[Record]) -> dict[int, WorkloadError]:
        """Errors by host index. Links are named by their records, so that no
        index that has passed to another link can be hit.
        """
        if len(records) == 1:
            requests = [rtnl.del_link_by_altname(_record(records[0]))]
        else:
            requests = [
                rtnl.set_group_by_altname(_record(r), recovery.DOOMED_GROUP) for r in records
            ]
            requests.append(rtnl.del_links_by_group(recovery.DOOMED_GROUP))
        try:
            self._batch(*requests)
        except BatchError as error:
            return self._remove_rest(records, error)
        return {}

    def _remove_rest(self, records: list[Record], refused: BatchError) -> dict[int, WorkloadError]:
        failures: dict[int, WorkloadError] = {}
        for error in refused.errors:
            if error.index >= len(records):  # the group as a whole
                if error.errno != errno.ENODEV:
                    failed = KernelRefused(f"detach: {error}")
                    return {record.host_ifindex: failed for record in records}
                continue
            record = records[error.index]
            if error.errno == errno.ENODEV:
                # Gone, or an attach that could not be undone, without records.
                link = self._link(record.host_ifindex)
                if link is not None and link.name == record.host_interface:
                    request = rtnl.del_link(link.ifindex, link.name)
                    self._batch_tolerating({errno.ENODEV}, request)
                continue
            operation = f"detach {show(record.workload_id)}"
            failures[record.host_ifindex] = KernelRefused(f"{operation}: {error}")
        return failures


@dataclass(slots=True)
class _Removal:
    """A call of `remove` that waits for its turn."""

    records: list[Record]
    done: bool = False
    error: WorkloadError | None = None


@contextlib.contextmanager
def _refusals(operation: str) -> Iterator[None]:
    """Turn errors of system and netlink into KernelRefused."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        raise KernelRefused(f"{operation}: {error}") from error


def _batch_tolerating(sock: NetlinkSocket, tolerated: set[int], *requests: Request) -> None:
    """A batch in which some errnos are as good as success."""
    try:
        sock.batch(requests)
    except BatchError as error:
        left = [one for one in error.errors if one.errno not in tolerated]
        if left:
            raise BatchError(left) from error


def _key(record: Record) -> str:
    return names.key_altname(record.netns_cookie, record.if_name)


def _record(record: Record) -> str:
    return names.record_altname(record.host_ifindex, record.mac, record.request, record.ips)


def _inside(record: Record, metric: int, *, loopback: bool) -> list[Request]:
    """Batch 2."""
    index, name = record.peer_ifindex, record.if_name
    requests = [rtnl.set_link_up(_LOOPBACK, "lo")] if loopback else []
    requests.append(rtnl.set_link_up(index, name))
    for ip in record.ips:
        hop: IPAddress = allocs.FIRST_HOP_IPV4 if ip.version == 4 else allocs.FIRST_HOP_IPV6
        family = rtnl.family_of(ip)
        requests.append(rtnl.add_address(index, name, ip, ip.max_prefixlen, no_dad=ip.version == 6))
        # The explicit route to the first hop instead of RTNH_F_ONLINK, which
        # gVisor's netstack cannot import.
        requests.append(
            rtnl.add_route(hop, index, name, family=family, protocol=_RTPROT_STATIC, metric=metric)
        )
        requests.append(
            rtnl.add_route(
                None,
                index,
                name,
                family=family,
                protocol=_RTPROT_STATIC,
                gateway=hop,
                source=ip,
                metric=metric,
            )
        )
    return requests


def _host_address(record: Record, ip: IPAddress) -> Iterable[Request]:
    """What the host needs for an address: the first hop, and the route.

    Towards IPv4 addresses the host uses the first hop as its own address: it
    may have no other. In IPv6 it has fe80::1 on the link.
    """
    index, name = record.host_ifindex, record.host_interface
    source: IPAddress | None = allocs.FIRST_HOP_IPV4
    if ip.version == 6:
        source = None
        yield rtnl.add_address(
            index, name, allocs.FIRST_HOP_IPV6, checks.FIRST_HOP_BITS_6, no_dad=True
        )
    yield rtnl.add_route(
        ip,
        index,
        name,
        family=rtnl.family_of(ip),
        protocol=allocs.ROUTE_PROTOCOL_WORKLOAD,
        source=source,
    )


def _attach_error(operation: str, record: Record, error: BatchError) -> WorkloadError:
    """The first refusal is the cause; later ones mostly follow from it."""
    first = error.errors[0]
    if first.errno == errno.ENODEV:
        return NotFound(f"{operation}: the network namespace was removed meanwhile ({first})")
    if first.errno == errno.EEXIST and "alternative names" in first.what:
        return AlreadyExists(
            f"if_name {show(record.if_name)}: another attachment was made under this name in the "
            "network namespace"
        )
    return KernelRefused(f"{operation}: {first}")
