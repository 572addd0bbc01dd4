# SPDX-License-Identifier: Apache-2.0
"""Credentials renewed while etcd is used, while it is away, and wrongly."""

import asyncio
import contextlib
import itertools
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metropolis.node.core.curator import credentials, etcd
from metropolis.node.core.curator.credentials import Files
from metropolis.node.core.curator.renewal import WARN_S, Renewal
from metropolis.node.core.curator.testing.cluster import (
    NETWORKS,
    TIMING,
    WAIT_S,
    Cluster,
    Machine,
    eventually,
    files_of,
    start,
)
from metropolis.node.core.network.overlay.mesh import Identity
from metropolis.test.etcd import Authority
from osbase import event

RENEWED = "credentials for etcd were renewed"
KEPT = "credentials for etcd stay those of before: "
HERE = "etcd at "
AWAY = "etcd is away"


def replace(target: str, source: str | Path) -> None:
    """Replace a file as a careful operator does."""
    new = Path(f"{target}.new")
    shutil.copyfile(source, new)
    new.rename(target)


def put(files: Files, made: Files, kinds: Sequence[str]) -> None:
    """Replace these files by others, in this order."""
    for kind in kinds:
        replace(getattr(files, kind), getattr(made, kind))


def install(
    files: Files,
    authority: Authority,
    *kinds: str,
    name: str,
    expired: bool = False,
    begins_in_s: float | None = None,
    ends_in_s: float | None = None,
) -> None:
    """Install new ones of that name; how long they last: see Authority."""
    made = authority.client(name, expired=expired, begins_in_s=begins_in_s, ends_in_s=ends_in_s)
    put(files, files_of(made), kinds)


def install_again(files: Files, authority: Authority, name: str) -> None:
    """Put back the set that was installed by that name."""
    directory = authority.cert.parent
    made = Files(*map(str, (authority.cert, directory / f"{name}.pem", directory / f"{name}.key")))
    put(files, made, ("ca", "cert", "key"))


def files_of_node(directory: Path) -> Files:
    """Return paths of its own; the files do not exist yet."""
    pki = directory / "pki-of-node"
    pki.mkdir()
    return Files(*(str(pki / f"{kind}.pem") for kind in ("ca", "cert", "key")))


@contextlib.asynccontextmanager
async def node(directory: Path) -> AsyncIterator[tuple[Cluster, Machine, Files]]:
    """A node that has joined, with files of its own."""
    files = files_of_node(directory)
    async with start(directory, *NETWORKS) as cluster:
        install(files, cluster.server.authority, "ca", "cert", "key", name="first")
        async with Machine(cluster.server.endpoints, files, "a") as machine:
            await machine.joined()
            await cluster.log.wait(HERE)
            yield cluster, machine, files


def wait_for_end(files: Files) -> None:
    """Wait until the certificate has expired."""
    while not credentials.judge(credentials.read(files)).problem:
        time.sleep(0.2)


async def follows(cluster: Cluster, machine: Machine) -> None:
    """Another node's writes arrive, and this one's record is published."""
    async with cluster.machine(f"other-{time.monotonic_ns()}") as other:
        await other.joined()
        await machine.sees(lambda peers: other.node_id in peers)
        await other.sees(lambda peers: "a" in peers)


@pytest.mark.parametrize("order", ["ca cert key", "key cert ca", "cert ca key"])
async def test_renewed_while_connected(tmp_path: Path, order: str) -> None:
    """Nothing is reported, as nothing has changed; etcd stays connected."""
    async with node(tmp_path) as (cluster, machine, files):
        watchers: list[event.Watcher[Any]] = [
            machine.curator.pod_prefixes.watch(),
            machine.curator.mesh.watch(),
            machine.curator.published.watch(),
        ]
        for watcher in watchers:
            await watcher.get()
        install(files, cluster.server.authority, *order.split(), name="second")
        await cluster.log.wait(RENEWED)
        await cluster.log.wait(HERE, 2)
        assert cluster.log.count(AWAY) == 0
        assert not any(watcher.changed() for watcher in watchers)
        async with cluster.machine("b") as other:
            await other.sees(lambda peers: "a" in peers)
            await machine.sees(lambda peers: "b" in peers)
            with other.curator.peers.watch() as seen, machine.curator.peers.watch() as sees:
                seen.take()
                sees.take()
                # Once more, at once.
                install(files, cluster.server.authority, *order.split(), name="third")
                await cluster.log.wait(RENEWED, 2)
                await follows(cluster, machine)
                assert "a" not in seen.take()
                assert "b" not in sees.take()
        assert cluster.log.count(AWAY) == 0
        assert machine.curator.credentials.peek() == ""


