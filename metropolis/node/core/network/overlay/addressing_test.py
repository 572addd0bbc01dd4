# SPDX-License-Identifier: Apache-2.0
"""The wanted addresses and routes, and the changes that lead there."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.overlay import addressing
from metropolis.node.core.network.overlay.device import Links
from metropolis.node.core.network.overlay.mesh import IPNetwork, Mesh
from metropolis.node.core.network.overlay.testing.contract import net
from osbase.netlink.route import RTN_UNREACHABLE

NETWORKS = net("10.192.0.0/12", "fd00:10:192::/64")


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    """Networks of none, one or both families; up to three prefixes of each."""
    numbers = draw(st.lists(st.integers(0, 9), max_size=3, unique=True))
    own: list[IPNetwork] = [ip_network(f"10.192.{number}.0/24") for number in numbers]
    if draw(st.booleans()):
        own += [ip_network(f"fd00:10:192::{number}:0/112") for number in numbers]
    networks = draw(st.sampled_from([(), NETWORKS[:1], NETWORKS[1:], NETWORKS]))
    return Mesh(networks, tuple(own))


def test_an_example() -> None:
    wanted = addressing.wanted(
        Mesh(NETWORKS, net("10.192.7.0/24", "10.192.9.0/24", "fd00:10:192::7:0/112"))
    )
    assert {str(one) for one in wanted.addresses} == {"10.192.7.0", "fd00:10:192::7:0"}
    sources = {str(one.destination): str(one.source) for one in wanted.routes if one.source}
    assert sources == {"10.192.0.0/12": "10.192.7.0", "fd00:10:192::/64": "fd00:10:192::7:0"}
    held = net("10.192.7.0/24", "10.192.9.0/24", "fd00:10:192::7:0/112")
    assert addressing.held(wanted.routes) == held
    assert all(route.protocol == 78 for route in wanted.routes)


def test_nothing_of_a_family_without_a_prefix_of_it() -> None:
    assert addressing.wanted(Mesh(NETWORKS)) == Links()
    wanted = addressing.wanted(Mesh(NETWORKS, net("10.192.7.0/24")))
    assert {route.destination.version for route in wanted.routes} == {4}


@given(meshes(), meshes())
def test_the_difference_leads_there(before: Mesh, after: Mesh) -> None:
    """Apply as the kernel does: a route replaces the one in its place."""
    present, target = addressing.wanted(before), addressing.wanted(after)
    add, remove = addressing.difference(present, target)
    places = {(route.destination, route.metric) for route in add.routes}
    routes = {one for one in present.routes if (one.destination, one.metric) not in places}
    assert routes >= remove.routes
    assert (routes | add.routes) - remove.routes == target.routes
    assert (present.addresses | add.addresses) - remove.addresses == target.addresses
    assert addressing.difference(target, target) == (Links(), Links())


@given(meshes())
def test_every_source_is_an_address_and_what_is_held_comes_back(mesh: Mesh) -> None:
    wanted = addressing.wanted(mesh)
    assert {route.source for route in wanted.routes if route.source} <= wanted.addresses
    assert set(addressing.held(wanted.routes)) == set(mesh.own)
    assert sum(route.kind == RTN_UNREACHABLE for route in wanted.routes) == len(mesh.own)
