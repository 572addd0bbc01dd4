# SPDX-License-Identifier: Apache-2.0
"""The datapath made of veth pairs and routes, by batched rtnetlink.

What is sent is in batches: pair (host), inside (namespace), commit (host). The
nftables elements of its parts, if it has any, are created before the commit, by
one transaction. So what has its record has its elements; if they are there
without it, the link is removed by a start, and they are, as elements of no
link. A removal takes them away before it cuts the link off: nothing leads to an
address that is about to be another's. What others take away is put back by a
start, and by the reconciler.

The pair is sent alone, because the kernel goes on after a request that failed:
later requests name the link by its index, which is ours only if it was made.
The commit is one send, so a kill leaves it whole or unsent. A link without its
record is an attach that never finished; routes come after `up`, since the
kernel has no route through a link that is down, and a record says which are
missing.

Longer than other files: the steps and what undoes them belong together.
"""

import contextlib
import errno
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address

from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.datapath import (
    changes,
    checks,
    companions,
    flows,
    messages,
    names,
    observe,
    queues,
)
from metropolis.node.core.network.workloads.datapath.elements import (
    Element,
    Elements,
)
from metropolis.node.core.network.workloads.datapath.facts import KernelFacts
from metropolis.node.core.network.workloads.datapath.host import LOOPBACK, Host, refusals
from metropolis.node.core.network.workloads.datapath.interface import (
    IndexTaken,
    LockIfIdle,
    Netns,
    NoIPv6,
    Record,
    RouteTaken,
    Scan,
    UndoFailed,
)
from metropolis.node.core.network.workloads.datapath.netns import (
    HostNetns,
    KernelNetns,
    open_netns,
)
from metropolis.node.core.network.workloads.datapath.parts import LinkPart, Parts
from metropolis.node.core.network.workloads.datapath.removal import Remover
from metropolis.node.core.network.workloads.datapath.restore import Restorer
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    KernelRefused,
    NotFound,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import MTU_MIN, Finding, Route
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink import netns as namespaces
from osbase.netlink.address import del_address
from osbase.netlink.errors import BatchError, NetlinkError
from osbase.netlink.events import RECEIVE_BUFFER, LinkEvents
from osbase.netlink.ifla import RTM_NEWLINKPROP
from osbase.netlink.link import Link, LinkRemoved, del_link, set_link_down
from osbase.netlink.message import Request
from osbase.netlink.route import RTM_NEWROUTE
from osbase.netlink.transport import NetlinkSocket, make_strict

log = logging.getLogger(__name__)

_INSIDE = "the network namespace"
_CREATE_LOCK_TIMEOUT_S = 0.05
# There is none; or the kernel has no rules of this family.
_NO_RULE = frozenset((errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP))