async def test_what_is_wrong_is_not_used(tmp_path: Path) -> None:
    """The error is logged once, by file; a restart of etcd is survived."""
    async with node(tmp_path) as (cluster, machine, files):
        authority, note = cluster.server.authority, machine.curator.credentials
        install(files, authority, "cert", name="second")
        await cluster.log.wait(f"{KEPT}{files.key}: is not the key of {files.cert}")
        await eventually(note, lambda text: "those of before are used" in text)
        await asyncio.to_thread(Path(files.key).write_text, "half of a k")
        await cluster.log.wait(f"{KEPT}{files.cert} or {files.key}: no certificate or key in PEM")
        await asyncio.to_thread(os.unlink, files.ca)
        await cluster.log.wait(f"{KEPT}{files.ca}: No such file or directory")
        await cluster.server.kill()
        await cluster.log.wait(AWAY)
        await cluster.server.start()
        await cluster.log.wait(HERE, 2)
        await follows(cluster, machine)
        missing = f"{files.ca}: No such file or directory"
        assert note.peek() == f"those of before are used: {missing}"
        assert cluster.log.count(f"{KEPT}{missing}") == 1
        # The ones in use are put back, which renews nothing.
        install_again(files, authority, "first")
        await eventually(note, lambda text: text == "")
        # A complete set that etcd refuses: expired, or another authority's.
        install(files, authority, "ca", "cert", "key", name="third", expired=True)
        await cluster.log.wait(f"{files.cert}: certificate has expired")
        stranger = Authority(tmp_path / "stranger", "stranger")
        install(files, stranger, "cert", "key", name="fourth")
        await eventually(note, lambda text: "UNAVAILABLE" in text)
        await follows(cluster, machine)
        assert cluster.log.count(RENEWED) == 0
        install(files, authority, "cert", "key", name="fifth")
        await cluster.log.wait(RENEWED)
        await eventually(note, lambda text: text == "")
        await follows(cluster, machine)


async def test_renewed_while_etcd_is_away(tmp_path: Path) -> None:
    async with node(tmp_path) as (cluster, machine, files):
        await cluster.server.kill()
        await cluster.log.wait(AWAY)
        install(files, cluster.server.authority, "cert", "key", name="second")
        machine.identity.set(Identity(machine.identity.peek().public_key, 1))
        await cluster.server.start()
        await cluster.log.wait(HERE, 2)
        await follows(cluster, machine)
        # The ones in use are installed: a foreign set does them no harm.
        install(files, Authority(tmp_path / "s", "s"), "ca", "cert", "key", name="third")
        await cluster.log.wait(KEPT)
        await follows(cluster, machine)


async def test_refused_by_an_etcd_that_comes_back(tmp_path: Path) -> None:
    """The refusal is logged, too, and they are tried again when the files are
    written again; the former ones may be put back.
    """
    async with node(tmp_path) as (cluster, machine, files):
        note = machine.curator.credentials
        await cluster.server.kill()
        await cluster.log.wait(AWAY)
        stranger = Authority(tmp_path / "s", "s")
        install(files, stranger, "cert", "key", name="second")
        await cluster.server.start()
        await cluster.log.wait(f"{KEPT}{cluster.server.endpoint}: ")
        await eventually(note, lambda text: "those of before are used" in text)
        await follows(cluster, machine)
        install_again(files, cluster.server.authority, "first")
        await eventually(note, lambda text: text == "")
        await follows(cluster, machine)
        assert cluster.log.count(RENEWED) == 0


