# SPDX-License-Identifier: Apache-2.0
"""The helper: starts, kills, snapshots; our client with a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metropolis.node.core.curator import etcd, keys
from metropolis.node.core.curator.credentials import Files
from metropolis.node.core.curator.directory import Entry, Removal
from metropolis.node.core.curator.etcd import Compacted, LeaseGone
from metropolis.node.core.curator.transaction import Put, Transaction
from metropolis.test.etcd import Etcd
from osbase.netlink.link import set_link_up
from osbase.netlink.transport import NetlinkSocket

KEY = keys.NODES + b"a"


@contextlib.asynccontextmanager
async def served(directory: Path, *options: str) -> AsyncIterator[tuple[Etcd, etcd.Etcd]]:
    with NetlinkSocket() as sock:
        sock.batch([set_link_up(1, "lo")])
    async with Etcd(directory, ["127.0.0.1", "::1"], options) as server:
        async with await connect(server) as connection:
            yield server, connection


async def connect(server: Etcd) -> etcd.Etcd:
    files = Files(*map(str, (server.client.ca, server.client.cert, server.client.key)))
    return await etcd.dial(server.endpoints, files)


async def test_pages_and_revisions(tmp_path: Path) -> None:
    """More than a page, large values among them, at one revision."""
    async with served(tmp_path) as (_, connection):
        for start in range(0, 1200, 100):
            names = [keys.NODES + str(number).encode() for number in range(start, start + 100)]
            puts = tuple(Put(name, b"x" * 10000) for name in names)
            assert await connection.commit(Transaction({}, puts)) is not None
        listing = await connection.list(keys.ROOT)
        assert len(listing.entries) == 1200
        assert len({entry.key for entry in listing.entries}) == 1200
        assert listing.revision == (await connection.status()).revision
        assert (await connection.list(keys.CLAIMS)).entries == ()


async def test_large_values_make_pages_small(tmp_path: Path) -> None:
    """A page that is over the limit of a message is requested in parts."""
    async with served(tmp_path) as (_, connection):
        for number in range(12):
            put = Put(keys.NODES + str(number).encode(), b"x" * 1_400_000)
            assert await connection.commit(Transaction({}, (put,))) is not None
        assert len((await connection.list(keys.ROOT)).entries) == 12


async def test_a_transaction_compares(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, connection):
        first = await connection.commit(Transaction({KEY: 0}, (Put(KEY, b"1"),)))
        assert first is not None
        assert await connection.commit(Transaction({KEY: 0}, (Put(KEY, b"2"),))) is None
        other = Transaction({KEY: first}, (Put(KEY, b"2"),), values={KEY: b"2"})
        assert await connection.commit(other) is None
        same = Transaction({KEY: first}, (), (KEY,), values={KEY: b"1"})
        assert await connection.commit(same) is not None
        assert (await connection.list(keys.ROOT)).entries == ()


async def test_a_watch_tells_changes_and_progress(tmp_path: Path) -> None:
    """Without changes of ours, the revision goes on all the same."""
    async with served(
        tmp_path, "--experimental-watch-progress-notify-interval", "100ms"
    ) as (_, connection):  # fmt: skip
        start = (await connection.status()).revision + 1
        async with contextlib.aclosing(connection.watch(keys.ROOT, start)) as batches:
            made = await connection.commit(Transaction({}, (Put(KEY, b"1"),)))
            batch = await anext(batches)
            while not batch.events:
                batch = await anext(batches)
            assert batch.events == (Entry(KEY, b"1", made or 0),)
            assert batch.revision == made
            await connection.commit(Transaction({}, (), (KEY,)))
            batch = await anext(batches)
            while not batch.events:
                batch = await anext(batches)
            assert batch.events == (Removal(KEY),)
            other = await connection.commit(Transaction({}, (Put(b"/other", b"1"),)))
            async with asyncio.timeout(30):
                while batch.revision < (other or 0):
                    batch = await anext(batches)
                    assert not batch.events


async def test_what_was_compacted_is_reported(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, connection):
        for value in (b"1", b"2", b"3"):
            newest = await connection.commit(Transaction({}, (Put(KEY, value),)))
        await server.etcdctl("compact", str(newest))
        with pytest.raises(Compacted, match="revision 2 was compacted"):
            await anext(connection.watch(keys.ROOT, 2))


async def test_a_lease_that_ended_is_reported(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, connection):
        lease = await connection.grant(5)
        await connection.commit(Transaction({}, (Put(KEY, b"1", lease),)))
        await server.etcdctl("lease", "revoke", f"{lease:x}")
        with pytest.raises(LeaseGone):
            await connection.keep_alive(lease, 0.1)
        with pytest.raises(LeaseGone):
            await connection.commit(Transaction({}, (Put(KEY, b"1", lease),)))
        assert (await connection.list(keys.ROOT)).entries == ()


async def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    server = Etcd(tmp_path)
    start = asyncio.create_task(server.start())
    for _ in range(1000):
        if server.running:
            break
        await asyncio.sleep(0.01)
    process = server._process
    assert process is not None
    start.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await start
    assert not server.running
    assert process.returncode is not None


async def test_kill_keeps_and_restore_brings_back(tmp_path: Path) -> None:
    async with served(tmp_path) as (server, connection):
        await connection.commit(Transaction({}, (Put(KEY, b"1"),)))
        await server.snapshot(tmp_path / "old")
        await connection.commit(Transaction({}, (Put(KEY, b"2"),)))
        before = await connection.status()
        await server.kill()
        await server.start()
        async with await connect(server) as again:
            assert again.greeting == before
            assert (await again.list(keys.ROOT)).entries[0].value == b"2"
        await server.restore(tmp_path / "old")
        async with await connect(server) as again:
            assert again.greeting.cluster_id == before.cluster_id
            assert again.greeting.revision < before.revision
            assert (await again.list(keys.ROOT)).entries[0].value == b"1"
        await server.restore(tmp_path / "old", token="another")
        async with await connect(server) as again:
            assert again.greeting.cluster_id != before.cluster_id
