# SPDX-License-Identifier: Apache-2.0
"""Joining, leaving and living in a cluster, on a real etcd."""

import asyncio
import contextlib
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.curator import administration, keys, records
from metropolis.node.core.curator.administration import Refused
from metropolis.node.core.curator.curator import list_interval
from metropolis.node.core.curator.directory import Claim, ClaimState
from metropolis.node.core.curator.records import IPNetwork
from metropolis.node.core.curator.testing.cluster import (
    NETWORKS,
    TIMING,
    WAIT_S,
    Machine,
    eventually,
    key_of,
    start,
)
from metropolis.node.core.network.overlay.mesh import Identity, Mesh, Peer
from osbase import event

POOL = "10.200.0.0/24:26"  # four prefixes


async def test_two_nodes_join_and_see_each_other(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS, mtu=1400) as cluster:
        async with cluster.machine("web-1") as one, cluster.machine("web-2") as two:
            first, second = await one.joined(), await two.joined()
            assert [prefix.version for prefix in first] == [4, 6]
            assert not set(first) & set(second)
            peers = await one.sees(lambda peers: "web-2" in peers)
            address = two.underlay.peek()
            assert address is not None
            assert peers == {
                "web-2": Peer("web-2", key_of("web-2"), address, allocs.WIREGUARD_PORT, second)
            }
            networks = (ip_network("10.200.0.0/16"), ip_network("fd00:200::/48"))
            assert one.curator.mesh.peek() == Mesh(networks, first, 1400)
            assert await cluster.claims() == {
                **dict.fromkeys(first, "web-1"), **dict.fromkeys(second, "web-2"),
            }  # fmt: skip


