# SPDX-License-Identifier: Apache-2.0
"""Peers derived from the store: each rule, and then any order of events."""

import sys
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from types import FrameType

from hypothesis import example, given, settings
from hypothesis import strategies as st

from metropolis.node.core.curator import keys, records
from metropolis.node.core.curator.directory import (
    Changes,
    Claim,
    ClaimState,
    Directory,
    Entry,
    Event,
    Removal,
)
from metropolis.node.core.curator.records import ClusterConfig, Member, PodNetwork, Record
from metropolis.node.core.network.overlay.mesh import Peer

NETWORK = PodNetwork(ip_network("10.200.0.0/16"), 24)
CONFIG = records.encode_cluster(ClusterConfig((NETWORK,)))
POD = tuple(NETWORK.nth(index) for index in range(4))


def record(node_id: str, key: str, prefixes: int | None = None, next_key: str = "") -> Record:
    return Record(
        node_id,
        key.encode().ljust(32, b"k"),
        next_key.encode().ljust(32, b"k") if next_key else None,
        0,
        IPv4Address("192.0.2.1"),
        51820,
        () if prefixes is None else (POD[prefixes],),
        "",
    )


class Store:
    """A store, and a directory that follows it."""

    def __init__(self, *, cluster: bool = True) -> None:
        self.directory = Directory("me")
        self.entries: dict[bytes, Entry] = {}
        self.revision = 0
        self.peers: dict[str, Peer] = {}
        if cluster:
            self.put(keys.CLUSTER, CONFIG)

    def event(self, key: bytes, value: bytes | None) -> list[Event]:
        self.revision += 1
        if value is None:
            return [Removal(key)] if self.entries.pop(key, None) else []
        self.entries[key] = Entry(key, value, self.revision)
        return [self.entries[key]]

    def follow(self, changes: Changes) -> Changes:
        assert not set(changes.peers) & changes.gone
        self.peers.update(changes.peers)
        for node_id in changes.gone:
            self.peers.pop(node_id, None)
        return changes

    def put(self, key: bytes, value: bytes) -> Changes:
        return self.follow(self.directory.apply(self.event(key, value)))

    def delete(self, key: bytes) -> Changes:
        return self.follow(self.directory.apply(self.event(key, None)))

    def claim(self, node_id: str, index: int) -> Changes:
        return self.put(keys.claim(POD[index]), records.encode_claim(node_id))

    def publish(self, one: Record) -> Changes:
        return self.put(keys.node(one.node_id), records.encode_record(one))

    def member(self, node_id: str, *, removed: bool) -> Changes:
        return self.put(keys.member(node_id), records.encode_member(Member(removed)))


def test_a_peer_needs_a_record_and_a_claim_in_any_order() -> None:
    for first_claim in (True, False):
        store = Store()
        if first_claim:
            store.claim("a", 0)
            store.publish(record("a", "x", 0))
        else:
            changes = store.publish(record("a", "x", 0))
            assert (changes.notes, store.peers) == ([], {})
            store.claim("a", 0)
        assert store.peers["a"].prefixes == (POD[0],)
        assert store.peers["a"].public_key[:1] == b"x"


def test_a_record_gives_no_prefix() -> None:
    store = Store()
    store.claim("a", 0)
    store.claim("b", 1)
    store.publish(record("a", "x", 0))
    changes = store.publish(record("b", "y", 0))
    assert changes.notes == ['"nodes/b": pod_prefix 10.200.0.0/24 is not claimed by it']
    assert set(store.peers) == {"a"}


def test_a_bad_update_keeps_the_last_good_one() -> None:
    store = Store()
    store.claim("a", 0)
    store.publish(record("a", "x", 0))
    before = dict(store.peers)
    for bad in (b"\xff", records.encode_record(record("b", "x")), bytes(99999)):
        changes = store.put(keys.node("a"), bad)
        assert len(changes.notes) == 1
        assert store.peers == before
    assert store.member("a", removed=False).notes == []
    store.put(keys.claim(POD[0]), b"\xff")
    store.put(keys.member("a"), b"\xff")
    store.put(keys.CLUSTER, b"\xff")
    assert store.peers == before
    assert store.directory.cluster is not None
    assert store.directory.cluster_problem == "is not the message it should be"


