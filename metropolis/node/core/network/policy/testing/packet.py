# SPDX-License-Identifier: Apache-2.0
"""What the first packet of a connection meets in the tables, step by step as in
the kernel, and naive. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from metropolis.node.core.network.policy.model import Protocol
from metropolis.node.core.network.policy.tables import WORLD, Identity, Tables, WorldRange
from metropolis.node.core.network.workloads.model import IPAddress


def passes(
    tables: Tables,
    source: IPAddress,
    destination: IPAddress,
    protocol: Protocol | None,
    port: int,
) -> bool:
    """Return whether a connection passes. A workload's connection to itself
    meets no table, so do not ask for one.
    """
    origin = tables.identities.get(source, WORLD)
    target = tables.identities.get(destination, WORLD)
    if (origin, target) in tables.pairs:
        return True
    if protocol is not None and _has_port(tables, origin, target, protocol, port):
        return True
    if target == WORLD:
        return origin not in tables.isolated_egress or _in_range(
            tables.world_egress, origin, destination, protocol, port
        )
    if origin == WORLD:
        return target not in tables.isolated_ingress or _in_range(
            tables.world_ingress, target, source, protocol, port
        )
    return origin not in tables.isolated_egress and target not in tables.isolated_ingress


def _has_port(
    tables: Tables, origin: Identity, target: Identity, protocol: Protocol, port: int
) -> bool:
    return any(
        (one.source, one.destination, one.protocol) == (origin, target, protocol)
        and one.first <= port <= one.last
        for one in tables.pair_ports
    )


def _in_range(
    ranges: Iterable[WorldRange],
    identity: Identity,
    address: IPAddress,
    protocol: Protocol | None,
    port: int,
) -> bool:
    return any(
        one.identity == identity
        and one.first_ip.version == address.version
        and int(one.first_ip) <= int(address) <= int(one.last_ip)
        and (one.protocol is None or (one.protocol is protocol and one.first <= port <= one.last))
        for one in ranges
    )
