# SPDX-License-Identifier: Apache-2.0
"""The inputs of the rule set: a value, compared as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from metropolis.node.core.config import NEW_FLOWS_PER_SECOND, NodeAccess
from osbase.ip import IPAddress as IPAddress
from osbase.ip import IPNetwork as IPNetwork

_NOTHING: Final = NodeAccess()


@dataclass(frozen=True)
class Settings:
    """All inputs of the rules.

    networks: the pod networks, the node's own prefixes and its cluster's.
    strays: addresses of workloads whose prefix was withdrawn while they run.
    withheld: the cluster's networks that this node refuses, since they overlap
    addresses in use; in_use: those addresses.
    routed_pods, node_access, forwarded, new_flows_per_second: as configured.
    resolvers: the node's name servers. strict: the uplink's name, for each IP
    version whose only default route it has. overlay: it exists, so WireGuard's
    packets are the node's own. cgroup: path below /sys/fs/cgroup of the
    processes whose TCP connections are not tracked; None: none are.
    """

    networks: tuple[IPNetwork, ...] = ()
    strays: tuple[IPNetwork, ...] = ()
    withheld: tuple[IPNetwork, ...] = ()
    in_use: tuple[IPNetwork, ...] = ()
    routed_pods: bool = False
    node_access: NodeAccess = _NOTHING
    forwarded: tuple[IPNetwork, ...] = ()
    new_flows_per_second: int = NEW_FLOWS_PER_SECOND
    resolvers: tuple[IPAddress, ...] = ()
    strict: tuple[tuple[int, str], ...] = ()
    overlay: bool = False
    cgroup: str | None = None

    @property
    def pods(self) -> tuple[IPNetwork, ...]:
        """Return every network and address of pods."""
        return (*self.networks, *self.strays)
