# SPDX-License-Identifier: Apache-2.0
"""The contract of the overlay's kernels. Subclass, provide `bench`."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Protocol

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.overlay import addressing, keys
from metropolis.node.core.network.overlay.device import (
    DevicePeer,
    Endpoint,
    Kernel,
    LinkFound,
    Links,
    OverlayError,
    PeerChange,
)
from metropolis.node.core.network.overlay.mesh import IPNetwork, Mesh
from osbase.netlink.errors import NetlinkError

KEY = keys.clamp(bytes(range(32)))
PORT = 51820
HERE = Endpoint(ip_address("192.0.2.7"), 51820)
THERE = Endpoint(ip_address("2001:db8::7"), 4711)


class Bench(Protocol):
    """kernel: in a namespace with nothing but `lo`, which is up."""

    kernel: Kernel

    def again(self) -> Kernel:
        """Return another kernel object for the same kernel: a restart."""

    def take_name(self) -> None:
        """Make a link of another kind that has the name."""

    def delete_link(self) -> None:
        """Delete the overlay's link."""

    def mtu(self) -> int:
        """Return the link's MTU."""


def net(*texts: str) -> tuple[IPNetwork, ...]:
    """Return networks."""
    return tuple(ip_network(text) for text in texts)


def key(number: int) -> bytes:
    """Return a public key, a different one for each number."""
    return keys.public_key(keys.clamp(b"\0" + number.to_bytes(31, "little")))