def test_a_peer_outlives_its_record_but_not_its_claims() -> None:
    store = Store()
    store.claim("a", 0)
    store.claim("a", 1)
    store.publish(record("a", "x"))
    store.delete(keys.node("a"))
    assert list(store.peers["a"].prefixes) == [POD[0], POD[1]]
    store.claim("", 1)
    assert list(store.peers["a"].prefixes) == [POD[0]]
    store.claim("", 0)
    assert store.peers == {}
    # It comes back like any other.
    store.claim("a", 0)
    assert store.peers == {}
    store.publish(record("a", "x"))
    assert set(store.peers) == {"a"}


def test_removed_is_gone_at_once() -> None:
    store = Store()
    store.claim("a", 0)
    store.publish(record("a", "x"))
    store.member("a", removed=True)
    assert store.peers == {}
    store.delete(keys.member("a"))
    assert set(store.peers) == {"a"}


def test_a_lost_claim_is_still_its_holders_until_another_has_it() -> None:
    store = Store()
    store.claim("a", 0)
    store.publish(record("a", "x"))
    store.delete(keys.claim(POD[0]))
    assert store.directory.claims[POD[0]] == Claim(ClaimState.LOST, "a", 0)
    assert set(store.peers) == {"a"}
    store.claim("b", 0)
    assert store.peers == {}


def test_the_first_holder_of_a_key_keeps_it() -> None:
    store = Store()
    for index, name in enumerate("abc"):
        store.claim(name, index)
    store.publish(record("a", "x", next_key="y"))
    changes = store.publish(record("b", "y"))
    assert changes.notes == ['"nodes/b": its public key is that of "a"']
    assert set(store.peers) == {"a"}
    # Once given up, it is the other's.
    store.publish(record("a", "x"))
    assert set(store.peers) == {"a", "b"}
    # A node that is away has lost it.
    store.publish(record("c", "x"))
    assert "c" not in store.peers
    store.delete(keys.node("a"))
    assert set(store.peers) == {"b", "c"}


def test_our_keys_are_nobody_elses() -> None:
    store = Store()
    store.claim("a", 0)
    store.publish(record("a", "x"))
    ours = frozenset({record("a", "x").public_key})
    store.follow(store.directory.set_own_keys(ours))
    assert store.peers == {}
    store.follow(store.directory.set_own_keys(frozenset()))
    assert set(store.peers) == {"a"}


def test_a_network_that_is_no_more_takes_its_claims_along() -> None:
    store = Store()
    store.claim("a", 0)
    store.publish(record("a", "x"))
    other = PodNetwork(ip_network("10.99.0.0/16"), 24)
    store.put(keys.CLUSTER, records.encode_cluster(ClusterConfig((other,))))
    assert store.peers == {}
    store.put(keys.CLUSTER, CONFIG)
    assert set(store.peers) == {"a"}


def test_we_are_no_peer_of_ours() -> None:
    store = Store()
    store.claim("me", 0)
    assert store.publish(record("me", "x")).ours
    assert store.peers == {}
    assert store.directory.held_by("me") == (POD[0],)


def calls(action: Callable[[], object]) -> int:
    """Return how many functions of ours and of Python it calls."""
    made = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(before)
    return made


def test_the_cost_of_a_change_does_not_grow_with_the_cluster() -> None:
    costs = set()
    network = PodNetwork(ip_network("10.0.0.0/8"), 24)
    for size in (3, 2000):
        store = Store(cluster=False)
        store.put(keys.CLUSTER, records.encode_cluster(ClusterConfig((network,))))
        for number in range(size):
            store.put(keys.claim(network.nth(number)), records.encode_claim(f"n{number}"))
            store.publish(record(f"n{number}", f"{number}"))
        one = record("n1", "1", next_key="other")
        events = store.event(keys.node("n1"), records.encode_record(one))
        events += store.event(keys.claim(network.nth(2)), records.encode_claim(""))
        costs.add(calls(lambda store=store, events=events: store.directory.apply(events)))  # type: ignore[misc]
        assert len(store.peers) == size
    assert len(costs) == 1, costs


def test_nothing_is_kept_of_nodes_that_are_forgotten() -> None:
    store = Store()
    for number in range(100):
        name = f"n{number}"
        store.claim(name, 0)
        store.member(name, removed=False)
        store.publish(record(name, name))
        store.claim("", 0)
        store.delete(keys.node(name))
        store.delete(keys.member(name))
    assert not store.directory.nodes
    assert not store.directory._holders
    assert not store.directory._waiting


