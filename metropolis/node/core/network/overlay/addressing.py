# SPDX-License-Identifier: Apache-2.0
"""Addresses and routes of the overlay, from the mesh. Pure.

    networks 10.192.0.0/12, own 10.192.7.0/24:

    10.192.7.3        dev wl3f2a       a pod here: the workloads' route
    10.192.7.0/24     unreachable      absent pods here
    10.192.0.0/12     dev overlay      pods elsewhere, src 10.192.7.0
    10.192.7.0/32     on overlay       this node, to pods

The source is the network address of a prefix, which no pod ever gets. A family
without a prefix has no source address, and no route: traffic to its networks
then meets the rule set, which lets nothing out (network.rules).

Unreachable routes have the better metric, for a network that is one node's
prefix. They also record which prefixes the node holds (`held`), over a restart
of the process while etcd is away.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.overlay.device import Links
from metropolis.node.core.network.overlay.mesh import IPAddress, IPNetwork, Mesh
from osbase.netlink.route import RTN_UNREACHABLE, Route

_METRIC_HELD: Final = 50
_METRIC_NETWORK: Final = 100


def wanted(mesh: Mesh) -> Links:
    """Return the addresses and routes that the mesh needs."""
    sources: dict[int, IPAddress] = {}
    for prefix in mesh.own:
        sources.setdefault(prefix.version, prefix.network_address)
    protocol = allocs.ROUTE_PROTOCOL_OVERLAY
    held = {
        Route(prefix, None, protocol, kind=RTN_UNREACHABLE, metric=_METRIC_HELD)
        for prefix in mesh.own
    }
    networks = {
        Route(network, None, protocol, source=sources[network.version], metric=_METRIC_NETWORK)
        for network in mesh.networks
        if network.version in sources
    }
    return Links(frozenset(sources.values()), frozenset(held | networks))


def difference(present: Links, target: Links) -> tuple[Links, Links]:
    """Return those to add and those to remove. A route that only gets another
    source is replaced, never removed.
    """
    add = Links(target.addresses - present.addresses, target.routes - present.routes)
    kept = {(route.destination, route.metric) for route in target.routes}
    stale = {
        route
        for route in present.routes - target.routes
        if (route.destination, route.metric) not in kept
    }
    return add, Links(present.addresses - target.addresses, frozenset(stale))


def held(routes: Iterable[Route]) -> tuple[IPNetwork, ...]:
    """Return the node's prefixes, in order, IPv4 first, from its routes."""
    return _in_order(route for route in routes if route.kind == RTN_UNREACHABLE)


def networks(routes: Iterable[Route]) -> tuple[IPNetwork, ...]:
    """Return the pod networks, in order, IPv4 first, from the node's routes."""
    return _in_order(route for route in routes if route.kind != RTN_UNREACHABLE)


def _in_order(routes: Iterable[Route]) -> tuple[IPNetwork, ...]:
    found = {route.destination for route in routes}
    fours = sorted(one for one in found if isinstance(one, IPv4Network))
    sixes = sorted(one for one in found if isinstance(one, IPv6Network))
    return (*fours, *sixes)
