# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with the real shim."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.cni.server import CniServer
from metropolis.node.core.network.cni.testing import PREFIXES, GatedEngine, Netns, run, until
from metropolis.node.core.network.rules import host_ports
from osbase.nftables import Nftables


@pytest.fixture
def netns() -> Iterator[Netns]:
    made = Netns()
    yield made
    with contextlib.suppress(OSError):
        made.close()


@pytest.fixture(scope="module", autouse=True)
def host() -> None:
    """Prepare what the network service would."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "replace", f"{allocs.FIRST_HOP_IPV4}/32", "dev", "lo")
    with Nftables() as nft:
        nft.apply(host_ports.render())


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    engine = GatedEngine()
    engine.start()
    engine.set_prefixes(PREFIXES)
    yield engine
    for attachment in engine.list():
        engine.detach(attachment.workload_id)
    engine.close()


@pytest.fixture
async def service(engine: GatedEngine, tmp_path: Path) -> AsyncIterator[Path]:
    """Run a server; yield its socket."""
    path = tmp_path / "run" / "cni.sock"
    task = asyncio.create_task(CniServer(engine, path).run())
    await until(path.exists)
    yield path
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert not path.exists()
