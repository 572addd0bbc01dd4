# SPDX-License-Identifier: Apache-2.0
"""The one interface between the engine and what makes links, and its values.

Implementations: kernel.KernelDatapath, and testing.fake.FakeDatapath; the
suite in testing/contract.py holds for both.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from metropolis.node.core.network.workloads.errors import KernelRefused
from metropolis.node.core.network.workloads.model import Finding, IPAddress


class IndexTaken(Exception):
    """One of the chosen interface indexes is taken: choose others."""


class UndoFailed(KernelRefused):
    """An attach failed, and so did undoing it: something is left behind."""


@dataclass(frozen=True, slots=True)
class Record:
    """An attachment as it is in the kernel.

    netns_cookie: identity of the workload's namespace. host_ifindex,
    peer_ifindex: indexes of the two ends, each in its namespace, chosen by the
    engine. ips: at least one, IPv4 first. request: digest of what was asked.
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


class Netns(Protocol):
    """An open network namespace, good for one call."""

    @property
    def cookie(self) -> int:
        """Its identity: 64 bits, never used again until reboot."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What is there.

    complete: attachments; no two claim the same. repaired: how many of them
    lacked something that was put back. half_made: names of links that attaches
    which never finished left behind, and that are removed now. duplicates:
    names of links that claimed what another one has, and that are removed
    now. foreign: names of links that look like ours, are not, and were left
    alone.
    """

    complete: tuple[Record, ...]
    repaired: int = 0
    half_made: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


class Datapath(Protocol):
    """Thread-safe but for `open`, `scan` and `close`, called by one at a time.

    Errors are of the WorkloadError family.
    """

    def open(self, on_removed: Callable[[int], None], on_overrun: Callable[[], None]) -> None:
        """Prepare the host, begin to note removals; see watch.

        on_removed: the host index of a link that is gone, anyone's.
        on_overrun: removals were missed; compare with `present`.
        """

    def scan(self) -> Scan:
        """List attachments and clear up after unfinished ones.

        Running traffic is not touched.
        """

    def watch(self) -> None:
        """Begin to call the callbacks, also for what happened since `open`."""

    def present(self) -> frozenset[int]:
        """The host indexes of all links of ours."""

    def open_netns(self, path: str) -> AbstractContextManager[Netns]:
        """Raise InvalidArgument or NotFound when it is not one."""

    def is_home(self, netns: Netns) -> bool:
        """Whether it is the namespace of the host itself."""

    def create(self, netns: Netns, record: Record, *, metric: int) -> None:
        """Make the attachment, wholly, or undo it and raise.

        metric: of its routes inside; 0 for the first interface of a namespace.
        """

    def check(self, record: Record, netns: Netns | None) -> tuple[Finding, ...]:
        """What differs from the record; changes nothing.

        netns: the attachment's namespace; None: what is inside is looked at
        only as far as it can be seen from the host.
        """

    def remove(self, records: Sequence[Record]) -> None:
        """Remove the attachments; what is gone already is no error.

        Returns when they are gone and their addresses may be used again.
        """

    def close(self) -> None:
        """End the callbacks; attachments stay."""
