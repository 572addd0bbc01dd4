# SPDX-License-Identifier: Apache-2.0
"""The one interface between the engine and what makes links, and its values.

Implementations: kernel.KernelDatapath, and testing.fake.FakeDatapath; the
suite in testing/contract.py holds for both.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.errors import KernelRefused
from metropolis.node.core.network.workloads.model import Finding, IPAddress, PartText
from metropolis.node.core.network.workloads.parts import Part


class IndexTaken(Exception):
    """One of the chosen interface indexes is taken: choose others."""


class NoIPv6(KernelRefused):
    """The workload's namespace, or the host, has IPv6 switched off; the attach
    was undone.
    """


class RouteTaken(KernelRefused):
    """The workload's namespace has such a route of this metric, by another
    interface; the attach was undone.
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
    version: int = 2
    parts: tuple[PartText, ...] = ()


class Netns(Protocol):
    """An open network namespace, good for one call."""

    @property
    def cookie(self) -> int:
        """Its identity: 64 bits, never used again until reboot."""


@dataclass(frozen=True, slots=True)
class Held:
    """A link that is left alone, and whose addresses are not to be handed out
    while it is there.

    newer: a newer version made it. record: of an attachment of ours that lost
    its workload id, which is "" here; a call that names it, finds it by
    host_interface.
    """

    name: str
    ifindex: int
    ips: tuple[IPAddress, ...]
    newer: bool = False
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What is there.

    complete: attachments; no two claim the same. repairs: what of them was not
    as it should be. half_made: names of links that attaches which never
    finished left behind, and that are removed now. duplicates: names of links
    that claimed what another one has, and that are removed now. held: see
    Held. foreign: names of links that look like ours, are not, and were left
    alone; those held are among them.
    """

    complete: tuple[Record, ...]
    repairs: tuple[Repair, ...] = ()
    half_made: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()
    foreign: tuple[str, ...] = ()


type HoldIdle = Callable[[Record], AbstractContextManager[bool]]
"""Keep calls away from an attachment; False: one is busy with it, or it is
gone."""


class Datapath(Protocol):
    """Thread-safe but for `open`, `scan` and `close`, called by one at a time.

    Errors are of the WorkloadError family.
    """

    @property
    def parts(self) -> Sequence[Part]:
        """The parts that an attachment may have."""

    @property
    def ipv6(self) -> bool:
        """Whether the host has IPv6 at all; known once it is open."""

    def open(self, on_removed: Callable[[int], None], on_overrun: Callable[[], None]) -> None:
        """Prepare the host, begin to note removals; see watch.

        on_removed: the host index of a link that is gone, anyone's.
        on_overrun: removals were missed; compare with `present`.
        """

    def scan(self) -> Scan:
        """List attachments, put back what they lack, clear up after unfinished
        ones and after those whose links are gone.

        Running traffic is not touched.
        """

    def watch(self) -> None:
        """Begin to call the callbacks, also for what happened since `open`."""

    def present(self) -> frozenset[int]:
        """The host indexes of all links of ours, and of those held."""

    def open_netns(self, path: str) -> AbstractContextManager[Netns]:
        """Raise InvalidArgument or NotFound when it is not one."""

    def is_host_netns(self, netns: Netns) -> bool:
        """Whether it is the namespace of the host itself."""

    def host_interface(self, workload_id: str, if_name: str) -> str:
        """Return the name of the link on the host. Pure."""

    def create(self, netns: Netns, record: Record, *, metric: int) -> None:
        """Make the attachment, wholly, or undo it and raise.

        metric: of its routes inside; 0 for the first interface of a namespace.
        Raises NoIPv6 when that is why.
        """

    def check(self, record: Record, netns: Netns | None) -> tuple[Finding, ...]:
        """What differs from the record; changes nothing.

        netns: the attachment's namespace; None: what is inside is looked at
        only as far as it can be seen from the host.
        """

    def repair(self, records: Sequence[Record], allow: Allow, hold: HoldIdle) -> Sequence[Repair]:
        """Put back on the host what differs from the records.

        What is gone is no difference. Looks at all at once, and then holds
        each that differs for as long as it is put right.
        """

    def remove(self, records: Sequence[Record]) -> None:
        """Remove the attachments; what is gone already is no error.

        Returns when they are gone and their addresses may be used again.
        """

    def clean_up(self, record: Record) -> None:
        """Remove what outlives the link of an attachment whose link is gone."""

    def close(self) -> None:
        """End the callbacks; attachments stay."""
