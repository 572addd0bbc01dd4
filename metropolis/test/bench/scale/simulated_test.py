# SPDX-License-Identifier: Apache-2.0
"""Simulated nodes write records that real nodes could write."""

from metropolis.node.core.curator import keys, records
from metropolis.node.core.curator.directory import Directory, Entry
from metropolis.test.bench.scale import oracle, simulated
from metropolis.test.bench.scale.simulated import Sim


def _entries(*sims: Sim) -> list[Entry]:
    puts = [put for _, step in simulated.batches(sims) for put in step.puts]
    return [
        Entry(keys.CLUSTER, records.encode_cluster(simulated.CONFIG), 1),
        *(Entry(put.key, put.value, 2, put.lease) for put in puts),
    ]


def test_batches_have_as_many_operations_as_etcd_takes() -> None:
    sims = [Sim(number, 1) for number in range(100)]
    steps = list(simulated.batches(sims))
    assert [len(step.puts) for _, step in steps] == [128, 128, 128, 16]
    assert [sim for some, _ in steps for sim in some] == sims


def test_nodes_share_nothing() -> None:
    sims = [Sim(number, 1, moves) for number in range(3000) for moves in (0, 1)]
    assert len({sim.address for sim in sims}) == 6000
    assert len({prefix for sim in sims[::2] for prefix in sim.prefixes}) == 6000
    assert all(any(sim.address in net for net in simulated.UNDERLAY) for sim in sims)
    assert sum(sim.address.version == 6 for sim in sims) == 1500


def test_prefixes_that_others_have_are_left_to_them() -> None:
    taken = [Sim(1, 1).prefixes[0], Sim(3, 1).prefixes[1]]
    found = simulated.numbers(taken)
    assert [next(found) for _ in range(4)] == [0, 2, 4, 5]


def test_the_directory_takes_all_of_them_as_the_oracle_does() -> None:
    announced = Sim(4, 1, moves=1).rotated()
    sims = [Sim(0, 1), Sim(3, 1), announced, announced.rotated()][:3]
    directory = Directory("node")
    changes = directory.replace(_entries(*sims))
    assert changes.notes == []
    wanted = oracle.expected({e.key: e.value for e in _entries(*sims)}, "node")
    found = {
        peer.public_key: oracle.Peer((peer.endpoint, peer.port), frozenset(peer.prefixes))
        for peer in changes.peers.values()
    }
    assert {key for key, peer in wanted.items() if peer.allowed} == found.keys()
    assert oracle.differences(found, {key: wanted[key] for key in found}) == []
    assert wanted[announced.key(1)].allowed == frozenset()


def test_a_rotation_exchanges_the_key_that_was_announced() -> None:
    before = Sim(0, 1).record
    announced = Sim(0, 1).rotated().record
    after = Sim(0, 1).rotated().rotated().record
    assert (announced.public_key, announced.key_epoch) == (before.public_key, 0)
    assert after.public_key == announced.next_public_key
    assert (after.key_epoch, after.next_public_key) == (1, None)


def test_who_left_is_no_peer() -> None:
    entries = {entry.key: entry.value for entry in _entries(Sim(0, 1), Sim(1, 1))}
    gone = Sim(0, 1).remove()
    for put in gone.puts:
        entries[put.key] = put.value
    for key in gone.deletes:
        del entries[key]
    assert oracle.expected(entries, "node").keys() == {Sim(1, 1).key(0)}
