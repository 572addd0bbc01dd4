# SPDX-License-Identifier: Apache-2.0
"""The datapath made of veth pairs and routes, by batched rtnetlink.

What is sent is in batches: pair (host), inside (namespace), commit (host).

The pair is sent alone, because the kernel goes on after a request that failed:
what follows names the link by its index, which is ours only if it was made.
The commit is one send, thus whole or not at all when the process is
killed. A link without its record is an attach that never finished; routes come
after `up` since the kernel has no route through a link that is down, and a
record tells which are missing.
"""

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from metropolis.node import allocs
from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.datapath import (
    checks,
    messages,
    names,
    observe,
    recovery,
    repairs,
)
from metropolis.node.core.network.workloads.datapath.interface import (
    Hold,
    IndexTaken,
    Netns,
    NoIPv6,
    Record,
    RouteTaken,
    Scan,
    UndoFailed,
)
from metropolis.node.core.network.workloads.datapath.removal import Removals
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
    RequestError,
    errno_name,
)
from osbase.netlink.events import RECEIVE_BUFFER, LinkEvents
from osbase.netlink.message import Request
from osbase.netlink.neighbours import RTM_DELNEIGH, dump_neighbours, parse_written
from osbase.netlink.template import Encoded
from osbase.netlink.transport import NetlinkSocket, SocketPool, make_strict, open_raw

log = logging.getLogger(__name__)

