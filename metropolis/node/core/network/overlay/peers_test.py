# SPDX-License-Identifier: Apache-2.0
"""Changes of nodes, as changes for the kernel: right, few, and cheap."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.overlay.device import DevicePeer, Endpoint, PeerChange
from metropolis.node.core.network.overlay.mesh import Peer
from metropolis.node.core.network.overlay.peers import Index, difference, entries_of
from metropolis.node.core.network.overlay.testing.contract import net
from metropolis.node.core.network.overlay.testing.fake import FakeKernel


def key(number: int) -> bytes:
    """Any 32 bytes do for a peer."""
    return number.to_bytes(32)


def peer(number: int, *prefixes: str, **more: bytes) -> Peer:
    prefix = prefixes or (f"10.192.{number}.0/24",)
    endpoint = ip_address(f"192.0.2.{number}")
    return Peer(f"n{number}", key(number), endpoint, 51820, net(*prefix), **more)


HERE = Endpoint(ip_address("192.0.2.1"), 51820)


def test_a_node_comes_moves_and_goes() -> None:
    index = Index()
    one = peer(1)
    assert index.change({"n1": one}) == [PeerChange(key(1), HERE, one.prefixes, prompt=True)]
    assert index.change({"n1": one}) == []
    moved = replace(one, endpoint=ip_address("2001:db8::1"))
    assert index.change({"n1": moved}) == [
        PeerChange(key(1), Endpoint(ip_address("2001:db8::1"), 51820))
    ]
    assert index.change({"n1": None, "n2": None}) == [PeerChange(key(1), remove=True)]
    assert index.entries == {}


def test_a_rotation() -> None:
    """A second peer has no prefixes; then they move to it, and it is prompted;
    the first is removed.
    """
    index = Index()
    one = peer(1)
    index.change({"n1": one})
    announced = replace(one, next_public_key=key(11))
    assert index.change({"n1": announced}) == [PeerChange(key(11), HERE)]
    rotated = replace(one, public_key=key(11))
    assert index.change({"n1": rotated}) == [
        PeerChange(key(11), add=one.prefixes, prompt=True),
        PeerChange(key(1), remove=True),
    ]


def test_a_key_that_another_node_has_now() -> None:
    """As a node that joined again, under another name."""
    index = Index()
    index.change({"n1": peer(1)})
    again = replace(peer(2), public_key=key(1))
    (change,) = index.change({"n1": None, "n2": again})
    assert (change.add, change.drop) == (net("10.192.2.0/24"), net("10.192.1.0/24"))
    assert set(index.entries) == {key(1)}


# Nodes 1 to 4; key 10 n or 10 n + 1, the other one perhaps next; each prefix
# with one node at most.
@st.composite
def tables(draw: st.DrawFn) -> dict[str, Peer]:
    owners = draw(st.lists(st.integers(0, 4), min_size=8, max_size=8))
    table = {}
    for number in draw(st.sets(st.integers(1, 4))):
        parity = draw(st.integers(0, 1))
        following = key(10 * number + 1 - parity) if draw(st.booleans()) else None
        endpoint = ip_address(draw(st.sampled_from(["192.0.2.1", "2001:db8::1"])))
        prefixes = tuple(
            ip_network(f"10.192.{n}.0/24") for n, owner in enumerate(owners) if owner == number
        )
        table[f"n{number}"] = Peer(
            f"n{number}", key(10 * number + parity), endpoint, 51820, prefixes, following
        )
    return table


def everything(table: dict[str, Peer]) -> dict[bytes, DevicePeer]:
    return {
        key: DevicePeer(entry.endpoint, entry.allowed)
        for peer in table.values()
        for key, entry in entries_of(peer).items()
    }


@given(st.lists(tables(), min_size=1, max_size=5))
def test_changes_lead_to_what_the_table_says(history: list[dict[str, Peer]]) -> None:
    """Step by step, and in one comparison; without needless changes."""
    index, kernel, last = Index(), FakeKernel(exists=True), dict[str, Peer]()
    for table in history:
        changed = {
            node: table.get(node)
            for node in last.keys() | table.keys()
            if last.get(node) != table.get(node)
        }
        present = dict(kernel.peers)
        changes = index.change(changed)
        kernel.apply(changes)
        assert kernel.peers == everything(table)
        assert difference(kernel.peers, index.entries) == []
        anew = FakeKernel(exists=True, peers=present)
        anew.apply(difference(present, index.entries))
        assert anew.peers == kernel.peers
        last = table


def test_one_change_is_as_small_among_many() -> None:
    def size(others: int) -> int:
        index = Index()
        index.change(
            {
                f"o{n}": replace(peer(1), public_key=key(1000 + n), prefixes=())
                for n in range(others)
            }
        )
        return len(index.change({"n1": peer(1)}))

    assert size(0) == size(2000) == 1