async def test_a_broken_set_does_not_hurry_the_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two attempts have a pause between, even after another complete set."""
    loop, connect = asyncio.get_running_loop(), etcd.connect
    attempts: asyncio.Queue[tuple[float, credentials.Credentials]] = asyncio.Queue()

    async def counted(
        endpoints: Sequence[str], read: credentials.Credentials, *, deadline_s: float
    ) -> etcd.Etcd:
        attempts.put_nowait((loop.time(), read))
        return await connect(endpoints, read, deadline_s=deadline_s)

    async with node(tmp_path) as (cluster, _, files):
        await cluster.server.kill()
        await cluster.log.wait(AWAY)
        install(files, cluster.server.authority, "cert", "key", name="second")
        second = await asyncio.to_thread(credentials.read, files)
        monkeypatch.setattr(etcd, "connect", counted)
        async with asyncio.timeout(WAIT_S):
            while (await attempts.get())[1] != second:
                pass
            await asyncio.to_thread(os.unlink, files.key)
            while (await attempts.get())[1] == second:
                pass
            times = [(await attempts.get())[0] for _ in range(10)]
        short = [
            after - before
            for before, after in itertools.pairwise(times)
            if after - before < TIMING.retry_first_s / 2
        ]
        # The set read before the broken one may still come, once.
        assert len(short) <= 2


async def test_what_was_refused_is_tried_again(tmp_path: Path) -> None:
    """Rewritten files are tried again, though they are equal."""
    authority, files = Authority(tmp_path / "pki"), files_of_node(tmp_path)
    install(files, authority, "ca", "cert", "key", name="first")
    renewal = Renewal(files)
    (first,) = await renewal.candidates()
    await renewal.proved(first)
    install(files, authority, "cert", "key", name="second")
    second, also = await renewal.candidates()
    assert also == first
    latest = renewal.latest.watch()
    assert await latest.get() == second
    renewal.refused(second, "too slow")
    assert renewal.note.peek() == "those of before are used: too slow"
    # Broken meanwhile, which is the nearer reason, and put back.
    await asyncio.to_thread(os.unlink, files.ca)
    assert await renewal.candidates() == (first,)
    assert "No such file" in renewal.note.peek()
    install(files, authority, "ca", name="third")
    task = asyncio.create_task(renewal.follow())
    async with asyncio.timeout(WAIT_S):
        assert await latest.get() == second
    assert renewal.note.peek() == "those of before are used: too slow"
    await renewal.proved(second)
    assert renewal.note.peek() == ""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_text_between_certificates(tmp_path: Path) -> None:
    """In any encoding; `openssl x509 -text` writes names."""
    authority, files = Authority(tmp_path / "pki"), files_of_node(tmp_path)
    install(files, authority, "ca", "cert", "key", name="node")
    for path in map(Path, (files.ca, files.cert)):
        path.write_bytes("Aussteller: Zürich\n".encode() + path.read_bytes() + b"\xff\n")
    assert credentials.judge(credentials.read(files)).ends == 4102444799


@pytest.mark.parametrize("first", ["node", "etcd"])
async def test_another_authority(tmp_path: Path, first: str) -> None:
    """The node or etcd may be the first with the new authority."""
    async with node(tmp_path) as (cluster, machine, files):
        fresh = Authority(tmp_path / "fresh", "fresh")
        if first == "node":
            install(files, fresh, "ca", "cert", "key", name="second")
            await cluster.log.wait(KEPT)
        await cluster.server.certify(fresh)
        if first == "etcd":
            await cluster.log.wait(AWAY)
            install(files, fresh, "ca", "cert", "key", name="second")
        await cluster.log.wait(HERE, 2)
        cluster.files = files_of(cluster.server.client)
        await follows(cluster, machine)
        assert machine.curator.credentials.peek() == ""


async def test_a_certificate_that_begins_later(tmp_path: Path) -> None:
    """It is used once it is valid, though nobody touches the files again."""
    async with node(tmp_path) as (cluster, machine, files):
        authority = cluster.server.authority
        install(files, authority, "cert", "key", name="second", begins_in_s=12)
        await cluster.log.wait(f"{files.cert}: certificate is not yet valid")
        await follows(cluster, machine)
        # Also when the connection was lost meanwhile.
        await cluster.server.kill()
        await cluster.server.start()
        await cluster.log.wait(HERE, 2)
        await cluster.log.wait(RENEWED)
        await follows(cluster, machine)
        assert machine.curator.credentials.peek() == ""


async def test_the_one_in_use_ends(tmp_path: Path) -> None:
    """A connection continues, as TLS checks at its start; a new one fails."""
    async with node(tmp_path) as (cluster, machine, files):
        authority = cluster.server.authority
        install(files, authority, "cert", "key", name="second", ends_in_s=6)
        await cluster.log.wait(RENEWED)
        await cluster.log.wait(HERE, 2)
        await cluster.server.kill()
        await asyncio.to_thread(wait_for_end, files)
        await cluster.server.start()
        await cluster.log.wait(f"{files.cert}: certificate has expired")
        install(files, authority, "cert", "key", name="third")
        await cluster.log.wait(HERE, 3)
        await follows(cluster, machine)


@pytest.fixture
def no_inotify() -> Iterator[None]:
    limit = Path("/proc/sys/user/max_inotify_instances")
    before = limit.read_text()
    limit.write_text("0")
    yield
    limit.write_text(before)


async def test_without_inotify(tmp_path: Path, no_inotify: None) -> None:
    """They are used at the latest for the next connection; that is logged."""
    async with node(tmp_path) as (cluster, machine, files):
        await cluster.log.wait("and every 600 s: inotify_init1: Too many open files")
        install(files, cluster.server.authority, "cert", "key", name="second")
        await cluster.server.kill()
        await cluster.server.start()
        await cluster.log.wait(HERE, 2)
        await follows(cluster, machine)


async def test_the_end_is_told_in_time(tmp_path: Path) -> None:
    made = Authority(tmp_path).client("node")
    for before_s, reported in ((WARN_S + 3600, False), (WARN_S - 3600, True)):
        ends = credentials.judge(credentials.read(files_of(made))).ends
        assert ends == 4102444799  # 2099-12-31 23:59:59
        now_s = ends - before_s
        renewal = Renewal(files_of(made), clock=partial(float, now_s))
        (one,) = await renewal.candidates()
        await renewal.proved(one)
        expected = f"the certificate in use ends 2099-12-31 23:59 UTC: renew {made.cert}"
        assert renewal.note.peek() == (expected if reported else "")