_LOOPBACK = 1  # its index in every namespace
_INSIDE = "the network namespace"
_PATIENCE_S = 0.05  # with another attach
_ELSEWHERE_S = 5.0  # what goes another way for less is not worth a word
# What is put back may be back already; a route that exists is another's.
_PUT_BACK_BEFORE = {
    (rtnl.RTM_NEWADDR, errno.EEXIST),
    (rtnl.RTM_DELADDR, errno.EADDRNOTAVAIL),
    (RTM_DELNEIGH, errno.ENOENT),
}


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
        self._contested: set[int] = set()  # host indexes; see _finish
        self._elsewhere_since: dict[tuple[IPAddress, int], float] = {}  # see _diverted

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
            self._load_veth()
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

    def _load_veth(self) -> None:
        """Else the first pods wait for the module, and the second may not."""
        try:
            self._batch_tolerating({errno.EBADF}, rtnl.load_veth())
        except BatchError as error:
            log.error("no workload can be attached with this kernel: %s", error)

    def _batch(self, *requests: Request) -> None:
        with self._sockets.socket() as host:
            host.batch(requests)

    def _batch_encoded(self, batch: Encoded, requests: Callable[[], Sequence[Request]]) -> None:
        with self._sockets.socket() as host:
            host.batch_encoded(batch, requests)

    def _batch_tolerating(self, tolerated: set[int], *requests: Request) -> None:
        with self._sockets.socket() as host:
            host.batch_tolerating(tolerated, *requests)

    # ---- Recovery ---------------------------------------------------------

    def scan(self) -> Scan:
        """See Datapath."""
        with _refusals("recover attachments"):
            return self._scan()

    def _links(self) -> list[rtnl.Link]:
        with self._sockets.socket() as host:
            return [rtnl.parse_link(message) for message in host.dump(rtnl.dump_links())]

    def _routes(self) -> dict[tuple[IPAddress, int], rtnl.Route]:
        found: dict[tuple[IPAddress, int], rtnl.Route] = {}
        protocol = allocs.ROUTE_PROTOCOL_WORKLOAD
        families = (rtnl.AF_INET, rtnl.AF_INET6) if self._ipv6 else (rtnl.AF_INET,)
        for family in families:
            with self._sockets.socket() as host:
                messages = host.dump(rtnl.dump_routes(family, protocol))
            for message in messages:
                route = rtnl.parse_route(message)
                if route is None or route.protocol != protocol or route.ifindex is None:
                    continue
                if route.destination.prefixlen == route.destination.max_prefixlen:
                    found[route.destination.network_address, route.ifindex] = route
        return found

    def _first_hops(self) -> dict[int, rtnl.Address]:
        """The IPv6 first hops, by index of the link."""
        if not self._ipv6:
            return {}
        with self._sockets.socket() as host:
            messages = host.dump(rtnl.dump_addresses(rtnl.AF_INET6, 0))
        found = (rtnl.parse_address(message) for message in messages)
        return {one.ifindex: one for one in found if one and one.address == allocs.FIRST_HOP_IPV6}

    def _neighbours(self) -> dict[tuple[IPAddress, int], bytes]:
        """MACs that somebody wrote, by address and index of the link."""
        families = (rtnl.AF_INET, rtnl.AF_INET6) if self._ipv6 else (rtnl.AF_INET,)
        found: dict[tuple[IPAddress, int], bytes] = {}
        for family in families:
            with self._sockets.socket() as host:
                for message in host.dump(dump_neighbours(family)):
                    if (one := parse_written(message)) is not None:
                        found[one.address, one.ifindex] = one.mac
        return found

    def _scan(self) -> Scan:
        routes = self._routes()
        plan = recovery.plan(self._links(), routes)
        # First of all, so that what stays can have its routes.
        for name, index in [(link.name, link.ifindex) for link in plan.half_made] + [
            (record.host_interface, record.host_ifindex) for record in plan.duplicates
        ]:
            self._batch_tolerating({errno.ENODEV}, rtnl.del_link(index, name))
        return Scan(
            complete=plan.complete,
            repairs=self._finish(plan.complete),
            half_made=tuple(link.name for link in plan.half_made),
            duplicates=tuple(record.host_interface for record in plan.duplicates),
            held=plan.held,
            foreign=plan.foreign,
        )

    def present(self) -> frozenset[int]:
        """See Datapath."""
        with _refusals("list attachments"):
            links = self._links()
        return frozenset(link.ifindex for link in links if recovery.looks_like_ours(link))

    def _finish(self, records: Sequence[Record]) -> tuple[Repair, ...]:
        """At a start. Routes to these addresses that others have may have been
        there before: an attach was refused, and its service killed before it
        could undo it. Those are never taken.
        """
        self._contested = set()
        return tuple(self._repair(records, lambda _: True, _free, replace=False))

    # ---- Repair -----------------------------------------------------------

    def repair(self, records: Sequence[Record], allow: Allow, hold: Hold) -> Sequence[Repair]:
        """See Datapath. A look is six dumps and a file, however many, and a
        lookup an address.
        """
        self._contested.intersection_update(record.host_ifindex for record in records)
        with _refusals("look at attachments"):
            done = self._repair(records, allow, hold, replace=True)
            return [*done, *self._diverted(records, hold)]

    def _diverted(self, records: Sequence[Record], hold: Hold) -> Iterator[Repair]:
        """Attachments whose routes are there, and not the first: a route of a
        smaller metric, a rule, a local address of others. Not ours to remove;
        but it is what people have to know, unless it is over at once, as when
        the host's own rules are put back.
        """
        before, self._elsewhere_since = self._elsewhere_since, {}
        now = time.monotonic()
        for record in records:
            for ip in record.ips:
                if not self._elsewhere(record, ip):
                    continue
                with hold(record) as held:
                    # What went meanwhile, with its route, is no matter of this.
                    if not held or (ip, record.host_ifindex) not in self._routes():
                        continue
                    key = (ip, record.host_ifindex)
                    since = self._elsewhere_since[key] = before.get(key, now)
                    found = self._elsewhere(record, ip)
                    if found and now - since >= _ELSEWHERE_S:
                        yield Repair(
                            f"way to {ip}",
                            f"what is for {ip} goes {found}, not by {record.host_interface}",
                            "a route, rule or address of another program comes first",
                        )

    def _elsewhere(self, record: Record, ip: IPAddress) -> str:
        with self._sockets.socket() as host:
            return observe.elsewhere(host, ip, record.host_ifindex)

    def _repair(
        self, records: Sequence[Record], allow: Allow, hold: Hold, *, replace: bool
    ) -> list[Repair]:
        if not records:
            return []
        # The links last: what belongs to one that came meanwhile is not missed.
        routes, hops = self._routes(), self._first_hops()
        links = {link.ifindex: link for link in self._links()}
        neighbours = self._neighbours()
        seen = repairs.Seen(links, routes, hops, _forwards(), self._ipv6, neighbours)
        done: list[Repair] = []
        for record in records:
            taking = replace and record.host_ifindex not in self._contested
            if mends := repairs.mends(record, seen, replace=taking):
                with hold(record) as held:
                    if held:
                        done += self._mend(record, mends, allow)
        return done

    def _mend(
        self, record: Record, mends: Sequence[repairs.Mend], allow: Allow
    ) -> Iterator[Repair]:
        allowed = [mend for mend in mends if allow(mend.key)]
        errors: dict[str, str] = {}
        for mend in allowed:
            if mend.enable_ipv6 and (error := _enable_ipv6(record)):
                errors[mend.key] = error
        requests = [(mend.key, request) for mend in allowed for request in mend.requests]
        refused = self._put_back([request for _, request in requests])
        if any(error.errno == errno.ENODEV for error in refused):
            return  # it is gone
        for one in refused:
            key, request = requests[one.index]
            errors.setdefault(key, str(one))
            if request.kind == rtnl.RTM_NEWROUTE and one.errno == errno.EEXIST:
                self._contested.add(record.host_ifindex)
        for mend in mends:
            yield Repair(mend.key, mend.what, errors.get(mend.key, ""), left=mend not in allowed)

    def _put_back(self, requests: Sequence[Request]) -> Sequence[RequestError]:
        """What the kernel refuses: of each request, by its index."""
        refused = self._refused(requests)
        if all(error.errno != errno.EINVAL for error in refused):
            return refused
        # An IPv4 route whose source address somebody took off lo, maybe.
        try:
            self._ensure_first_hop()
        except NetlinkError as error:
            log.warning("put back the first hop: %s", error)
        again = self._refused([requests[error.index] for error in refused])
        return [replace(error, index=refused[error.index].index) for error in again]

    def _refused(self, requests: Sequence[Request]) -> Sequence[RequestError]:
        try:
            self._batch(*requests)
        except BatchError as error:
            return [
                one
                for one in error.errors
                if (requests[one.index].kind, one.errno) not in _PUT_BACK_BEFORE
            ]
        except NetlinkError as error:
            return [
                RequestError(index, request.what, errno.EIO, str(error))
                for index, request in enumerate(requests)
            ]
        return []

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

    @property
    def ipv6(self) -> bool:
        """See Datapath."""
        return self._ipv6

    def is_host_netns(self, netns: Netns) -> bool:
        """See Datapath."""
        return netns.cookie == self._home_cookie

    def host_interface(self, workload_id: str, if_name: str) -> str:
        """See Datapath."""
        return names.host_interface(workload_id, if_name)

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
        if record.ips[-1].version == 6 and not self._ipv6:
            raise NoIPv6(f"{_attach(record)}: the node's kernel has no IPv6")
        self._create_pair(netns, record)
        loopback_was_up = True
        inner = NetlinkSocket(netns.inner)
        where = _INSIDE
        try:
            loopback_was_up = namespaces.loopback_is_up(netns.inner)
            inside = messages.encode_inside(record, metric, loopback=not loopback_was_up)
            inner.batch_encoded(
                inside, lambda: messages.inside(record, metric, loopback=not loopback_was_up)
            )
            where = "the host"
            self._commit(record)
        except BaseException as error:
            self._undo(record, None if loopback_was_up else inner, error)
            if isinstance(error, BatchError):
                raise _attach_error(record, error, where) from error
            if isinstance(error, (NetlinkError, OSError)):
                raise KernelRefused(f"{_attach(record)}: {error}") from error
            raise

    def _create_pair(self, netns: KernelNetns, record: Record) -> None:
        try:
            self._batch_encoded(
                messages.encode_pair(record, netns.fd), lambda: messages.pair(record, netns.fd)
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
            return messages.commit(record, ipv6=self._ipv6)

        try:
            self._batch_encoded(messages.encode_commit(record, ipv6=self._ipv6), requests)
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
                loopback.batch_tolerating(
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
            requests = [rtnl.del_link_by_altname(names.record_altname(records[0]))]
        else:
            requests = [
                rtnl.set_group_by_altname(names.record_altname(record), group) for record in records
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


@contextlib.contextmanager
def _free(_: Record) -> Iterator[bool]:
    """At a start there are no calls yet."""
    yield True


def _forwards() -> bool:
    with open("/proc/sys/net/ipv4/ip_forward", "rb") as file:
        return file.read(1) == b"1"


def _enable_ipv6(record: Record) -> str:
    """Set what rtnetlink cannot. Returns why not; "": done. The thread is in
    the namespace of the host, and so is its /proc/sys/net.
    """
    path = f"/proc/sys/net/ipv6/conf/{record.host_interface}/disable_ipv6"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
    except OSError as error:
        return f"write 0 to {path}: {_name(error)}"
    return ""


def _name(error: OSError) -> str:
    return errno_name(error.errno or 0)


def _attach(record: Record) -> str:
    """What an error was about."""
    return f"attach {show(record.workload_id)}"


def _attach_error(record: Record, error: BatchError, where: str) -> WorkloadError:
    """The first refusal is the cause; later ones mostly follow from it."""
    operation = _attach(record)
    first = error.errors[0]
    if first.errno == errno.EACCES and record.ips[-1].version == 6:
        return NoIPv6(
            f"{operation}: {first}: {where} has IPv6 switched off (net.ipv6.conf.*.disable_ipv6)"
        )
    if first.errno == errno.ENODEV:
        return NotFound(f"{operation}: the network namespace was removed meanwhile ({first})")
    if first.errno == errno.EEXIST and where == _INSIDE and first.what.startswith("add route"):
        return RouteTaken(f"{operation}: {first}")
    if first.errno == errno.EEXIST and "alternative names" in first.what:
        return AlreadyExists(
            f"if_name {show(record.if_name)}: another attachment was made under this name in the "
            "network namespace"
        )
    return KernelRefused(f"{operation}: {first}")
