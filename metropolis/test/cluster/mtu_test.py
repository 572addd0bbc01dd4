# SPDX-License-Identifier: Apache-2.0
"""A cluster on a network that carries less than Ethernet."""

import pytest

from metropolis.node import allocs
from metropolis.test.launch.cluster import BODIES, Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

NODES = 2
MTU = 1400


async def test_large_bodies_arrive(cluster: Cluster) -> None:
    """Larger packets are lost here without a word, so nobody may send one."""
    found = await cluster.reach(max(BODIES))
    assert len(found) == (2 + 2 + 2) * 2
    assert [f"{check.name}: {check.detail}" for check in found if not check.ok] == []


async def test_no_fragments(cluster: Cluster) -> None:
    """They would arrive, and cost twice."""
    wireguard = f"udp port {allocs.WIREGUARD_PORT}"
    assert (await cluster.capture.count(wireguard)).packets > 1000
    # More fragments, or an offset; IPv6's header for it (RFC 8200, 4.5).
    fragments = "ip[6:2] & 0x3fff != 0 or ip6[6] == 44"
    assert await cluster.capture.show(fragments) == ""
    assert (await cluster.capture.count(f"greater {MTU + 14 + 1} and {wireguard}")).packets == 0
