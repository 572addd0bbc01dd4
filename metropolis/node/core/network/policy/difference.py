# SPDX-License-Identifier: Apache-2.0
"""The step from tables to others, for one transaction. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from metropolis.node.core.network.policy.tables import Identity, Tables
from metropolis.node.core.network.workloads.model import IPAddress


@dataclass(frozen=True, slots=True)
class Difference:
    """Elements to remove, and then elements to add. An address whose identity
    changes is in both, with the identity of before and of after.
    """

    removed: Tables
    added: Tables

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return self.removed != Tables() or self.added != Tables()


def difference(before: Tables, after: Tables) -> Difference:
    """Return what makes tables equal to others."""
    return Difference(removed=_without(before, after), added=_without(after, before))


def _without(tables: Tables, others: Tables) -> Tables:
    return Tables(
        identities=_other_identities(tables.identities, others.identities),
        isolated_egress=tables.isolated_egress - others.isolated_egress,
        isolated_ingress=tables.isolated_ingress - others.isolated_ingress,
        pairs=tables.pairs - others.pairs,
        pair_ports=tables.pair_ports - others.pair_ports,
        world_egress=tables.world_egress - others.world_egress,
        world_ingress=tables.world_ingress - others.world_ingress,
    )


def _other_identities(
    identities: Mapping[IPAddress, Identity], others: Mapping[IPAddress, Identity]
) -> dict[IPAddress, Identity]:
    if identities is others:
        return {}
    # To hash all addresses takes many milliseconds. A compiler's tables have
    # the same objects, mostly in the same order.
    common = 0
    for ip, other in zip(identities, others, strict=False):
        if ip is not other:
            break
        common += 1
    changed = {
        ip: number
        for (ip, number), other in islice(
            zip(identities.items(), others.values(), strict=False), common
        )
        if number != other
    }
    # Behind the first gap, addresses are in any order.
    rest = islice(identities.items(), common, None)
    return changed | {ip: number for ip, number in rest if others.get(ip) != number}
