# SPDX-License-Identifier: Apache-2.0
"""Adopts the links that a restart finds, and restores what others changed.

    scan     at a start: dumps, plans, removes unfinished links and elements of
             no attachment, repairs attachments
    repair   at every look of the reconciler: dumps, compares, repairs
    present  after lost events: returns the links that exist

`plan` and `repairs` decide, and are pure; this module acts.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.datapath import (
    companions,
    flows,
    observe,
    plan,
    queues,
    repairs,
)
from metropolis.node.core.network.workloads.datapath.elements import (
    Element,
    Elements,
    Found,
    found_of,
)
from metropolis.node.core.network.workloads.datapath.host import Host, refusals
from metropolis.node.core.network.workloads.datapath.interface import LockIfIdle, Record, Scan
from metropolis.node.core.network.workloads.datapath.parts import HostFacts, Parts
from metropolis.node.core.network.workloads.errors import WorkloadError
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.netlink.address import RTM_DELADDR, RTM_NEWADDR
from osbase.netlink.errors import (
    BatchError,
    DumpInterrupted,
    NetlinkError,
    RequestError,
    errno_name,
)
from osbase.netlink.forwarding import host_forwards
from osbase.netlink.link import Link, del_link
from osbase.netlink.message import Request
from osbase.netlink.neighbours import RTM_DELNEIGH
from osbase.netlink.route import RTM_NEWROUTE, Route
from osbase.netlink.shaping import del_clsact

log = logging.getLogger(__name__)

# The host routes of workloads, and all links.
type _Dumped = tuple[dict[tuple[IPAddress, int], Route], list[Link]]

# Packets that go another way for a shorter time are not reported: the ward of
# the host may be about to restore routing rules.
_DIVERSION_REPORTED_AFTER_S = 5.0
# Errors of a repair that is done already. An existing route is another's, so
# its EEXIST is none of them.
_ALREADY_PUT_BACK = {
    (RTM_NEWADDR, errno.EEXIST),
    (RTM_DELADDR, errno.EADDRNOTAVAIL),
    (RTM_DELNEIGH, errno.ENOENT),
}


class Restorer:
    """See the module."""

    def __init__(self, host: Host, parts: Parts, elements: Elements, facts: HostFacts) -> None:
        self._host = host
        self._parts = parts
        self._elements = elements
        self._facts = facts
        # Host indexes of attachments with an address to which another program
        # had a route before a start.
        self._contested: set[int] = set()
        # When packets to an address began to leave by another link, monotonic.
        self._diverted_since: dict[tuple[IPAddress, int], float] = {}

    def scan(self) -> Scan:
        """See Datapath."""
        with refusals("recover attachments"):
            return self._scan()

    def _scan(self) -> Scan:
        routes = self._host.routes()
        links = self._host.links()
        planned = plan.plan(links, routes, self._parts, cut_off=self._host.cut_off())
        # First, so that the attachments that stay can have their routes.
        removed = [(link.name, link.ifindex) for link in planned.half_made] + [
            (record.host_interface, record.host_ifindex) for record in planned.duplicates
        ]
        for name, index in removed:
            self._host.batch(del_link(index, name), tolerate={errno.ENODEV})
        self._remove_orphans(links, planned, {index for _, index in removed})
        # Before missing elements are created: stale ones may have their keys.
        held = {one.ifindex for one in planned.held}
        held |= {one.host_ifindex for one in planned.leaving}
        stale = self._remove_stale_elements(planned.complete, held)
        return Scan(
            complete=planned.complete,
            leaving=planned.leaving,
            # Calls come later, so the dumps are as good as new ones.
            repairs=(
                *stale,
                *self._repair_at_start(planned.complete, None if removed else (routes, links)),
            ),
            half_made=tuple(link.name for link in planned.half_made),
            duplicates=tuple(record.host_interface for record in planned.duplicates),
            held=planned.held,
            foreign=planned.foreign,
        )

    def _remove_orphans(
        self, links: Sequence[Link], planned: plan.Plan, removed: Collection[int]
    ) -> None:
        """Delete companions of links that are gone, or have none."""
        having = [one.host_ifindex for one in planned.complete if self._parts.companion(one)]
        others = {link.ifindex for link in links} - set(removed)
        others.difference_update(one.host_ifindex for one in planned.complete)
        living = {one.host_ifindex: one for one in planned.complete}
        for link in companions.orphans(links, having, others):
            requests = [del_link(link.ifindex, link.name)]
            if (owner := living.get(companions.owner(link) or 0)) is not None:
                # It has lost the text, and sends by this one. To a link that is
                # gone, packets are dropped.
                requests.insert(0, del_clsact(owner.host_ifindex, owner.host_interface))
            self._host.batch(*requests, tolerate={errno.ENODEV, errno.ENOENT})

    def _remove_stale_elements(
        self, complete: Sequence[Record], held: Collection[int]
    ) -> Iterator[Repair]:
        """Remove elements of no attachment, and those that differ from their
        attachment's. held: the indexes of links whose addresses are held, or
        that are leaving; their elements stay.
        """
        if not self._parts:
            return
        expected = {
            found_of(record.host_ifindex, element)
            for record in complete
            for element in self._parts.elements(record)
        }
        present = self._elements.present()
        whole = {(one.set, one.key) for one in present if one in expected}
        # If an attachment has the key, another comment is not of this element.
        stale = [
            one for one in present if one.ifindex not in held and (one.set, one.key) not in whole
        ]
        errors: dict[Found, str] = {}
        try:
            self._elements.destroy(stale)
        except WorkloadError as refused:
            errors = dict.fromkeys(self._elements.present(), str(refused))
        gone = [one for one in stale if one not in errors]
        flows.forget_left_over(self._parts, gone, self._elements.sockets)
        for one in stale:
            yield Repair(str(one), f"{one}: is of no attachment", errors.get(one, ""))

    def present(self) -> frozenset[int]:
        """See Datapath."""
        with refusals("list attachments"):
            links = self._host.links()
        return frozenset(link.ifindex for link in links if plan.looks_like_ours(link))

    def _repair_at_start(
        self, records: Sequence[Record], dumped: _Dumped | None
    ) -> tuple[Repair, ...]:
        """Repair the attachments of a scan. Others' routes to their addresses
        may be older: an attach was refused, and the service killed before it
        could undo it. Such routes are never replaced.
        """
        self._contested = set()
        return tuple(self._repair(records, lambda _: True, _free, replace=False, dumped=dumped))

    # ---- Repair -------------------------------------------------------------

    def repair(self, records: Sequence[Record], allow: Allow, hold: LockIfIdle) -> Sequence[Repair]:
        """See Datapath. It takes six dumps and the reading of a file, whatever
        the number of attachments, and a route lookup per address.
        """
        self._contested.intersection_update(record.host_ifindex for record in records)
        with refusals("look at attachments"):
            done = self._repair(records, allow, hold, replace=True)
            return [*done, *self._diverted(records, hold)]

    def _diverted(self, records: Sequence[Record], hold: LockIfIdle) -> Iterator[Repair]:
        """Yield a Repair with an error for each address whose packets do not go
        to its link, though the route exists: another program has a route with a
        smaller metric, a routing rule, or the address. That is not removed, but
        reported if it lasts.
        """
        before, self._diverted_since = self._diverted_since, {}
        now = time.monotonic()
        for record in records:
            for ip in record.ips:
                if not self._elsewhere(record, ip):
                    continue
                with hold(record) as held:
                    # The link is gone meanwhile, and its route with it.
                    if not held or (ip, record.host_ifindex) not in self._host.routes():
                        continue
                    key = (ip, record.host_ifindex)
                    since = self._diverted_since[key] = before.get(key, now)
                    found = self._elsewhere(record, ip)
                    if found and now - since >= _DIVERSION_REPORTED_AFTER_S:
                        yield Repair(
                            f"way to {ip}",
                            f"what is for {ip} goes {found}, not by {record.host_interface}",
                            "a route, rule or address of another program comes first",
                        )

    def _elsewhere(self, record: Record, ip: IPAddress) -> str:
        with self._host.sockets.socket() as host:
            return observe.elsewhere(host, ip, record.host_ifindex)

    def _repair(
        self,
        records: Sequence[Record],
        allow: Allow,
        hold: LockIfIdle,
        *,
        replace: bool,
        dumped: _Dumped | None = None,
    ) -> list[Repair]:
        if not records:
            return []
        # The links last: a link that came meanwhile must not lack its parts.
        routes = dumped[0] if dumped else self._host.routes()
        hops = self._host.first_hops()
        links = {link.ifindex: link for link in (dumped[1] if dumped else self._host.links())}
        neighbours = self._host.neighbours()
        with_parts = any(record.parts for record in records)
        shaped = [one for one in records if self._parts.has_queues(one)]
        seen = repairs.Seen(
            links,
            routes,
            hops,
            host_forwards(),
            self._host.ipv6,
            neighbours,
            set(self._elements.present()) if with_parts else None,
            self._look_at_queues(shaped, links) if shaped else None,
        )
        done: list[Repair] = []
        for record in records:
            taking = replace and record.host_ifindex not in self._contested
            if mends := repairs.mends(record, seen, replace=taking, parts=self._parts):
                with hold(record) as held:
                    if held:
                        done += self._mend(record, mends, allow)
        return done

    def _look_at_queues(
        self, shaped: Sequence[Record], links: Mapping[int, Link]
    ) -> queues.Queues | None:
        """Return the queueing disciplines, and the links of the same moment."""
        redirecting = [one.host_ifindex for one in shaped if self._parts.companion(one)]
        try:
            return queues.look(self._host, redirecting, links)
        except DumpInterrupted as error:
            log.info("%s", error)
            return None

    def _mend(
        self, record: Record, mends: Sequence[repairs.Mend], allow: Allow
    ) -> Iterator[Repair]:
        if any(mend.with_host for mend in mends):
            # The look may have been amid a change of all of the host's links.
            alone = self._host.forwarding_stopped(record.host_ifindex)
            mends = [mend for mend in mends if alone or not mend.with_host]
        if absent := [mend.element for mend in mends if mend.element is not None]:
            # A dump may be older than an element, or lack some.
            made = self._elements.made(record.host_ifindex, absent)
            mends = [mend for mend in mends if mend.element not in made]
        allowed = [mend for mend in mends if allow(mend.key)]
        errors: dict[str, str] = {}
        for mend in allowed:
            if mend.enable_ipv6 and (error := _enable_ipv6(record)):
                errors[mend.key] = error
        # Differences of one part have the same requests, which are sent once.
        keys: dict[tuple[Request, ...], list[str]] = {}
        for mend in allowed:
            keys.setdefault(mend.requests, []).append(mend.key)
        requests = [(those, request) for sent, those in keys.items() for request in sent]
        refused = self._put_back([request for _, request in requests])
        # From another link of the attachment it is an error like others.
        absent_links = any(error.errno == errno.ENODEV for error in refused)
        if absent_links and self._host.link(record.host_ifindex) is None:
            return  # the link is gone
        for one in refused:
            those, request = requests[one.index]
            for key in those:
                errors.setdefault(key, str(one))
            if request.kind == RTM_NEWROUTE and one.errno == errno.EEXIST:
                self._contested.add(record.host_ifindex)
        elements = [mend.element for mend in allowed if mend.element is not None]
        if refusals_of_elements := self._put_back_elements(record.host_ifindex, elements):
            errors |= refusals_of_elements
        elif elements:
            # Flows that began while they were missing go elsewhere.
            flows.correct(self._parts, record, self._elements.sockets, self._facts)
        for mend in mends:
            yield Repair(mend.key, mend.what, errors.get(mend.key, ""), left=mend not in allowed)

    def _put_back_elements(self, ifindex: int, elements: Sequence[Element]) -> dict[str, str]:
        """Create the elements; return the refusals, by the key of the repair.
        If others have taken the place of one, the rest is put back all the
        same.
        """
        try:
            self._elements.create(ifindex, elements)
        except WorkloadError as error:
            if len(elements) == 1:
                return {str(elements[0]): str(error)}
            each = [self._put_back_elements(ifindex, [element]) for element in elements]
            return {key: text for refused in each for key, text in refused.items()}
        return {}

    def _put_back(self, requests: Sequence[Request]) -> Sequence[RequestError]:
        """Send the requests; return the refusals, with the request's index."""
        refused = self._refused(requests)
        if all(error.errno != errno.EINVAL for error in refused):
            return refused
        # EINVAL: the source address of an IPv4 route may be missing on lo.
        try:
            self._host.ensure_first_hop()
        except NetlinkError as error:
            log.warning("put back the first hop: %s", error)
        again = self._refused([requests[error.index] for error in refused])
        return [replace(error, index=refused[error.index].index) for error in again]

    def _refused(self, requests: Sequence[Request]) -> Sequence[RequestError]:
        try:
            self._host.batch(*requests)
        except BatchError as error:
            return [
                one
                for one in error.errors
                if (requests[one.index].kind, one.errno) not in _ALREADY_PUT_BACK
            ]
        except NetlinkError as error:
            return [
                RequestError(index, request.kind, request.what, errno.EIO, str(error))
                for index, request in enumerate(requests)
            ]
        return []


@contextlib.contextmanager
def _free(_: Record) -> Iterator[bool]:
    """Yield True: at a start there are no calls yet."""
    yield True


def _enable_ipv6(record: Record) -> str:
    """Set disable_ipv6 to 0, which rtnetlink cannot. Return the error, or "".
    The thread is in the host's namespace, so its /proc/sys/net is the host's.
    """
    path = f"/proc/sys/net/ipv6/conf/{record.host_interface}/disable_ipv6"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
    except OSError as error:
        return f"write 0 to {path}: {errno_name(error.errno or 0)}"
    return ""