class KernelDatapath:
    """Attachments in the network namespace of the thread that calls `open`.

    parts: that attachments may have. event_buffer: bytes of link events that
    the kernel may keep for us.
    """

    def __init__(
        self, parts: Sequence[LinkPart] = (), *, event_buffer: int = RECEIVE_BUFFER
    ) -> None:
        self._parts = Parts(parts)
        self._event_buffer = event_buffer
        self._host = Host()
        self._elements = Elements(self._parts.sets)
        self._facts = KernelFacts(self._host, self._elements)
        self._host_netns: HostNetns | None = None
        self._host_cookie = 0
        self._events: LinkEvents | None = None
        self._restorer = Restorer(self._host, self._parts, self._elements, self._facts)
        self._remover = Remover(self._host, self._parts)
        self._create_lock = threading.Lock()
        # Host indexes of links with parts that have no elements: half-made
        # ones, and those cut off.
        self._bare: set[int] = set()

    # ---- Life ---------------------------------------------------------------

    def open(self, on_removed: Callable[[int], None], on_overrun: Callable[[], None]) -> None:
        """See Datapath. Puts the IPv4 first hop on lo where it is missing."""

        def removed(event: LinkRemoved) -> None:
            on_removed(event.ifindex)

        with refusals("open the datapath"):
            self._host_netns = HostNetns()
            self._host_cookie = self._host_netns.cookie
            self._host.open()
            self._host.ensure_first_hop()
            self._host.load_veth()
            self._events = LinkEvents(removed, on_overrun, receive_buffer=self._event_buffer)

    def watch(self) -> None:
        """See Datapath."""
        assert self._events is not None, "open comes before watch"
        try:
            self._events.start()
        except RuntimeError as error:
            raise KernelRefused(f"watch links: {error}") from error

    def close(self) -> None:
        """See Datapath."""
        events, self._events = self._events, None
        if events is not None:
            events.close()
        self._host.close()
        self._elements.close()
        self._host_netns = None

    # ---- Queries ------------------------------------------------------------

    @property
    def parts(self) -> Sequence[LinkPart]:
        """See Datapath."""
        return self._parts.all

    @property
    def ipv6(self) -> bool:
        """See Datapath."""
        return self._host.ipv6

    def scan(self) -> Scan:
        """See Datapath."""
        return self._restorer.scan()

    def present(self) -> frozenset[int]:
        """See Datapath."""
        return self._restorer.present()

    def repair(self, records: Sequence[Record], allow: Allow, hold: LockIfIdle) -> Sequence[Repair]:
        """See Datapath."""
        return self._restorer.repair(records, allow, hold)

    # ---- Namespaces ---------------------------------------------------------

    def open_netns(self, path: str) -> KernelNetns:
        """See Datapath."""
        host = self._host_netns  # this reference keeps it open
        if host is None:
            raise Unavailable("the workload network service has stopped")
        return open_netns(path, host)

    def is_host_netns(self, netns: Netns) -> bool:
        """See Datapath."""
        return netns.cookie == self._host_cookie

    def host_interface(self, workload_id: str, if_name: str) -> str:
        """See Datapath."""
        return names.host_interface(workload_id, if_name)

    # ---- Attach -------------------------------------------------------------

    def create(
        self, netns: Netns, record: Record, *, metric: int, routes: Sequence[Route] = ()
    ) -> None:
        """See Datapath.

        One at a time, since the kernel serialises them anyway: threads spin for
        its lock (RTNL), which costs a seventh of the throughput with 16
        concurrent attaches. A stuck one does not delay the others.
        """
        alone = self._create_lock.acquire(timeout=_CREATE_LOCK_TIMEOUT_S)
        try:
            self._create(netns, record, metric, routes)
        finally:
            if alone:
                self._create_lock.release()
        if record.parts:
            # Now that the link is up and has its routes: a packet before would
            # make an entry that leads elsewhere.
            flows.correct(self._parts, record, self._elements.sockets, self._facts)

    def _create(self, netns: Netns, record: Record, metric: int, routes: Sequence[Route]) -> None:
        assert isinstance(netns, KernelNetns)
        if record.ips[-1].version == 6 and not self._host.ipv6:
            raise NoIPv6(f"{_attach(record)}: the node's kernel has no IPv6")
        elements = self._parts.elements(record)
        if record.parts:
            with refusals(_attach(record)):
                self._parts.refuse(record, self._facts)
        self._create_pair(netns, record)
        loopback_was_up = True
        made: Sequence[Element] = ()
        inner = NetlinkSocket(netns.inner)
        where = _INSIDE
        try:
            loopback_was_up = namespaces.loopback_is_up(netns.inner)
            self._configure(inner, record, metric, routes, loopback=not loopback_was_up)
            where = "the host"
            self._create_elements(record, elements)
            made = elements
            self._commit(record)
        except BaseException as error:
            loopback = None if loopback_was_up else inner
            self._undo(record, loopback, error, elements=made, inner=inner)
            if isinstance(error, BatchError):
                raise _attach_error(record, error, where) from error
            if isinstance(error, (NetlinkError, OSError)):
                raise KernelRefused(f"{_attach(record)}: {error}") from error
            raise
        # The host's end was set up last, so the kernel has looked at it. The
        # workload's end would drop what is sent in the next milliseconds: the
        # question for a neighbour, which is asked again after a second.
        with contextlib.suppress(OSError):  # the namespace was removed
            namespaces.look_at_carrier(netns.inner, record.if_name)

    def _create_pair(self, netns: KernelNetns, record: Record) -> None:
        try:
            self._host.batch_encoded(
                messages.encode_pair(record, netns.fd), lambda: messages.pair(record, netns.fd)
            )
        except BatchError as error:
            raise self._creation_error(record, error) from error
        except (NetlinkError, OSError) as error:
            # It may have been made or not. The index alone does not tell.
            self._undo(record, None, error, verify=True)
            raise KernelRefused(f"{_attach(record)}: {error}") from error

    def _creation_error(self, record: Record, error: BatchError) -> Exception:
        operation = _attach(record)
        number = error.errors[0].errno
        if number == errno.EBUSY or (
            number == errno.EEXIST and self._host.link(record.host_ifindex)
        ):
            return IndexTaken()
        if number != errno.EEXIST:
            return KernelRefused(f"{operation}: {error}")
        if self._host.link_named(record.host_interface):
            return AlreadyExists(
                f"{operation}: a link {record.host_interface} that this service did not record "
                "exists on the host; remove it"
            )
        return AlreadyExists(f"if_name {show(record.if_name)}: is taken in the network namespace")

    def _configure(
        self,
        inner: NetlinkSocket,
        record: Record,
        metric: int,
        routes: Sequence[Route],
        *,
        loopback: bool,
    ) -> None:
        """Configure the inside."""

        def requests() -> list[Request]:
            return messages.inside(record, metric, routes, loopback=loopback)

        try:
            encoded = messages.encode_inside(record, metric, routes, loopback=loopback)
            inner.batch_encoded(encoded, requests)
        except BatchError as error:
            sent = requests()
            real = [
                one for one in error.errors if not messages.is_harmless(sent[one.index], one.errno)
            ]
            if real:
                raise BatchError(real) from error

    def _create_elements(self, record: Record, elements: Sequence[Element]) -> None:
        try:
            self._elements.create(record.host_ifindex, elements)
        except WorkloadError as error:
            raise type(error)(f"{_attach(record)}: {error}") from error

    def _commit(self, record: Record) -> None:
        # Below this MTU the kernel has no IPv6 on the link.
        ipv6 = self._host.ipv6 and record.mtu >= MTU_MIN
        first = self._parts.requests(record)

        def requests() -> list[Request]:
            return messages.commit(record, ipv6=ipv6, first=first)

        try:
            encoded = messages.encode_commit(record, ipv6=ipv6, first=first)
            self._host.batch_encoded(encoded, requests)
        except BatchError as error:
            sent = requests()
            there = (messages.multicast_route(record), errno.EEXIST)
            failed = {
                (one.index, one.errno)
                for one in error.errors
                if (sent[one.index], one.errno) != there
            }
            if not failed:
                return  # the kernel was first
            # An IPv4 route whose source address is missing on lo.
            route = next(at for at, one in enumerate(sent) if one.kind == RTM_NEWROUTE)
            if failed != {(route, errno.EINVAL)} or record.ips[0].version != 4:
                raise
            self._host.ensure_first_hop()
            self._host.batch(sent[route])

    def _undo(
        self,
        record: Record,
        loopback: NetlinkSocket | None,
        cause: BaseException,
        *,
        verify: bool = False,
        elements: Sequence[Element] = (),
        inner: NetlinkSocket | None = None,
    ) -> None:
        """Remove the elements, the rules inside, the pair, and with it all that
        is on either end, and set lo down again where this attach had set it up.
        """
        try:
            self._elements.destroy(elements)
            if record.parts:
                self._bare.add(record.host_ifindex)
            if inner is not None and record.further:
                inner.batch(messages.leave([record]), tolerate=_NO_RULE)
            link = self._host.link(record.host_ifindex) if verify else None
            if not verify or (link is not None and link.name == record.host_interface):
                requests = [del_link(record.host_ifindex, record.host_interface)]
                if self._parts.companion(record):
                    requests.append(self._del_companion(record))
                self._host.batch(*requests, tolerate={errno.ENODEV})
            if loopback is not None:
                # Its IPv4 address stays when it goes down; the IPv6 one
                # vanishes.
                loopback.batch(
                    [
                        set_link_down(LOOPBACK, "lo"),
                        del_address(LOOPBACK, "lo", IPv4Address("127.0.0.1"), 8),
                    ],
                    tolerate={errno.EADDRNOTAVAIL},
                )
            self._bare.discard(record.host_ifindex)
        except (WorkloadError, NetlinkError, OSError) as error:
            raise UndoFailed(
                f"{_attach(record)}: {cause}; then undoing it failed: {error}; Detach removes "
                "the rest"
            ) from error

    # ---- Check --------------------------------------------------------------

    def check(self, record: Record, netns: Netns | None) -> tuple[Finding, ...]:
        """See Datapath."""
        assert netns is None or isinstance(netns, KernelNetns)
        with refusals(f"check {show(record.workload_id)}"), self._host.sockets.socket() as host:
            side = observe.host_side(host, record)
            findings = list(checks.compare_host(record, side))
            if netns is not None:
                there = observe.inside(NetlinkSocket(make_strict(netns.inner)), record, None)
                findings += checks.compare_inside(record, there)
            elif side.link is not None and side.link.peer_netns is not None:
                there = observe.inside(host, record, side.link.peer_netns)
                findings += checks.compare_inside(record, there)
            if record.parts:
                findings += self._compare_parts(record, side.link)
        return tuple(findings)

    def _compare_parts(self, record: Record, link: Link | None) -> Iterator[Finding]:
        if link is not None:
            seen = self._queues(record) if self._parts.has_queues(record) else None
            for finding, _ in self._parts.findings(record, link, seen):
                yield finding
        yield from self._parts.host_findings(record, self._facts)
        elements = self._parts.elements(record)
        present = self._elements.made(record.host_ifindex, elements) if elements else ()
        for element in elements:
            if element not in present:
                yield Finding(str(element), element.value, checks.NOTHING)

    def _queues(self, record: Record) -> queues.Queues:
        redirecting, links = [], {}
        if self._parts.companion(record):
            redirecting = [record.host_ifindex]
            other = self._host.link(companions.index_of(record.host_ifindex))
            links = {} if other is None else {other.ifindex: other}
        return queues.look(self._host, redirecting, links)

    # ---- Change -------------------------------------------------------------

    def change(self, before: Record, now: Record) -> None:
        """See Datapath, and changes."""
        with refusals(f"change {show(now.workload_id)}"):
            changes.change(self._host, self._parts, before, now)

    # ---- Detach -------------------------------------------------------------

    def leave(self, netns: Netns, records: Sequence[Record]) -> None:
        """See Datapath."""
        assert isinstance(netns, KernelNetns)
        try:
            NetlinkSocket(netns.inner).batch(messages.leave(records), tolerate=_NO_RULE)
        except (NetlinkError, OSError) as error:
            log.warning("detach %s: %s", show(records[0].workload_id), error)

    def cut_off(self, records: Sequence[Record]) -> None:
        """See Datapath, and removal.

        The elements go first, as they send new flows to the link: one that
        began now would be dropped for as long as its client tries, even when
        another workload has the port.
        """
        if not records:
            return
        try:
            self._destroy_elements(records)
        except WorkloadError as error:
            log.warning("%s; the removal of the link tries again", error)
        else:
            self._bare.update(one.host_ifindex for one in records if one.parts)
        self._remover.cut_off(records)

    @property
    def at_once(self) -> int:
        """See Datapath."""
        return self._remover.at_once

    def remove(self, records: Sequence[Record]) -> None:
        """See Datapath, and removal."""
        if not records:
            return
        self._destroy_elements(records)
        flows.forget(self._parts, records, self._elements.sockets)
        self._remover.remove(records)
        self._bare.difference_update([record.host_ifindex for record in records])

    def clean_up(self, record: Record) -> None:
        """See Datapath."""
        self._destroy_elements([record])
        flows.forget(self._parts, [record], self._elements.sockets)
        if self._parts.companion(record):
            with refusals(f"detach {show(record.workload_id)}"):
                self._host.batch(self._del_companion(record), tolerate={errno.ENODEV})
        self._bare.discard(record.host_ifindex)

    def clean_up_link(self, ifindex: int) -> None:
        """See Datapath."""
        if self._parts:
            with refusals(f"list elements of link {ifindex}"):
                found = [one for one in self._elements.present() if one.ifindex == ifindex]
            self._elements.destroy(found)
            flows.forget_left_over(self._parts, found, self._elements.sockets)
            with refusals(f"look for what belongs to link {ifindex}"):
                link = self._host.link(companions.index_of(ifindex))
                if link is not None and companions.owner(link) == ifindex:
                    self._host.batch(del_link(link.ifindex, link.name), tolerate={errno.ENODEV})

    def _del_companion(self, record: Record) -> Request:
        # By its index, which nobody else has: others may have taken the name.
        return del_link(companions.index_of(record.host_ifindex), companions.name_of(record))

    def _destroy_elements(self, records: Sequence[Record]) -> None:
        """Those that the attachments have: not if an attach was refused them,
        and could not be undone; then the keys are others'.
        """
        having = [one for one in records if one.parts and one.host_ifindex not in self._bare]
        try:
            elements = [one for record in having for one in self._parts.elements(record)]
            self._elements.destroy(elements)
        except WorkloadError as error:
            raise KernelRefused(f"detach {show(having[0].workload_id)}: {error}") from error


def _attach(record: Record) -> str:
    """Return the object of an error."""
    return f"attach {show(record.workload_id)}"


def _attach_error(record: Record, error: BatchError, where: str) -> WorkloadError:
    """Make the error of the first refusal; later ones mostly follow from it."""
    operation = _attach(record)
    first = error.errors[0]
    if first.errno == errno.EACCES and record.ips[-1].version == 6:
        return NoIPv6(
            f"{operation}: {first}: {where} has IPv6 switched off (net.ipv6.conf.*.disable_ipv6)"
        )
    if first.errno == errno.ENODEV:
        return NotFound(f"{operation}: the network namespace was removed meanwhile ({first})")
    if first.errno == errno.EEXIST and where == _INSIDE and first.kind == RTM_NEWROUTE:
        return RouteTaken(f"{operation}: {first}")
    if first.errno == errno.EEXIST and first.kind == RTM_NEWLINKPROP:
        return AlreadyExists(
            f"if_name {show(record.if_name)}: another attachment was made under this name in the "
            "network namespace"
        )
    return KernelRefused(f"{operation}: {first}")
