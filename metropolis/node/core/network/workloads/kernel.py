# SPDX-License-Identifier: Apache-2.0
"""The datapath made of veth pairs and routes, by batched rtnetlink.

What is sent is in batches: pair (host), inside (namespace), commit (host).

The pair is sent alone, because the kernel goes on after a request that failed:
what follows names the link by its index, which is ours only if it was made.
The commit is one send, thus whole or not at all when the process is
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
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from metropolis.node import allocs
from metropolis.node.core.network.workloads import batches, checks, observe, recovery
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
from metropolis.node.core.network.workloads.removals import Removals
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
from osbase.netlink.template import Encoded
from osbase.netlink.transport import NetlinkSocket, SocketPool, make_strict, open_raw

log = logging.getLogger(__name__)

_LOOPBACK = 1  # its index in every namespace
_PATIENCE_S = 0.05  # with another attach


class KernelNetns:
    """An open namespace: its file, a route socket inside. Closed by `with`."""

    __slots__ = ("cookie", "fd", "inner")

    def __init__(self, fd: int, inner: socket.socket, cookie: int) -> None:
        self.fd = fd
        self.inner = inner
        self.cookie = cookie

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.inner.close()
        os.close(self.fd)


class _Home:
    """The file of the home namespace, open for as long as anybody has this, so
    that `close` takes it from no thread that is away: one that does not find
    home ends the process.
    """

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = namespaces.open_current()

    def __del__(self) -> None:
        os.close(self.fd)


class KernelDatapath:
    """Attachments in the network namespace of the thread that calls `open`.

    event_buffer: bytes of link events that the kernel may keep for us.
    """

    def __init__(self, *, event_buffer: int = RECEIVE_BUFFER) -> None:
        self._event_buffer = event_buffer
        self._home: _Home | None = None
        self._home_cookie = 0
        self._ipv6 = False
        self._sockets = SocketPool()
        self._events: LinkEvents | None = None
        self._removals = Removals(self._remove_all, len(recovery.DOOMED_GROUPS))
        self._creating = threading.Lock()

    # ---- The host ---------------------------------------------------------

    def open(self, on_removed: Callable[[int], None], on_overrun: Callable[[], None]) -> None:
        """See Datapath. Puts the IPv4 first hop on lo where it is missing."""

        def removed(event: rtnl.LinkRemoved) -> None:
            on_removed(event.ifindex)

        with _refusals("open the datapath"):
            self._home = _Home()
            self._sockets = SocketPool()
            self._ipv6 = os.path.exists("/proc/sys/net/ipv6")
            with open_raw() as raw:
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
        self._home = None

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

    def _batch_encoded(self, batch: Encoded, requests: Callable[[], Sequence[Request]]) -> None:
        with self._sockets.socket() as host:
            host.batch_encoded(batch, requests)

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
            for ip in record.ips:
                linked = (checks.link_local(record.mac), index) in routes
                if ip.version == 6 and not (index in hops and linked):
                    missing.add(ip)
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
            request
            for ip in record.ips
            if ip in missing
            for request in batches.host_address(record, ip)
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

    def open_netns(self, path: str) -> KernelNetns:
        """See Datapath."""
        home = self._home  # here, so that it stays open
        if home is None:
            raise Unavailable("the workload network service has stopped")
        try:
            fd = namespaces.open_path(path)
        except NetnsMissing as error:
            raise NotFound(f"netns.netns_path {error}") from error
        except NotNetns as error:
            raise InvalidArgument(f"netns.netns_path {error}") from error
        except OSError as error:
            raise KernelRefused(f"open network namespace {show(path)}: {_name(error)}") from error
        try:
            inner = namespaces.open_socket(fd, home.fd)
            try:
                return KernelNetns(fd, inner, namespaces.cookie(inner))
            except BaseException:
                inner.close()
                raise
        except BaseException as error:
            os.close(fd)
            if isinstance(error, NotNetns):
                raise InvalidArgument(f"netns.netns_path {show(path)} {error}") from error
            if isinstance(error, OSError):
                raise KernelRefused(
                    f"enter network namespace {show(path)}: {_name(error)}"
                ) from error
            raise

    def is_home(self, netns: Netns) -> bool:
        """See Datapath."""
        return netns.cookie == self._home_cookie

    # ---- Attach -----------------------------------------------------------

    def create(self, netns: Netns, record: Record, *, metric: int) -> None:
        """See Datapath.

        One at a time, as the kernel has it anyway: its lock (RTNL) is one that
        threads spin for, which costs a seventh of the attaches a second at 16
        at once. One that is stuck does not hold the others up.
        """
        alone = self._creating.acquire(timeout=_PATIENCE_S)
        try:
            self._create(netns, record, metric)
        finally:
            if alone:
                self._creating.release()

    def _create(self, netns: Netns, record: Record, metric: int) -> None:
        assert isinstance(netns, KernelNetns)
        self._create_pair(netns, record)
        loopback_was_up = True
        inner = NetlinkSocket(netns.inner)
        try:
            loopback_was_up = namespaces.loopback_is_up(netns.inner)
            inside = batches.encode_inside(record, metric, loopback=not loopback_was_up)
            inner.batch_encoded(
                inside, lambda: batches.inside(record, metric, loopback=not loopback_was_up)
            )
            self._commit(record)
        except BaseException as error:
            self._undo(record, None if loopback_was_up else inner, error)
            if isinstance(error, BatchError):
                raise _attach_error(record, error) from error
            if isinstance(error, (NetlinkError, OSError)):
                raise KernelRefused(f"{_attach(record)}: {error}") from error
            raise

    def _create_pair(self, netns: KernelNetns, record: Record) -> None:
        try:
            self._batch_encoded(
                batches.encode_pair(record, netns.fd), lambda: batches.pair(record, netns.fd)
            )
        except BatchError as error:
            raise self._creation_error(record, error) from error
        except (NetlinkError, OSError) as error:
            # Not known whether it was made. The index alone does not tell.
            self._undo(record, None, error, verify=True)
            raise KernelRefused(f"{_attach(record)}: {error}") from error

    def _creation_error(self, record: Record, error: BatchError) -> Exception:
        operation = _attach(record)
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
        def requests() -> list[Request]:
            return batches.commit(record, ipv6=self._ipv6)

        try:
            self._batch_encoded(batches.encode_commit(record, ipv6=self._ipv6), requests)
        except BatchError as error:
            # An IPv4 route whose source address somebody took off lo.
            sent = requests()
            route = len(sent) - 1 if record.ips[-1].version == 4 else 3
            failed = {(one.index, one.errno) for one in error.errors}
            if failed != {(route, errno.EINVAL)} or record.ips[0].version != 4:
                raise
            self._ensure_first_hop()
            self._batch(sent[route])

    def _undo(
        self,
        record: Record,
        loopback: NetlinkSocket | None,
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
                f"{_attach(record)}: {cause}; then undoing it failed: {error}; Detach removes "
                "the rest"
            ) from error

    # ---- Check ------------------------------------------------------------

    def check(self, record: Record, netns: Netns | None) -> tuple[Finding, ...]:
        """See Datapath."""
        assert netns is None or isinstance(netns, KernelNetns)
        with _refusals(f"check {show(record.workload_id)}"), self._sockets.socket() as host:
            side = observe.host_side(host, record)
            findings = list(checks.compare_host(record, side))
            if netns is not None:
                there = observe.inside(NetlinkSocket(make_strict(netns.inner)), record, None)
                findings += checks.compare_inside(record, there)
            elif side.link is not None and side.link.peer_netns is not None:
                there = observe.inside(host, record, side.link.peer_netns)
                findings += checks.compare_inside(record, there)
        return tuple(findings)

    # ---- Detach -----------------------------------------------------------

    def remove(self, records: Sequence[Record]) -> None:
        """See Datapath, and removals."""
        self._removals.remove(records)

    def _remove_all(self, records: list[Record], lane: int) -> dict[int, WorkloadError]:
        """As _remove, and whatever is raised is everybody's."""
        try:
            return self._remove(records, recovery.DOOMED_GROUPS[lane])
        except (NetlinkError, OSError) as error:
            refused = KernelRefused(f"detach: {error}")
        except Exception as error:
            log.exception("a removal failed")
            refused = KernelRefused(f"detach: unexpected {type(error).__name__}")
        return {record.host_ifindex: refused for record in records}

    def _remove(self, records: list[Record], group: int) -> dict[int, WorkloadError]:
        """Errors by host index. Links are named by their records, so that no
        index that has passed to another link can be hit.
        """
        if len(records) == 1:
            requests = [rtnl.del_link_by_altname(batches.record_of(records[0]))]
        else:
            requests = [
                rtnl.set_group_by_altname(batches.record_of(record), group) for record in records
            ]
            requests.append(rtnl.del_links_by_group(group))
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


def _name(error: OSError) -> str:
    return errno_name(error.errno or 0)


def _attach(record: Record) -> str:
    """What an error was about."""
    return f"attach {show(record.workload_id)}"


def _attach_error(record: Record, error: BatchError) -> WorkloadError:
    """The first refusal is the cause; later ones mostly follow from it."""
    operation = _attach(record)
    first = error.errors[0]
    if first.errno == errno.ENODEV:
        return NotFound(f"{operation}: the network namespace was removed meanwhile ({first})")
    if first.errno == errno.EEXIST and "alternative names" in first.what:
        return AlreadyExists(
            f"if_name {show(record.if_name)}: another attachment was made under this name in the "
            "network namespace"
        )
    return KernelRefused(f"{operation}: {first}")
