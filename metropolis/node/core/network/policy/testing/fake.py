# SPDX-License-Identifier: Apache-2.0
"""The kernel's tables in memory: a fake of manager.Kernel."""

from __future__ import annotations

from collections.abc import Collection

from metropolis.node.core.network.policy.lookup import Lookup
from metropolis.node.core.network.policy.model import Protocol
from metropolis.node.core.network.policy.tables import Identity, Tables
from metropolis.node.core.network.workloads.errors import KernelRefused
from metropolis.node.core.network.workloads.model import IPAddress


class FakeKernel:
    """refuses: whether it refuses changes. keeps_flows: whether it refuses to
    cut flows. transactions: how many it made. ended: the addresses of each
    call to cut flows; revoked: its identities, and `every`. is_foreign: whether
    there are elements that no policies make.
    """

    def __init__(self) -> None:
        self.tables = Tables()
        self.refuses = False
        self.keeps_flows = False
        self.ended: list[set[IPAddress]] = []
        self.transactions = 0
        self.is_policed = False
        self.is_foreign = False
        self.revoked: list[tuple[set[Identity], bool]] = []

    def read(self) -> Tables | None:
        """See Kernel."""
        return None if self.is_foreign else self.tables

    def replace(self, tables: Tables, *, policed: bool) -> None:
        """See Kernel."""
        self.is_foreign = self.is_foreign and self.refuses
        self.apply(self.tables, tables, policed=policed, present=None)

    def apply(
        self,
        removed: Tables,
        added: Tables,
        *,
        policed: bool,
        present: Collection[Identity] | None,
    ) -> None:
        """See Kernel. AssertionError: what the kernel would refuse."""
        if self.refuses:
            raise KernelRefused("policies: no memory")
        self.transactions += 1
        self.is_policed = policed
        now = self.tables
        identities = dict(now.identities)
        for ip, number in removed.identities.items():
            assert identities.pop(ip) == number
        for ip, number in added.identities.items():
            assert ip not in identities
            identities[ip] = number
        self.tables = Tables(
            identities,
            _changed(now.isolated_egress, removed.isolated_egress, added.isolated_egress),
            _changed(now.isolated_ingress, removed.isolated_ingress, added.isolated_ingress),
            _changed(now.pairs, removed.pairs, added.pairs),
            _changed(now.pair_ports, removed.pair_ports, added.pair_ports),
            _changed(now.world_egress, removed.world_egress, added.world_egress),
            _changed(now.world_ingress, removed.world_ingress, added.world_ingress),
        )

    def revoke(
        self,
        changed: Collection[Identity],
        lookup: Lookup,
        *,
        every: bool,
        ended: Collection[IPAddress] = (),
    ) -> int:
        """See Kernel. There are no flows."""
        if self.keeps_flows:
            raise KernelRefused("policies: list flows: no memory")
        self.ended.append(set(ended))
        self.revoked.append((set(changed), every))
        return 0

    def policed(self) -> bool:
        """See Kernel."""
        return self.is_policed

    def allows(self, source: IPAddress, destination: IPAddress, port: int) -> bool:
        """Return what becomes of a new TCP connection between workloads."""
        return Lookup(self.tables).allows(source, destination, Protocol.TCP, port)


def _changed[T](now: frozenset[T], removed: frozenset[T], added: frozenset[T]) -> frozenset[T]:
    assert removed <= now
    assert not added & (now - removed)
    return (now - removed) | added