async def test_peers_are_complete_before_the_first_mesh(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster, contextlib.AsyncExitStack() as stack:
        for number in range(5):
            machine = await stack.enter_async_context(cluster.machine(f"n{number}"))
            await machine.joined()
        last = cluster.machine("last")
        seen: list[int] = []

        class Looked(event.Value[Mesh]):
            def set(self, value: Mesh) -> None:
                seen.append(len(last.curator.peers))
                super().set(value)

        last.curator.place.mesh = Looked("mesh")
        async with last:
            await last.joined()
        assert seen[0] == 5


async def test_the_record_follows_the_node(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster:
        async with cluster.machine("a") as one, cluster.machine("b") as two:
            await one.joined()
            await two.joined()
            rotating = Identity(key_of("a"), 1, key_of("next"))
            one.identity.set(rotating)
            assert await eventually(one.curator.published, lambda it: it == rotating)
            await two.sees(lambda peers: peers["a"].next_public_key == key_of("next"))
            one.identity.set(Identity(key_of("next"), 1))
            await two.sees(lambda peers: peers["a"].public_key == key_of("next"))
            one.underlay.set(IPv4Address("198.51.100.7"))
            await two.sees(lambda peers: peers["a"].endpoint == IPv4Address("198.51.100.7"))
            async with await cluster.connect() as client:
                assert await administration.rotate_key(client, "a") == 2
            await eventually(one.curator.mesh, lambda mesh: mesh.wanted_key_epoch == 2)


async def test_without_a_cluster_or_an_address_it_waits(tmp_path: Path) -> None:
    async with start(tmp_path) as cluster, cluster.machine("a") as machine:
        await cluster.log.wait("`metroctl cluster init` writes it")
        machine.underlay.set(None)
        await cluster.put(keys.CLUSTER, b"\xff garbage")
        await cluster.log.wait("configuration is not the message it should be")
        await cluster.delete(keys.CLUSTER)
        await cluster.init(*NETWORKS)
        assert len(await machine.has_prefixes(bool)) == 2
        await cluster.log.wait("no underlay address yet")
        machine.underlay.set(IPv4Address("10.200.0.1"))
        await cluster.log.wait("10.200.0.1 is inside pod network 10.200.0.0/16")
        machine.underlay.set(IPv4Address("198.51.100.7"))
        await machine.joined()
        # A configuration that became invalid changes nothing.
        await cluster.put(keys.CLUSTER, b"\xff garbage")
        await cluster.log.wait('"cluster": is not the message', 2)
        assert len(machine.curator.mesh.peek().networks) == 2


async def test_thirty_at_once_for_thirty_two_prefixes(tmp_path: Path) -> None:
    async with start(tmp_path, "10.200.0.0/19:24") as cluster:
        async with contextlib.AsyncExitStack() as stack:
            machines = [cluster.machine(f"node-{number}") for number in range(30)]
            for machine in machines:
                await stack.enter_async_context(machine)
            held = [await machine.joined() for machine in machines]
            assert all(len(one) == 1 for one in held)
            assert len(set(held)) == 30
            assert len(await cluster.claims()) == 30
            for machine in machines:
                await machine.sees(lambda peers: len(peers) == 29)


async def test_exhausted_waits_until_one_is_freed(tmp_path: Path) -> None:
    async with start(tmp_path, POOL) as cluster, contextlib.AsyncExitStack() as stack:
        machines = [cluster.machine(f"n{number}") for number in range(4)]
        for machine in machines:
            await stack.enter_async_context(machine)
            await machine.joined()
        async with cluster.machine("late") as late:
            await cluster.log.wait("no prefix is left in 10.200.0.0/24:26 (4 in all)", 2)
            assert late.curator.pod_prefixes.peek().prefixes == ()
            await cluster.remove("n2")
            before = await machines[2].has_prefixes(lambda prefixes: not prefixes)
            assert before == ()
            await late.joined()
            assert "n2" not in (await cluster.claims()).values()


async def test_reuse_is_late_and_the_longest_free_first(tmp_path: Path) -> None:
    async with start(tmp_path, POOL) as cluster:
        held = {}
        for name in ("a", "b", "c"):
            async with cluster.machine(name) as machine:
                (held[name],) = await machine.joined()
        for name in ("b", "a"):
            await cluster.remove(name)
        got: list[IPNetwork] = []
        for name in ("d", "e", "f"):
            async with cluster.machine(name) as machine:
                got += await machine.joined()
        assert got[0] not in held.values()
        assert got[1:] == [held["b"], held["a"]]


async def test_a_node_that_returns_has_its_prefixes(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster:
        async with cluster.machine("a") as machine:
            first = await machine.joined()
        async with cluster.machine("a", held=first) as machine:
            assert machine.curator.pod_prefixes.peek().prefixes == first
            assert await machine.joined() == first
        async with cluster.machine("a") as machine:
            assert await machine.joined() == first


async def test_held_prefixes_are_claimed_when_free_and_inside(tmp_path: Path) -> None:
    held = (ip_network("10.200.77.0/24"), ip_network("fd00:200:0:77::/64"))
    async with start(tmp_path, *NETWORKS) as cluster:
        async with cluster.machine("a", held=held) as one:
            assert await one.joined() == held
            outside = (ip_network("10.99.0.0/24"), held[1])
            async with cluster.machine("b", held=outside) as two:
                got = await two.joined()
                assert not set(got) & {*held, *outside}
        assert cluster.log.count("10.99.0.0/24 is not this node's any more;") == 1
        assert (
            cluster.log.count("fd00:200:0:77::/64 is not this node's any more, but \"a\"'s;") == 1
        )


async def test_corrected_networks_are_taken_at_once(tmp_path: Path) -> None:
    """Nodes claim in the new networks at once, also those that are away
    meanwhile; old claims stay, and are used again with the old networks.
    """
    async with start(tmp_path, *NETWORKS) as cluster:
        async with cluster.machine("a") as one, cluster.machine("b") as two:
            before = {"a": await one.joined(), "b": await two.joined()}
            await cluster.set_networks("10.201.0.0/16:24")
            network = ip_network("10.201.0.0/16")
            after = {}
            for name, machine in (("a", one), ("b", two)):
                (after[name],) = await machine.has_prefixes(
                    lambda held: len(held) == 1 and held[0].network_address in network
                )
                mesh = await eventually(machine.curator.mesh, lambda mesh: len(mesh.own) == 1)
                assert (mesh.networks, mesh.own) == ((network,), (after[name],))
            await one.sees(lambda peers: "b" in peers and peers["b"].prefixes == (after["b"],))
            held = await cluster.holders()
            for name, prefixes in before.items():
                assert [held[prefix] for prefix in prefixes] == [name, name]
        await cluster.set_networks(*NETWORKS)
        async with cluster.machine("a") as one, cluster.machine("b") as two:
            assert {"a": await one.joined(), "b": await two.joined()} == before
            await cluster.set_networks(*NETWORKS, "10.201.0.0/16:24")
            await one.has_prefixes(lambda held: set(held) == {*before["a"], after["a"]})


async def test_networks_that_harm_are_refused(tmp_path: Path) -> None:
    async with start(tmp_path) as cluster:
        with pytest.raises(Refused, match="is not there"):
            await cluster.set_networks("10.201.0.0/16:24")
        await cluster.init(*NETWORKS)
        async with cluster.machine("a", underlay="192.0.2.7") as one:
            (prefix, _) = await one.joined()
            for text, why in (
                ("192.0.0.0/16:24", 'node "a" would be cut off: its underlay_address 192.0.2.7'),
                ("10.200.0.0/16:26", f'of {prefix}, which "a" holds'),
                (f"{prefix}:26", f'of {prefix}, which "a" holds'),
            ):
                with pytest.raises(Refused, match=why):
                    await cluster.set_networks(text)
            # A wider network that gives the claimed prefixes is fine.
            await cluster.set_networks("10.128.0.0/9:24")
            assert (await one.has_prefixes(lambda held: len(held) == 1)) == (prefix,)


async def test_removed_is_out_until_it_is_forgotten(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster, cluster.machine("b") as other:
        await other.joined()
        async with cluster.machine("a") as machine:
            held = await machine.joined()
            await other.sees(lambda peers: "a" in peers)
            with pytest.raises(Refused, match="`node remove a` removes it"):
                await cluster.forget("a")
            await cluster.remove("a")
            await machine.has_prefixes(lambda prefixes: not prefixes)
            await eventually(machine.curator.mesh, lambda mesh: not mesh.own)
            await other.sees(lambda peers: "a" not in peers)
        async with cluster.machine("a", held=held) as machine:
            await machine.has_prefixes(lambda prefixes: not prefixes)
            await cluster.log.wait("this node was removed from the cluster")
            assert "a" not in (await cluster.claims()).values()
            await cluster.forget("a")
            await machine.joined()
            await other.sees(lambda peers: "a" in peers)


async def test_a_peer_stays_when_its_lease_ends(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster, cluster.machine("b") as other:
        await other.joined()
        async with cluster.machine("a") as machine:
            await machine.joined()
            before = await other.sees(lambda peers: "a" in peers)
        async with await cluster.connect() as client:
            start_at = (await client.status()).revision + 1
            async with contextlib.aclosing(client.watch(keys.node("a"), start_at)) as batches:
                async with asyncio.timeout(WAIT_S):
                    assert (await anext(batches)).events
        # A later key in the store is seen after it.
        async with cluster.machine("c") as machine:
            await machine.joined()
            peers = await other.sees(lambda peers: "c" in peers)
        assert peers["a"] == before["a"]
        await cluster.remove("a")
        await other.sees(lambda peers: "a" not in peers)


async def test_a_lease_that_was_lost_is_made_anew(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster, cluster.machine("a") as machine:
        held = await machine.joined()
        async with await cluster.connect() as client:
            before = (await client.list(keys.NODES)).entries[0]
            await cluster.server.etcdctl("lease", "revoke", f"{before.lease:x}")
            async with contextlib.aclosing(
                client.watch(keys.NODES, before.mod_revision + 1)
            ) as batches:
                async with asyncio.timeout(WAIT_S):
                    while not (entries := (await client.list(keys.NODES)).entries):
                        await anext(batches)
            assert entries[0].lease != before.lease
            assert entries[0].value == before.value
        assert machine.curator.pod_prefixes.peek().prefixes == held


async def test_two_machines_of_one_name(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster:
        async with cluster.machine("a") as first:
            held = await first.joined()
            async with cluster.machine("a", key="another", underlay="198.51.100.9") as second:
                await cluster.log.wait('another machine is node "a"', 3)
                assert second.curator.pod_prefixes.peek().prefixes == ()
                assert second.curator.mesh.peek().own == ()
                assert first.curator.pod_prefixes.peek().prefixes == held
                async with await cluster.connect() as client:
                    entry = (await client.list(keys.NODES)).entries[0]
                assert records.decode_record(entry.value).public_key == key_of("a")
        # The first is off: the name is free when its lease has ended.
        async with cluster.machine("a", key="another") as second:
            assert await second.joined() == held


async def test_two_machines_of_one_name_and_key(tmp_path: Path) -> None:
    """A cloned disk counts as the first one restarted, which stays out."""
    async with start(tmp_path, *NETWORKS) as cluster, cluster.machine("a") as first:
        held = await first.joined()
        async with cluster.machine("a") as second:
            assert await second.joined() == held
            await first.has_prefixes(lambda prefixes: not prefixes)
            await cluster.log.wait('another machine is node "a"')


GOOD = records.Record(
    "rogue", key_of("rogue"), None, 0, IPv4Address("198.51.100.66"), 51820, (), "x"
)


def bad(**changes: object) -> bytes:
    return records.encode_record(replace(GOOD, **changes))  # type: ignore[arg-type]


def hostile(claimed_by_a: tuple[IPNetwork, ...]) -> list[bytes]:
    """Return records that are each refused."""
    return [
        b"\xff\xfe\xfd" * 20,
        b"",
        bytes(100_000),
        bad(node_id="a"),
        bad(public_key=bytes(32)),
        bad(public_key=b"short"),
        bad(public_key=key_of("a")),
        bad(next_public_key=key_of("b")),
        bad(port=70000),
        bad(prefixes=claimed_by_a),
        bad(prefixes=(ip_network("10.99.0.0/24"),)),
        bad(prefixes=(ip_network("0.0.0.0/0"),)),
        *(
            bad(address=IPv4Address(address))
            for address in ("127.0.0.1", "224.0.0.1", "169.254.1.1", "0.0.0.0", "10.200.9.9")
        ),
    ]


async def test_a_rogue_harms_nobody(tmp_path: Path) -> None:
    """Bad records, claims, members and keys: refused, and each logged once."""
    async with start(tmp_path, *NETWORKS) as cluster:
        async with cluster.machine("a") as one, cluster.machine("b") as two:
            held = await one.joined()
            await two.joined()
            theirs = ip_network("10.200.250.0/24")
            await cluster.put(keys.claim(theirs), records.encode_claim("rogue"))
            before = await one.sees(lambda peers: "b" in peers)
            values = hostile(held)
            for value in values:
                await cluster.put(keys.node("rogue"), value)
            for key in (b"nodes/\xff", b"nodes/Big", b"claims/10.200.1.1/24", b"x" * 1000):
                await cluster.put(keys.ROOT + key, b"x")
            await cluster.put(keys.CLAIMS + b"10.200.251.0/24", b"\xff")
            await cluster.put(keys.member("rogue"), b"\x08\x63")
            await cluster.put(keys.node("b"), b"garbage")
            await two.has_prefixes(lambda prefixes: len(prefixes) == 2)
            # It continues: the next node is seen.
            async with cluster.machine("c") as three:
                await three.joined()
                after = await one.sees(lambda peers: "c" in peers)
                assert {**before, "c": after["c"]} == after
                # A good record of a good node at last.
                await cluster.put(keys.node("rogue"), records.encode_record(GOOD))
                peers = await one.sees(lambda peers: "rogue" in peers)
                assert peers["rogue"].prefixes == (theirs,)
            mine = [r for r in cluster.log.records if r.name == "root.a" and "refused" in r.msg]
            lines = Counter(record.getMessage() for record in mine)
            assert len(mine) == len(lines) == len(values) + 7
            assert all(len(line) < 200 and line.isprintable() for line in lines)


async def test_a_claim_turned_into_garbage_is_claimed_again(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster, cluster.machine("a") as machine:
        held = await machine.joined()
        await cluster.put(keys.claim(held[0]), b"\xff\xff")
        async with cluster.machine("b") as other:
            # Its claim may be unreadable yet; another's is never taken.
            assert held[0] not in await other.joined()
            await other.sees(lambda peers: peers.get("a") is not None)
        assert machine.curator.pod_prefixes.peek().prefixes == held
        async with await cluster.connect() as client:
            directory = (await administration.view(client)).directory
        claim = directory.claims[held[0]]
        assert claim == Claim(ClaimState.HELD, "a", claim.mod_revision)


async def test_everything_is_read_anew_from_time_to_time(tmp_path: Path) -> None:
    """Peers and watch survive the lists."""
    async with start(tmp_path, *NETWORKS) as cluster:
        timing = replace(TIMING, list_every_s=0.1)
        async with cluster.machine("a", timing=timing) as one, contextlib.AsyncExitStack() as stack:
            await one.joined()
            for number in range(10):
                machine: Machine = cluster.machine(f"n{number}")
                await stack.enter_async_context(machine)
                await one.sees(lambda peers, number=number: len(peers) == number + 1)  # type: ignore[misc]


def test_lists_cost_no_more_in_a_larger_cluster() -> None:
    assert list_interval(600, 10, 0.5) == list_interval(600, 1000, 0.5) == 600
    assert (list_interval(600, 10, 0), list_interval(600, 10, 1)) == (450, 750)
    # Lists per second, times the nodes in each.
    traffic = [nodes * nodes / list_interval(600, nodes, 0.5) for nodes in (1000, 2000, 10000)]
    assert traffic == pytest.approx([traffic[0]] * 3)
