# SPDX-License-Identifier: Apache-2.0
"""Credentials renewed while etcd is used, while it is away, and wrongly."""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from metropolis.node.core.curator import credentials
from metropolis.node.core.curator.credentials import Files
from metropolis.node.core.curator.renewal import WARN_S, Renewal
from metropolis.node.core.curator.testing.cluster import (
    NETWORKS,
    Cluster,
    Machine,
    eventually,
    files_of,
    start,
)
from metropolis.node.core.network.overlay.mesh import Identity
from metropolis.test.etcd import Authority

RENEWED = "credentials for etcd were renewed"
KEPT = "credentials for etcd stay those of before: "
HERE = "etcd at "
AWAY = "etcd is away"


def replace(target: str, source: str | Path) -> None:
    """As a careful operator does."""
    new = Path(f"{target}.new")
    shutil.copyfile(source, new)
    new.rename(target)


def install(
    files: Files, authority: Authority, *kinds: str, name: str, expired: bool = False
) -> None:
    """Replace these files by others, in this order."""
    made = files_of(authority.client(name, expired=expired))
    for kind in kinds:
        replace(getattr(files, kind), getattr(made, kind))


@contextlib.asynccontextmanager
async def node(directory: Path) -> AsyncIterator[tuple[Cluster, Machine, Files]]:
    """A node that has joined, with files of its own."""
    pki = directory / "pki-of-node"
    pki.mkdir()
    files = Files(*(str(pki / f"{kind}.pem") for kind in ("ca", "cert", "key")))
    async with start(directory, *NETWORKS) as cluster:
        install(files, cluster.server.authority, "ca", "cert", "key", name="first")
        async with Machine(cluster.server.endpoints, files, "a") as machine:
            await machine.joined()
            await cluster.log.wait(HERE)
            yield cluster, machine, files


async def follows(cluster: Cluster, machine: Machine) -> None:
    """What another node writes arrives, and what this one has is published."""
    async with cluster.machine(f"other-{time.monotonic_ns()}") as other:
        await other.joined()
        await machine.sees(lambda peers: other.node_id in peers)
        await other.sees(lambda peers: "a" in peers)


@pytest.mark.parametrize("order", ["ca cert key", "key cert ca", "cert ca key"])
async def test_renewed_while_connected(tmp_path: Path, order: str) -> None:
    """Nothing is told on, as nothing has changed; etcd is not even away."""
    async with node(tmp_path) as (cluster, machine, files):
        pods, mesh = machine.curator.pod_prefixes.watch(), machine.curator.mesh.watch()
        await pods.get()
        await mesh.get()
        install(files, cluster.server.authority, *order.split(), name="second")
        await cluster.log.wait(RENEWED)
        await cluster.log.wait(HERE, 2)
        assert cluster.log.count(AWAY) == 0
        assert not pods.changed()
        await follows(cluster, machine)
        # Once more, at once.
        install(files, cluster.server.authority, *order.split(), name="third")
        await cluster.log.wait(RENEWED, 2)
        await follows(cluster, machine)
        assert cluster.log.count(AWAY) == 0
        assert machine.curator.credentials.peek() == ""


async def test_what_is_wrong_is_not_used(tmp_path: Path) -> None:
    """It is said once, by file; etcd's restart is survived meanwhile."""
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
        # A set that is whole, which etcd does not take: expired, or of others.
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
        # What was used is what is there: a stranger's do no harm to it.
        install(files, Authority(tmp_path / "s", "s"), "ca", "cert", "key", name="third")
        await cluster.log.wait(KEPT)
        await follows(cluster, machine)


@pytest.mark.parametrize("first", ["node", "etcd"])
async def test_another_authority(tmp_path: Path, first: str) -> None:
    """Of both, whoever is first."""
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


@pytest.fixture
def no_inotify() -> Iterator[None]:
    limit = Path("/proc/sys/user/max_inotify_instances")
    before = limit.read_text()
    limit.write_text("0")
    yield
    limit.write_text(before)


async def test_without_inotify(tmp_path: Path, no_inotify: None) -> None:
    """They are used from the next connection on, which is said."""
    async with node(tmp_path) as (cluster, machine, files):
        await cluster.log.wait("from the next connection on: inotify_init1: Too many open")
        install(files, cluster.server.authority, "cert", "key", name="second")
        await cluster.server.kill()
        await cluster.server.start()
        await cluster.log.wait(HERE, 2)
        await follows(cluster, machine)


async def test_the_end_is_told_in_time(tmp_path: Path) -> None:
    made = Authority(tmp_path).client("node")
    for before_s, told in ((WARN_S + 3600, False), (WARN_S - 3600, True)):
        ends = credentials.judge(credentials.read(files_of(made))).ends
        assert ends == 4102444799  # 2099-12-31 23:59:59
        now_s = ends - before_s
        renewal = Renewal(files_of(made), clock=partial(float, now_s))
        (one,) = await renewal.candidates()
        await renewal.proved(one)
        expected = f"the certificate in use ends 2099-12-31 23:59 UTC: renew {made.cert}"
        assert renewal.note.peek() == (expected if told else "")