class KernelContract:
    """The tests; `bench` is a fixture of the subclass."""

    def test_a_link_is_made_once(self, bench: Bench) -> None:
        assert bench.kernel.link() is None
        assert bench.kernel.ensure_link(1400, KEY, PORT) is None
        assert bench.kernel.link() == LinkFound(True, allocs.LINK_GROUP_OVERLAY, 1400)
        assert bench.again().ensure_link(1300, KEY, PORT) == 1400
        assert bench.mtu() == 1400
        bench.kernel.set_mtu(1300)
        assert bench.mtu() == 1300
        device = bench.kernel.device()
        assert (device.public_key, device.port, device.peers) == (keys.public_key(KEY), PORT, {})

    def test_a_name_that_is_taken(self, bench: Bench) -> None:
        bench.take_name()
        assert bench.kernel.link() is None
        with pytest.raises(OverlayError, match="'dummy', not of kind 'wireguard'"):
            bench.kernel.ensure_link(1400, KEY, PORT)

    def test_a_link_that_is_gone(self, bench: Bench) -> None:
        bench.kernel.ensure_link(1400, KEY, PORT)
        bench.kernel.apply([PeerChange(key(1), HERE)])
        bench.delete_link()
        for call in (
            bench.kernel.device,
            bench.kernel.links,
            lambda: bench.kernel.apply([PeerChange(key(1), HERE)]),
            lambda: bench.kernel.set_private_key(KEY),
            lambda: bench.kernel.set_mtu(1300),
        ):
            with pytest.raises((NetlinkError, OverlayError)):
                call()
        bench.kernel.ensure_link(1400, KEY, PORT)
        assert bench.kernel.device().peers == {}

    def test_peers_are_set_changed_and_removed(self, bench: Bench) -> None:
        kernel = bench.kernel
        kernel.ensure_link(1400, KEY, PORT)
        one, two = net("10.9.1.0/24", "fd00:9:1::/112"), net("10.9.2.0/24")
        kernel.apply([PeerChange(key(1), HERE, one), PeerChange(key(2), THERE, two)])
        first, second = DevicePeer(HERE, frozenset(one)), DevicePeer(THERE, frozenset(two))
        assert bench.again().device().peers == {key(1): first, key(2): second}
        kernel.apply([PeerChange(key(1), THERE), PeerChange(key(2), drop=two)])
        first, second = DevicePeer(THERE, frozenset(one)), DevicePeer(THERE)
        assert kernel.device().peers == {key(1): first, key(2): second}
        kernel.apply([PeerChange(key(2), remove=True), PeerChange(key(3), remove=True)])
        assert kernel.device().peers == {key(1): first}
        assert kernel.apply([]) == 0

    def test_what_moves_is_not_dropped_afterwards(self, bench: Bench) -> None:
        kernel = bench.kernel
        kernel.ensure_link(1400, KEY, PORT)
        one, two = net("10.9.1.0/24"), net("10.9.2.0/24", "fd00:9::/112")
        kernel.apply([PeerChange(key(1), HERE, one), PeerChange(key(2), HERE, two)])
        kernel.apply(
            [
                PeerChange(key(1), add=two, drop=one),
                PeerChange(key(2), add=one, drop=two),
            ]
        )
        peers = kernel.device().peers
        assert (peers[key(1)].allowed, peers[key(2)].allowed) == (frozenset(two), frozenset(one))
        kernel.apply([PeerChange(key(1), remove=True), PeerChange(key(2), add=two)])
        assert kernel.device().peers == {key(2): DevicePeer(HERE, frozenset(one + two))}

    def test_what_is_not_there_is_not_made_without_an_endpoint(self, bench: Bench) -> None:
        kernel = bench.kernel
        kernel.ensure_link(1400, KEY, PORT)
        lost = net("10.9.1.0/24")
        kernel.apply([PeerChange(key(1), add=lost, drop=lost, prompt=True)])
        assert kernel.device().peers == {}

    def test_the_nodes_own_key_is_no_peer(self, bench: Bench) -> None:
        kernel = bench.kernel
        kernel.ensure_link(1400, KEY, PORT)
        other = keys.clamp(bytes(32))
        kernel.apply([PeerChange(keys.public_key(one), HERE) for one in (KEY, other)])
        assert set(kernel.device().peers) == {keys.public_key(other)}
        kernel.set_private_key(other)
        assert kernel.device().public_key == keys.public_key(other)
        assert kernel.device().peers == {}

    def test_a_prompt_leaves_nothing_behind(self, bench: Bench) -> None:
        kernel = bench.kernel
        kernel.ensure_link(1400, KEY, PORT)
        kernel.apply([PeerChange(key(1), HERE, prompt=True)])
        assert kernel.device().peers == {key(1): DevicePeer(HERE)}

    def test_a_peer_with_more_prefixes_than_a_message_holds(self, bench: Bench) -> None:
        kernel = bench.kernel
        kernel.ensure_link(1400, KEY, PORT)
        many = tuple(
            one
            for n in range(1000)
            for one in net(f"10.{n >> 8}.{n & 255}.0/24", f"fd00:{n:x}::/64")
        )
        kernel.apply(
            [PeerChange(key(1), HERE, many), PeerChange(key(2), THERE, net("10.99.0.0/16"))]
        )
        peers = kernel.device().peers
        assert peers[key(1)] == DevicePeer(HERE, frozenset(many))
        assert peers[key(2)] == DevicePeer(THERE, frozenset(net("10.99.0.0/16")))
        kernel.apply([PeerChange(key(1), drop=many)])
        assert kernel.device().peers[key(1)] == DevicePeer(HERE)

    def test_addresses_and_routes(self, bench: Bench) -> None:
        kernel = bench.kernel
        kernel.ensure_link(1400, KEY, PORT)
        assert kernel.links() == Links()
        first = addressing.wanted(
            Mesh(net("10.9.0.0/16", "fd00:9::/64"), net("10.9.1.0/24", "fd00:9::1:0/112"))
        )
        second = addressing.wanted(Mesh(net("10.9.0.0/16"), net("10.9.2.0/24", "10.9.7.0/24")))
        for wanted in (first, second, first, Links(), second):
            kernel.change_links(*addressing.difference(kernel.links(), wanted))
            assert bench.again().links() == wanted
        assert addressing.held(kernel.links().routes) == net("10.9.2.0/24", "10.9.7.0/24")

    def test_a_network_that_is_one_nodes_prefix(self, bench: Bench) -> None:
        kernel = bench.kernel
        kernel.ensure_link(1400, KEY, PORT)
        wanted = addressing.wanted(Mesh(net("10.9.0.0/24"), net("10.9.0.0/24")))
        assert len(wanted.routes) == 2
        kernel.change_links(wanted, Links())
        assert kernel.links() == wanted
