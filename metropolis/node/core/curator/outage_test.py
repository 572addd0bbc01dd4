# SPDX-License-Identifier: Apache-2.0
"""etcd is away, killed, compacted, restored or replaced."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from metropolis.node.core.curator import etcd, keys
from metropolis.node.core.curator.credentials import Files
from metropolis.node.core.curator.testing.cluster import (
    ELSEWHERE,
    HOME,
    NETWORKS,
    TIMING,
    Cluster,
    Machine,
    eventually,
    files_of,
    key_of,
    start,
)
from metropolis.node.core.network.overlay.mesh import Identity, Peer
from metropolis.test.etcd import Authority

REFUSED = "Connection refused"
HERE = "etcd at "


@contextlib.asynccontextmanager
async def pair(directory: Path) -> AsyncIterator[tuple[Cluster, Machine, Machine]]:
    """Two nodes that see each other."""
    async with start(directory, *NETWORKS) as cluster:
        async with cluster.machine("a") as one, cluster.machine("b") as two:
            await one.joined()
            await two.joined()
            await one.sees(lambda peers: "b" in peers)
            await two.sees(lambda peers: "a" in peers)
            yield cluster, one, two


@contextlib.asynccontextmanager
async def outage(cluster: Cluster, nodes: int = 2) -> AsyncIterator[None]:
    """etcd is gone inside; all earlier log lines have been awaited."""
    before = cluster.log.count(REFUSED)
    await cluster.server.kill()
    await cluster.log.wait(REFUSED, before + nodes)
    yield


async def test_kill_and_restart_change_nothing(tmp_path: Path) -> None:
    """Peers and prefixes stay, no change is published."""
    async with pair(tmp_path) as (cluster, one, two):
        lines = cluster.log.count(HERE)
        pods, mesh = one.curator.pod_prefixes.watch(), one.curator.mesh.watch()
        await pods.get()
        await mesh.get()
        with one.curator.peers.watch() as peers:
            peers.take()
            async with outage(cluster):
                one.identity.set(Identity(key_of("a"), 1, key_of("next")))
            await cluster.server.start()
            await cluster.log.wait(HERE, lines + 2)
            await two.sees(lambda peers: peers["a"].next_public_key == key_of("next"))
            assert peers.take() == {}
        assert not pods.changed()
        assert not mesh.changed()
        # The lost connection, and why there is no other.
        assert cluster.log.count("etcd is away") == 4


async def test_a_new_key_waits_for_those_who_lost_etcd_too(tmp_path: Path) -> None:
    """Others would send to the old one, and could not be answered."""
    timing = replace(TIMING, deadline_s=1)
    old, new = key_of("a"), key_of("next")
    async with start(tmp_path, *NETWORKS) as cluster, cluster.machine("a", timing=timing) as one:
        await one.joined()
        async with outage(cluster, 1):
            one.identity.set(Identity(old, 0, new))
        async with cluster.machine("b") as two:
            begun = asyncio.get_running_loop().time()
            await cluster.server.start()
            # What is announced is known at once.
            await two.sees(lambda peers: "a" in peers and peers["a"].next_public_key == new)
            one.identity.set(Identity(new, 1, switching=True))
            await two.sees(lambda peers: peers["a"].public_key == new)
            assert asyncio.get_running_loop().time() - begun > timing.return_s(1)


async def test_who_is_away_is_told_of_to_who_starts(tmp_path: Path) -> None:
    """It may know more from before, which is no reason to forget that."""
    async with start(tmp_path, *NETWORKS) as cluster:
        async with cluster.machine("b") as two:
            theirs = await two.joined()
        await cluster.delete(keys.node("b"))
        async with cluster.machine("a") as one:
            await one.joined()
            assert set(one.curator.mesh.peek().absent) == set(theirs)
            async with cluster.machine("b", held=theirs) as two:
                await two.joined()
                await one.sees(lambda peers: "b" in peers)
                await eventually(one.curator.mesh, lambda mesh: mesh.absent == ())


async def test_who_was_a_peer_of_a_curator_that_failed(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster:
        machine = cluster.machine("a")
        machine.curator.peers.set(
            "ghost", Peer("ghost", key_of("ghost"), IPv4Address("192.0.2.9"), 51820, ())
        )
        async with machine:
            await machine.joined()
            assert machine.curator.peers.copy() == {}


async def test_a_node_starts_without_etcd(tmp_path: Path) -> None:
    """A node uses its former prefixes, and joins when etcd comes."""
    async with start(tmp_path, *NETWORKS) as cluster:
        async with cluster.machine("a") as machine:
            held = await machine.joined()
        await cluster.server.stop()
        async with cluster.machine("a", held=held) as machine:
            await cluster.log.wait(REFUSED)
            assert machine.curator.pod_prefixes.peek().prefixes == held
            await cluster.server.start()
            assert await machine.joined() == held


async def test_compacted_while_away(tmp_path: Path) -> None:
    """Only a list shows what happened meanwhile."""
    async with pair(tmp_path) as (cluster, one, _):
        async with outage(cluster):
            pass
        # The nodes cannot see what happens now.
        cluster.server.move(ELSEWHERE)
        await cluster.server.start()
        await cluster.remove("b")
        async with cluster.machine("c") as other:
            await other.joined()
            async with await cluster.connect() as client:
                revision = (await client.status()).revision
            await cluster.server.etcdctl("compact", str(revision))
            await cluster.server.kill()
            cluster.server.move(HOME)
            await cluster.server.start()
            await one.sees(lambda peers: set(peers) == {"c"})
        await cluster.log.wait("reading everything anew", 1)


@pytest.mark.parametrize("token", ["etcd-cluster", "another"])
async def test_a_snapshot_from_before_the_claims(tmp_path: Path, token: str) -> None:
    """Nodes claim their prefixes again; peers see no change, whatever the
    cluster's id.
    """
    async with start(tmp_path, *NETWORKS) as cluster:
        await cluster.server.snapshot(tmp_path / "old")
        async with cluster.machine("a") as one, cluster.machine("b") as two:
            held = {"a": await one.joined(), "b": await two.joined()}
            await one.sees(lambda peers: "b" in peers)
            with one.curator.peers.watch() as peers:
                peers.take()
                await cluster.server.restore(tmp_path / "old", token=token)
                # The next in the cluster, later than them.
                await cluster.log.wait("joined with", 4)
                async with cluster.machine("c") as three:
                    await three.joined()
                    await one.sees(lambda peers: "c" in peers)
                assert set(peers.take()) == {"c"}
            claims = await cluster.claims()
            for name, prefixes in held.items():
                assert all(claims[prefix] == name for prefix in prefixes)
            assert one.curator.pod_prefixes.peek().prefixes == held["a"]


async def test_a_snapshot_from_before_and_another_has_the_prefixes(tmp_path: Path) -> None:
    """The second to come claims others, and logs it as an error."""
    async with start(tmp_path, *NETWORKS) as cluster:
        await cluster.server.snapshot(tmp_path / "old")
        async with cluster.machine("a") as one:
            held = await one.joined()
            async with outage(cluster, 1):
                pass
            cluster.server.move(ELSEWHERE)
            await cluster.server.restore(tmp_path / "old")
            async with cluster.machine("b", held=held) as two:
                assert await two.joined() == held
                await cluster.server.kill()
                cluster.server.move(HOME)
                await cluster.server.start()
                got = await one.has_prefixes(
                    lambda prefixes: len(prefixes) == 2 and prefixes != held
                )
                assert not set(got) & set(held)
                await one.sees(lambda peers: peers.get("b") is not None)
                assert (await cluster.claims())[held[0]] == "b"
        assert cluster.log.count(f"{held[0]} is not this node's any more, but \"b\"'s") == 1


async def test_a_snapshot_from_before_a_join(tmp_path: Path) -> None:
    """A node that joined after the snapshot is in again, the others stay."""
    async with start(tmp_path, *NETWORKS) as cluster, cluster.machine("a") as one:
        held = await one.joined()
        await cluster.server.snapshot(tmp_path / "old")
        async with cluster.machine("b") as two:
            theirs = await two.joined()
            await one.sees(lambda peers: "b" in peers)
            await cluster.server.restore(tmp_path / "old")
            # The first writes; that may hide the restoration from the second.
            await cluster.log.wait("restored from a snapshot")
            await cluster.log.wait("joined with", 3)
            claims = await cluster.claims()
            assert {claims[prefix] for prefix in theirs} == {"b"}
            assert {claims[prefix] for prefix in held} == {"a"}
            assert two.curator.pod_prefixes.peek().prefixes == theirs


async def test_a_restoration_that_hides_is_found_by_listing(tmp_path: Path) -> None:
    """The cluster id is the same, the revision ahead, and this node's prefixes
    are equal: only the periodic list shows that another node is back.
    """
    async with start(tmp_path, *NETWORKS) as cluster:
        # Long enough that it is connected again before.
        timing = replace(TIMING, list_every_s=10)
        async with cluster.machine("a", timing=timing) as one:
            await one.joined()
            async with cluster.machine("b", timing=replace(TIMING, lease_s=600)) as two:
                theirs = await two.joined()
            await cluster.server.snapshot(tmp_path / "old")
            await cluster.remove("b")
            await one.sees(lambda peers: not peers)
            async with outage(cluster, 1):
                pass
            cluster.server.move(ELSEWHERE)
            await cluster.server.restore(tmp_path / "old")
            for _ in range(20):
                await cluster.put(b"/other", b"x")
            await cluster.server.kill()
            cluster.server.move(HOME)
            await cluster.server.start()
            peers = await one.sees(lambda peers: "b" in peers)
            assert peers["b"].prefixes == theirs
            assert cluster.log.count("anew") == 0


async def test_an_etcd_without_anything(tmp_path: Path) -> None:
    """Nodes go on unchanged, and report what is missing."""
    async with pair(tmp_path) as (cluster, one, two):
        held = one.curator.pod_prefixes.peek().prefixes
        await cluster.server.wipe()
        await cluster.log.wait("configuration is not there; nothing is claimed", 2)
        assert one.curator.pod_prefixes.peek().prefixes == held
        await one.sees(lambda peers: "b" in peers)
        await cluster.init(*NETWORKS)
        await cluster.log.wait("joined with", 4)
        assert (await cluster.claims())[held[0]] == "a"
        assert len(two.curator.peers) == 1


async def test_the_next_endpoint_is_tried(tmp_path: Path) -> None:
    """Two endpoints are dead, whatever the order."""
    async with start(tmp_path, *NETWORKS) as cluster:
        endpoints = ("127.0.0.1:1", cluster.server.endpoint, "127.0.0.1:2")
        for number in range(4):
            async with Machine(endpoints, cluster.files, f"n{number}") as machine:
                await machine.joined()


async def test_certificates_are_read_again(tmp_path: Path) -> None:
    """Expired ones are renewed in place; each error names a file."""
    async with start(tmp_path, *NETWORKS) as cluster:
        authority, stranger = cluster.server.authority, Authority(tmp_path / "other", "stranger")
        files = files_of(authority.client("node", expired=True))
        async with Machine(cluster.server.endpoints, files, "a") as machine:
            await cluster.log.wait(f"{files.cert}: certificate has expired")
            await asyncio.to_thread(Path(files.key).unlink)
            said = f"no credentials for etcd: {files.key}: No such file or directory; correct"
            await cluster.log.wait(said)
            await asyncio.to_thread(Path(files.key).write_text, "no key")
            await cluster.log.wait(f"{files.cert} or {files.key}: no certificate or key in PEM")
            authority.client("node")
            await machine.joined()
        wrong_ca = Files(str(stranger.cert), files.cert, files.key)
        async with Machine(cluster.server.endpoints, wrong_ca, "b"):
            await cluster.log.wait(f"is not one that {stranger.cert} vouches for")
        unknown = stranger.client("node")
        mixed = Files(files.ca, str(unknown.cert), str(unknown.key))
        async with Machine(cluster.server.endpoints, mixed, "b"):
            await cluster.log.wait(f"{cluster.server.endpoint}: status: UNAVAILABLE")
        other = Files(files.ca, str(unknown.cert), files.key)
        async with Machine(cluster.server.endpoints, other, "b"):
            await cluster.log.wait(f"{files.key}: is not the key of {unknown.cert}")


async def test_a_server_for_another_address(tmp_path: Path) -> None:
    """Its certificate is checked against the endpoint's host."""
    async with start(tmp_path, *NETWORKS) as cluster:
        await cluster.server.stop()
        cluster.server.move("127.0.0.3")
        await cluster.server.start()
        with pytest.raises(etcd.EtcdError, match="vouches for, for this address"):
            await etcd.dial(cluster.server.endpoints, cluster.files)
