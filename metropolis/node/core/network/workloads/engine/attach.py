# SPDX-License-Identifier: Apache-2.0
"""The steps of an attach, in their order.

    step      by         takes or makes                   after a crash there is
    --------  ---------  -------------------------------  ----------------------
    protect   ledger     no Collect touches the workload  nothing
    lock      locks      the workload, the namespace      nothing
    reserve   ledger     addresses, indexes, the names,   nothing: all of it
                         the resources of parts; after      is in memory
                         the end of what is leaving
                         and has them
    admit     policies   what the workload may have       elements of an address
                         connections with                   that nobody has
    create    datapath   the pair of links                a link without records
                         the inside of the namespace        (a start removes it)
                         nftables elements of parts       elements, too
                                                            (removed as well)
                         what parts add to the link,      an attachment
                         records and routes (the commit)    (a start adopts it)
    settle    ledger     ATTACHED; an event for watchers  an attachment

After an error of `create` nothing is left, and the reservation is dropped. If
undoing fails as well, the entry is BROKEN: a Detach or the next Attach removes
the remains. A repeated request gets the attachment that exists.

If the link is gone when the attach settles, its elements remain: they are
removed before its addresses and resources are freed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from metropolis.node.core.network.workloads.datapath.interface import (
    Datapath,
    IndexTaken,
    Netns,
    NoIPv6,
    Record,
    RouteTaken,
    UndoFailed,
)
from metropolis.node.core.network.workloads.engine.detach import Detacher
from metropolis.node.core.network.workloads.engine.entries import Entry, State, attachment_of
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.left_alone import LeftAlone
from metropolis.node.core.network.workloads.engine.locks import (
    Locks,
    TimeRemaining,
    check_still_wanted,
)
from metropolis.node.core.network.workloads.engine.losses import Losses
from metropolis.node.core.network.workloads.engine.numbers import (
    free_peer_index,
    further_metric,
    random_index,
)
from metropolis.node.core.network.workloads.engine.policies import Policies
from metropolis.node.core.network.workloads.engine.readiness import IPV6_REMEDY, Readiness
from metropolis.node.core.network.workloads.engine.removals import PATIENCE_S, Removals
from metropolis.node.core.network.workloads.engine.reservation import Reservation, StillLeaving
from metropolis.node.core.network.workloads.engine.settings import Settings
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    InvalidArgument,
    KernelRefused,
    NotFound,
    Unavailable,
)
from metropolis.node.core.network.workloads.model import AttachIntent, Attachment
from metropolis.node.core.network.workloads.parts import Part, is_of_request
from metropolis.node.core.network.workloads.validate import show

_INDEX_ATTEMPTS = 8


class Attacher:
    """See the module."""

    def __init__(
        self,
        ledger: Ledger,
        datapath: Datapath,
        locks: Locks,
        settings: Settings,
        readiness: Readiness,
        left_alone: LeftAlone,
        detacher: Detacher,
        removals: Removals,
        losses: Losses,
        policies: Policies,
    ) -> None:
        self._ledger = ledger
        self._datapath = datapath
        self._locks = locks
        self._settings = settings
        self._readiness = readiness
        self._left_alone = left_alone
        self._detacher = detacher
        self._removals = removals
        self._losses = losses
        self._policies = policies

    def attach(
        self, intent: AttachIntent, time_remaining: TimeRemaining
    ) -> tuple[Attachment, bool]:
        """See Engine.attach. Also return whether it is new."""
        workload_id = intent.workload_id
        with (
            self._ledger.protect(workload_id),
            self._locks.workload.hold(workload_id, time_remaining),
        ):
            self._left_alone.claim(workload_id)
            present = self._ledger.find(workload_id, intent.if_name)
            if present is None:
                self._readiness.refuse_unless_ready()
            with self._datapath.open_netns(intent.netns_path) as netns:
                if self._datapath.is_host_netns(netns):
                    raise InvalidArgument(
                        f"netns.netns_path {show(intent.netns_path)}: is the namespace of the host"
                    )
                if present is not None and present.state is State.BROKEN:
                    self._detacher.remove([present], at_once=True)
                elif present is not None and not present.gone:
                    found = _same_or_raise(
                        present.record, intent, netns.cookie, self._datapath.parts
                    )
                    if intent.identity is not None:
                        self._policies.admit(present.record, intent.identity)
                    return _with_routes(found, intent), False
                with self._locks.namespace.hold(netns.cookie, time_remaining):
                    made = self._make(intent, netns, time_remaining)
                    return _with_routes(made, intent), True

    def _reserve(
        self, intent: AttachIntent, netns: Netns, time_remaining: TimeRemaining
    ) -> Reservation:
        """Reserve, after the end of what is leaving and has what this needs."""
        ends = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._ledger.reserve(
                    intent,
                    cookie=netns.cookie,
                    host_interface=self._datapath.host_interface(
                        intent.workload_id, intent.if_name
                    ),
                    mtu=self._settings.mtu,
                    ipv6=self._datapath.ipv6,
                )
            except StillLeaving as found:
                leaving = found
            if time.monotonic() > ends:
                raise Unavailable(
                    f"attach {show(intent.workload_id)}: others still leave after "
                    f"{PATIENCE_S:g} s; try again"
                ) from leaving.error
            if leaving.lost and leaving.error is not None:
                if not self._losses.await_free(leaving.entries, time_remaining):
                    raise leaving.error
            else:
                self._removals.await_gone(
                    leaving.entries, time_remaining, one=leaving.error is not None
                )
            check_still_wanted(time_remaining)

    def _make(
        self, intent: AttachIntent, netns: Netns, time_remaining: TimeRemaining
    ) -> Attachment:
        reserved = self._reserve(intent, netns, time_remaining)
        entry = reserved.entry
        try:
            self._create(reserved, netns, intent)
        except UndoFailed:
            self._detacher.settle(entry, State.BROKEN)
            raise
        except BaseException:
            self._policies.forget([entry.record])
            self._ledger.drop(entry)
            raise
        try:
            self._ledger.check_presence(reserved, self._datapath.present)
        except BaseException:
            # The links are there, and have the addresses.
            self._detacher.settle(entry, State.BROKEN)
            raise
        if not self._detacher.settle(entry, State.ATTACHED):
            raise NotFound(
                f"attach {show(intent.workload_id)}: the network namespace was removed meanwhile"
            )
        return attachment_of(entry.record)

    def _create(self, reserved: Reservation, netns: Netns, intent: AttachIntent) -> None:
        """Create the links. If others have one of the indexes or a route, try
        again with another index or metric.
        """
        entry, metric = reserved.entry, reserved.metric
        for _ in range(_INDEX_ATTEMPTS):
            self._policies.admit(entry.record, intent.identity)
            try:
                self._datapath.create(netns, entry.record, metric=metric, routes=intent.routes)
                return
            except IndexTaken:
                # Taken by another program's link, here or in the namespace.
                self._ledger.renumber(entry, peer_ifindex=random_index())
            except NoIPv6 as error:
                self._refuse_unless_optional(entry, intent, error)
                self._ledger.renumber(entry, without_ipv6=True)
            except RouteTaken:
                # Another plugin's interface has it: it stays the preferred one.
                peer = entry.record.peer_ifindex
                if metric:
                    # Or the workload has it: with this metric, or in the table
                    # of this index.
                    peer = random_index()
                elif not entry.record.further:
                    peer = free_peer_index({peer})
                metric = further_metric(peer)
                self._ledger.renumber(entry, peer_ifindex=peer)
        raise KernelRefused(
            f"attach {show(entry.record.workload_id)}: found no free interface index, "
            f"or none whose routes are free, in {_INDEX_ATTEMPTS} attempts"
        )

    def _refuse_unless_optional(self, entry: Entry, intent: AttachIntent, error: NoIPv6) -> None:
        """Raise KernelRefused unless the attachment may have IPv4 alone."""
        if not self._settings.ipv6_optional:
            raise KernelRefused(f"{error}; {IPV6_REMEDY}") from error
        asked = [
            *(ip.version for ip in intent.requested_ips),
            *(route.destination.version for route in intent.routes),
        ]
        if entry.record.ips[0].version == 6 or 6 in asked:
            raise KernelRefused(f"{error}; and IPv6 is all there is, or was asked for") from error


def _with_routes(made: Attachment, intent: AttachIntent) -> Attachment:
    """Return the answer to the attach: the records do not have these routes."""
    if not intent.routes:
        return made
    return replace(made, routes=(*made.routes, *intent.routes))


def _same_or_raise(
    record: Record, intent: AttachIntent, cookie: int, parts: Sequence[Part]
) -> Attachment:
    """Return the attachment if the same intent made it, else raise."""
    operation = f"attach {show(intent.workload_id)}, interface {show(intent.if_name)}"
    if record.netns_cookie != cookie:
        raise AlreadyExists(f"{operation}: exists in another network namespace")
    # The digest covers the parts, but the link may have lost a part's names.
    if record.request != intent.digest() or not is_of_request(record.parts, intent.parts):
        ips, mac = ", ".join(map(str, record.ips)), record.mac.hex(":")
        names = {part.letter: part.name for part in parts}
        there = "".join(f", {names.get(one, one)} {show(text)}" for one, text in record.parts)
        raise AlreadyExists(
            f"{operation}: exists with {ips}, MAC {mac}{there}, made by a request for "
            f"{_other(record, intent, names)}; detach it first"
        )
    return attachment_of(record)


def _other(record: Record, intent: AttachIntent, names: Mapping[str, str]) -> str:
    """Say in what the request that made the attachment may differ."""
    now, asked = dict(record.parts), dict(intent.parts)
    letters = sorted(one for one in now | asked if now.get(one) != asked.get(one))
    said = [f"another {names.get(one, one)}" for one in letters]
    if not is_of_request(record.parts, intent.parts):
        return ", ".join(said)
    return ", ".join(["other addresses, another MAC, MTU or other routes", *said])
