# SPDX-License-Identifier: Apache-2.0
"""Simulated nodes in a real etcd, read by a curator."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metropolis.node.core.curator.credentials import Files
from metropolis.node.core.curator.directory import Directory
from metropolis.test.bench.scale import oracle, simulated
from metropolis.test.bench.scale.store import Fleet
from metropolis.test.etcd import Etcd
from osbase.netlink.link import set_link_up
from osbase.netlink.transport import NetlinkSocket

NODES = 500


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    with NetlinkSocket() as sock:
        sock.batch([set_link_up(1, "lo")])
    async with Etcd(tmp_path) as etcd:
        client = etcd.client
        files = Files(str(client.ca), str(client.cert), str(client.key))
        async with Fleet(etcd.endpoint, files) as fleet:
            await fleet.init()
            yield fleet


async def _agree(fleet: Fleet) -> dict[bytes, oracle.Peer]:
    """Check that directory and oracle agree about etcd; return the peers."""
    entries = await fleet.entries()
    changes = Directory("node").replace(entries)
    assert changes.notes == []
    wanted = oracle.expected({entry.key: entry.value for entry in entries}, "node")
    keys = {key for peer in changes.peers.values() for key in (peer.public_key,)}
    assert keys == {key for key, peer in wanted.items() if peer.allowed}
    return wanted


async def test_all_changes(fleet: Fleet) -> None:
    begun = time.monotonic()
    await fleet.grow(NODES)
    print(f"{NODES} nodes in {time.monotonic() - begun:.2f} s")
    assert len(await _agree(fleet)) == NODES

    await fleet.move("sim-0")
    await fleet.rotate("sim-1")
    await fleet.leave("sim-2")
    await fleet.join()
    wanted = await _agree(fleet)
    assert len(wanted) == NODES
    moved, rotated = simulated.Sim(0, 0, moves=1), simulated.Sim(1, 0, epoch=1)
    assert wanted[moved.key(0)].endpoint == (moved.address, 51820)
    assert wanted[rotated.key(1)].allowed == frozenset(rotated.prefixes)
    assert rotated.key(0) not in wanted
    assert simulated.Sim(2, 0).key(0) not in wanted

    for step in (fleet.publish_again("sim-5"), fleet.ask_for_key("sim-6"), fleet.free_unrelated()):
        await step
        assert await _agree(fleet) == wanted