NODES = st.sampled_from(["a", "b", "c", "me"])
KEYS = st.sampled_from(["x", "y", "z"])
STEP = st.one_of(
    st.tuples(st.just("claim"), st.integers(0, 3), st.sampled_from(["", "a", "b", "me"])),
    st.tuples(st.just("unclaim"), st.integers(0, 3)),
    st.tuples(st.just("record"), NODES, KEYS, st.none() | st.integers(0, 3), st.just("") | KEYS),
    st.tuples(st.just("expire"), NODES),
    st.tuples(st.just("member"), NODES, st.booleans()),
    st.tuples(st.just("forget"), NODES),
    st.tuples(st.just("garbage"), st.integers(0, 4)),
    st.tuples(st.just("own"), st.sets(KEYS)),
    st.tuples(st.just("list")),
)


@settings(max_examples=300)
@given(st.lists(STEP, max_size=40))
def test_whatever_happens_peers_fit_each_other(steps: list[tuple[object, ...]]) -> None:
    store = Store()
    own: frozenset[bytes] = frozenset()
    for what, *rest in steps:
        match what, *rest:
            case "claim", int(index), str(node):
                store.claim(node, index)
            case "unclaim", int(index):
                store.delete(keys.claim(POD[index]))
            case "record", str(node), str(key), prefix, str(next_key):
                assert prefix is None or isinstance(prefix, int)
                store.publish(record(node, key, prefix, "" if next_key == key else next_key))
            case "expire", str(node):
                store.delete(keys.node(node))
            case "member", str(node), bool(removed):
                store.member(node, removed=removed)
            case "forget", str(node):
                store.delete(keys.member(node))
            case "garbage", int(index):
                target = [keys.node("a"), keys.claim(POD[0]), keys.member("b"), keys.CLUSTER, b"x"]
                store.put(target[index], b"\xff")
            case "own", set(names):
                own = frozenset(record("a", name).public_key for name in names)
                store.follow(store.directory.set_own_keys(own))
            case _:
                # The followed state is complete: a list changes nothing.
                changes = store.directory.replace(store.entries.values())
                assert changes == Changes()
        peers = store.peers.values()
        found = [key for peer in peers for key in (peer.public_key, peer.next_public_key) if key]
        assert len(set(found)) == len(found)
        assert not own.intersection(found)
        prefixes = [prefix for peer in peers for prefix in peer.prefixes]
        assert len(set(prefixes)) == len(prefixes)
        assert "me" not in store.peers
        for node_id, peer in store.peers.items():
            assert peer.prefixes == store.directory.held_by(node_id)
            assert not store.directory.node(node_id).removed
            assert store.directory.node(node_id).peer == peer


@given(st.lists(STEP, max_size=30))
@example([("claim", 1, "me"), ("unclaim", 0), ("claim", 1, ""), ("unclaim", 0)])
def test_who_lists_late_has_the_same_claims(steps: list[tuple[object, ...]]) -> None:
    """A list after any unseen events gives the store's state."""
    store = Store()
    hidden = Store()
    for what, *rest in steps:
        match what, *rest:
            case "claim", int(index), str(node):
                hidden.claim(node, index)
            case "record", str(node), str(key), *_:
                hidden.publish(record(node, key))
            case "member", str(node), bool(removed):
                hidden.member(node, removed=removed)
            case "expire", str(node):
                hidden.delete(keys.node(node))
            case _:
                store.follow(store.directory.replace(hidden.entries.values()))
                fresh = Directory("me")
                fresh.replace(hidden.entries.values())
                assert dict(fresh.claims) == dict(store.directory.claims)
                assert set(fresh.nodes) == set(store.directory.nodes)


def test_a_list_tells_only_differences() -> None:
    store = Store()
    for index, name in enumerate("abc"):
        store.claim(name, index)
        store.publish(record(name, name))
    assert store.directory.replace(store.entries.values()) == Changes()
    again = replace(store.entries[keys.node("b")], mod_revision=99)
    listed = {**store.entries, again.key: again}
    changes = store.directory.replace(listed.values())
    assert (changes.peers, changes.gone, changes.notes) == ({}, set(), [])
