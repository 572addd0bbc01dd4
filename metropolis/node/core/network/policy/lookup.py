# SPDX-License-Identifier: Apache-2.0
"""What tables say about a connection, as the packet path finds it. Pure.

For flows that exist: there may be many, and to evaluate the policies of each
takes too long.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from metropolis.node.core.network.policy.model import Protocol
from metropolis.node.core.network.policy.tables import WORLD, Identity, Tables, WorldRange
from metropolis.node.core.network.workloads.model import IPAddress

type _Ranges = dict[Identity, list[WorldRange]]


class Lookup:
    """Tables, prepared for many questions."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._ports = defaultdict[tuple[Identity, Identity], list[tuple[Protocol, int, int]]](list)
        for one in tables.pair_ports:
            ends = one.source, one.destination
            self._ports[ends].append((one.protocol, one.first, one.last))
        self._egress = _by_identity(tables.world_egress)
        self._ingress = _by_identity(tables.world_ingress)

    def identity(self, ip: IPAddress) -> Identity:
        """Return the identity of an address; WORLD: it is no workload's."""
        return self._tables.identities.get(ip, WORLD)

    def allows(
        self, source: IPAddress, destination: IPAddress, protocol: Protocol | None, port: int
    ) -> bool:
        """Return whether a connection passes. protocol None: one without ports,
        and port 0. An address that is no workload's is the world.
        """
        tables = self._tables
        ends = self.identity(source), self.identity(destination)
        if source == destination:
            return True
        if ends[0] not in tables.isolated_egress and ends[1] not in tables.isolated_ingress:
            return True
        if ends[0] == WORLD:
            return _in_range(self._ingress.get(ends[1], ()), source, protocol, port)
        if ends[1] == WORLD:
            return _in_range(self._egress.get(ends[0], ()), destination, protocol, port)
        return ends in tables.pairs or any(
            one == protocol and first <= port <= last
            for one, first, last in self._ports.get(ends, ())
        )


def _by_identity(ranges: Iterable[WorldRange]) -> _Ranges:
    found: _Ranges = {}
    for one in ranges:
        found.setdefault(one.identity, []).append(one)
    return found


def _in_range(
    ranges: Iterable[WorldRange], ip: IPAddress, protocol: Protocol | None, port: int
) -> bool:
    return any(
        one.first_ip.version == ip.version
        and int(one.first_ip) <= int(ip) <= int(one.last_ip)
        and (one.protocol is None or (one.protocol is protocol and one.first <= port <= one.last))
        for one in ranges
    )
