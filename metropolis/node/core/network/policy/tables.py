# SPDX-License-Identifier: Apache-2.0
"""What the kernel gets: policies, compiled. Pure.

An identity is a number for a class of workloads that no policy tells apart; 0
is the world, which is every address that is no workload's. Only what is allowed
is here, and only where an end is isolated, which means that policies decide
about it: between two identities that are not, everything is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from metropolis.node.core.network.policy.model import Protocol
from metropolis.node.core.network.workloads.model import IPAddress

type Identity = int

WORLD: Final[Identity] = 0
IDENTITY_MAX: Final[Identity] = 0xFFFF
"""The largest; identities are halves of a mark."""


@dataclass(frozen=True, slots=True)
class PairPorts:
    """Ports of a destination, first to last, that a source reaches. 0 to 65535:
    the whole protocol.
    """

    source: Identity
    destination: Identity
    protocol: Protocol
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class WorldRange:
    """Addresses of the world that an identity reaches, or that reach it:
    first_ip to last_ip, of one family. protocol None: whatever the protocol;
    the ports are 0 to 65535 then.
    """

    identity: Identity
    first_ip: IPAddress
    last_ip: IPAddress
    protocol: Protocol | None = None
    first: int = 0
    last: int = 65535


@dataclass(frozen=True, slots=True)
class Tables:
    """identities: of each address of a workload. isolated_egress,
    isolated_ingress: identities about whose connections in that direction
    policies decide. pairs: source and destination, whatever the protocol and
    port. pair_ports: further ones. world_egress, world_ingress: what isolated
    identities may do with the world.

    Ranges of the same kind do not overlap: of one pair and protocol; of one
    identity, direction, family and protocol.
    """

    identities: Mapping[IPAddress, Identity] = field(default_factory=dict)
    isolated_egress: frozenset[Identity] = frozenset()
    isolated_ingress: frozenset[Identity] = frozenset()
    pairs: frozenset[tuple[Identity, Identity]] = frozenset()
    pair_ports: frozenset[PairPorts] = frozenset()
    world_egress: frozenset[WorldRange] = frozenset()
    world_ingress: frozenset[WorldRange] = frozenset()
