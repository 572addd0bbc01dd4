# SPDX-License-Identifier: Apache-2.0
"""The interface between the engine and the implementations of links.

Implementations: veth.KernelDatapath, and testing.fake.FakeDatapath; both pass
the suite in testing/contract.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.errors import KernelRefused
from metropolis.node.core.network.workloads.model import (
    Finding,
    IPAddress,
    PartText,
    Route,
)
from metropolis.node.core.network.workloads.parts import Part

FIRST_PEER_INDEX: Final = 2
"""The index of a namespace's first interface in it: the first after lo."""


class IndexTaken(Exception):
    """One of the chosen interface indexes is taken: choose others."""


class NoIPv6(KernelRefused):
    """The workload's namespace, or the host, has IPv6 switched off; the attach
    was undone.
    """


class RouteTaken(KernelRefused):
    """Another interface has such a route with this metric in the workload's
    namespace; the attach was undone.
    """


class UndoFailed(KernelRefused):
    """An attach failed, and so did undoing it: something is left behind."""


@dataclass(frozen=True, slots=True)
class Record:
    """An attachment as it is in the kernel.

    netns_cookie: identity of the workload's namespace. host_ifindex,
    peer_ifindex: indexes of the two ends, each in its namespace, chosen by the
    engine. ips: at least one, IPv4 first. request: digest of what was asked.
    owner: who asked; "" is not known. version: of the names on the link.
    parts: see AttachIntent.
    """

    workload_id: str
    if_name: str
    netns_cookie: int
    host_interface: str
    host_ifindex: int
    peer_ifindex: int
    mac: bytes
    mtu: int
    ips: tuple[IPAddress, ...]
    request: bytes
    owner: str = ""
    version: int = 3
    parts: tuple[PartText, ...] = ()

    @property
    def further(self) -> bool:
        """Whether it is not its namespace's first interface, or came into a
        namespace with another program's: routing rules send by it what has its
        addresses. They are not removed by the kernel with the link.
        """
        return self.peer_ifindex != FIRST_PEER_INDEX


class Netns(Protocol):
    """An open network namespace, valid for one call."""

    @property
    def cookie(self) -> int:
        """Return its identity: 64 bits, not reused until reboot."""


@dataclass(frozen=True, slots=True)
class Held:
    """A link that is left alone; its addresses are not handed out while it
    exists.

    newer: a newer version made it. record: an attachment of ours that lost its
    workload id, which is "" here; a call with the id finds it by
    host_interface.
    """

    name: str
    ifindex: int
    ips: tuple[IPAddress, ...]
    newer: bool = False
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """The state that a scan found.

    complete: attachments; no two claim the same. repairs: their differences
    from what they should be. half_made: names of links from unfinished
    attaches, removed now. leaving: attachments whose removal had begun, and is
    to be finished. duplicates: names of links that claimed what another
    one has, removed now. held: see Held. foreign: names of links that look like
    ours, are not, and were left alone; the held ones are among them.
    """

    complete: tuple[Record, ...]
    repairs: tuple[Repair, ...] = ()
    half_made: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()
    foreign: tuple[str, ...] = ()
    leaving: tuple[Record, ...] = ()


type LockIfIdle = Callable[[Record], AbstractContextManager[bool]]
"""Lock an attachment against calls; False: a call is busy with it, or it is
gone."""


class Datapath(Protocol):
    """Thread-safe, except `open`, `scan` and `close`, which one thread calls.

    Errors are of the WorkloadError family.
    """

    @property
    def parts(self) -> Sequence[Part]:
        """The parts that an attachment may have."""

    @property
    def ipv6(self) -> bool:
        """Whether the host has IPv6 at all; known once it is open."""

    def open(self, on_removed: Callable[[int], None], on_overrun: Callable[[], None]) -> None:
        """Prepare the host, begin to record removals; see watch.

        on_removed: called with the host index of any link that is gone.
        on_overrun: events were lost; compare with `present`.
        """

    def scan(self) -> Scan:
        """List attachments, put back what they lack, clear up after unfinished
        ones and after those whose links are gone.

        Running traffic is not disturbed.
        """

    def watch(self) -> None:
        """Begin the callbacks, also for events since `open`."""

    def present(self) -> frozenset[int]:
        """Return the host indexes of all links of ours, and of held ones."""

    def open_netns(self, path: str) -> AbstractContextManager[Netns]:
        """Open it; raise InvalidArgument or NotFound if it is none."""

    def is_host_netns(self, netns: Netns) -> bool:
        """Return whether it is the namespace of the host itself."""

    def host_interface(self, workload_id: str, if_name: str) -> str:
        """Return the name of the link on the host. Pure."""

    def create(
        self, netns: Netns, record: Record, *, metric: int, routes: Sequence[Route] = ()
    ) -> None:
        """Make the attachment, wholly, or undo it and raise.

        metric: of its routes inside; 0 for the first interface of a namespace.
        routes: that it has besides those of every interface.
        Raises NoIPv6 if IPv6 is off.
        """

    def change(self, before: Record, now: Record) -> None:
        """Give an attachment other texts of parts, or undo it and raise. A
        start finds either these or those before, and repairs the rest. A
        vanished link is no error.
        """

    def leave(self, netns: Netns, records: Sequence[Record]) -> None:
        """Remove the routing rules of attachments in the open namespace, which
        are to be removed. Not an error if that is not possible: without the
        links they do nothing, and the next attach with the index removes them.
        """

    def check(self, record: Record, netns: Netns | None) -> tuple[Finding, ...]:
        """Return the differences from the record; change nothing.

        netns: the attachment's namespace; None: the inside is compared only as
        far as the host can see it.
        """

    def repair(self, records: Sequence[Record], allow: Allow, hold: LockIfIdle) -> Sequence[Repair]:
        """Restore on the host what differs from the records.

        A vanished link is no difference. It reads all at once, and then locks
        each attachment that differs while it is repaired.
        """

    def cut_off(self, records: Sequence[Record]) -> None:
        """Let no packet from or to the attachments pass any more: they are to
        be removed, by the next service if not by this one. A vanished one is
        no error. After an error some may be cut off.
        """

    @property
    def at_once(self) -> int:
        """How many a call of `remove` should get, so that other calls do not
        wait long for the kernel.
        """

    def remove(self, records: Sequence[Record]) -> None:
        """Remove the attachments, cut off or not; a vanished one is no error.

        Returns when they are gone and their addresses may be used again.
        """

    def clean_up(self, record: Record) -> None:
        """Remove what outlives the link of an attachment whose link is gone."""

    def clean_up_link(self, ifindex: int) -> None:
        """Do the same for a link that was left alone, by its index."""

    def close(self) -> None:
        """End the callbacks; attachments stay."""
