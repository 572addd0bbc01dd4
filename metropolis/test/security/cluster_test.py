# SPDX-License-Identifier: Apache-2.0
"""Two nodes of three: attacked from outside, then one attacks the other.

The hostile node has everything of a node, including the cluster's credentials
and a WireGuard key. Its root attacks, after the node's services have ended.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_asyncio

from metropolis.node import allocs
from metropolis.node.core.curator import administration
from metropolis.node.core.network.rules.testing import packets
from metropolis.test.launch.cluster import POD_NETWORKS, Cluster
from metropolis.test.launch.cri import Pod
from metropolis.test.launch.lab import OUTSIDE_PORT, ROUTER_IPV4, ROUTER_IPV6
from metropolis.test.launch.node import Node
from metropolis.test.launch.shared import Shared
from metropolis.test.security import frames, trials
from metropolis.test.security.attacks import (
    END,
    FIRST_HOP,
    LIMIT_S,
    OUTSIDE,
    SERVICE_PORT,
    Site,
    Sniffer,
    address_of,
    arm,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

NODES = 3
MTU = 1400  # as in mesh_test, which has the cluster first
SPENT = True
_PORT = 6666
_ROUTER = {4: str(ROUTER_IPV4.ip), 6: str(ROUTER_IPV6.ip)}


@dataclass(frozen=True)
class Scene:
    """site: the attacked node. hostile: the other node, and its pod."""

    site: Site
    pod: Pod
    hostile: Node
    theirs: Pod

    async def by_overlay(self, some: list[bytes]) -> None:
        """Send packets into the hostile node's overlay."""
        command = await self.site.command(
            None, "send", link=allocs.OVERLAY_LINK, frames=[one.hex() for one in some], bare=True
        )
        await self.hostile.agent.run(command)


@contextlib.asynccontextmanager
async def two_nodes(cluster: Cluster) -> AsyncIterator[Scene]:
    """Copy the programs of attackers and victims to both nodes."""
    ours, theirs = cluster.members["node-1"], cluster.members["node-2"]
    assert ours.pod is not None
    assert theirs.pod is not None
    async with Sniffer() as sniffer:
        for node in (ours.running, theirs.running):
            await arm(node)
        site = Site(cluster.lab, ours.running, sniffer)
        yield Scene(site, ours.pod, theirs.running, theirs.pod)


@pytest_asyncio.fixture(loop_scope="session")
async def scene(cluster: Cluster, shared: Shared) -> Scene:
    return await shared.part(two_nodes, cluster)


@pytest.mark.parametrize("version", [4, 6])
async def test_an_outsider_reaches_no_pod(scene: Scene, version: int) -> None:
    await trials.nothing_enters(scene.site, scene.pod, scene.theirs, version)


@pytest.mark.parametrize("version", [4, 6])
async def test_an_outsider_is_no_pod_and_not_the_node(scene: Scene, version: int) -> None:
    await trials.sources_are_not_forged(scene.site, scene.pod, version)
    await trials.sources_are_not_forged(scene.site, scene.theirs, version)


@pytest.mark.parametrize("version", [4, 6])
async def test_nothing_leaves_with_a_pods_address(scene: Scene, version: int) -> None:
    await trials.nothing_leaves(scene.site, scene.pod, version)


@pytest.mark.parametrize("version", [4, 6])
async def test_a_pod_asks_nobody_for_credentials(scene: Scene, version: int) -> None:
    await trials.metadata_stays(scene.site, scene.pod, version)


@pytest.mark.parametrize("version", [4, 6])
async def test_a_pod_reaches_nothing_of_the_node_but_icmp(scene: Scene, version: int) -> None:
    await trials.services_are_out_of_reach(scene.site, scene.pod, version)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("origin", ["pod", "node"])
async def test_a_segment_outside_the_window_ends_nothing(
    scene: Scene, version: int, origin: str
) -> None:
    pod = scene.pod if origin == "pod" else None
    await trials.segments_outside_the_window_end_nothing(scene.site, pod, version)


async def test_a_local_user_opens_no_key_and_no_socket(scene: Scene) -> None:
    """The keys and sockets are of the service, of WireGuard and for etcd."""
    sites = " ".join((f"{allocs.STATE_DIR}/overlay", allocs.PKI_DIR, allocs.RUNTIME_DIR))
    found = await scene.site.node.shell(f"find {sites} -type f -o -type s")
    paths = sorted(found.splitlines())
    kinds = {Path(path).suffix for path in paths}
    print("\n".join(paths))
    assert {".pem", ".sock"} <= kinds
    assert any(path.startswith(allocs.STATE_DIR) for path in paths)
    assert await scene.site.run(None, "pry", paths=paths, uid=65534) == ""
    # Root may open them, so they exist.
    assert (await scene.site.run(None, "pry", paths=paths, uid=0)).splitlines() == paths


async def overlay_address(node: Node, version: int) -> str:
    """Return a node's own address in the overlay."""
    show = f"ip -{version} -o address show dev {allocs.OVERLAY_LINK} scope global"
    text = (await node.agent.run(show.split())).text
    words = text.split()
    return words[words.index("inet6" if version == 6 else "inet") + 1].partition("/")[0]


async def public_key(node: Node) -> str:
    """Return a node's WireGuard key, as wg(8) has it."""
    return (await node.agent.run(["wg", "show", allocs.OVERLAY_LINK, "public-key"])).text.strip()


@contextlib.asynccontextmanager
async def no_rules(scene: Scene) -> AsyncIterator[Scene]:
    """Take the other node's rules away, for good."""
    node = scene.hostile
    await node.shell("SVDIR=/run/sv sv force-stop node-core || true")
    await node.shell("nft flush ruleset")
    everything = ["allowed-ips", "0.0.0.0/0,::/0"]
    attacked = await public_key(scene.site.node)
    await node.agent.run(["wg", "set", allocs.OVERLAY_LINK, "peer", attacked, *everything])
    yield scene


@pytest_asyncio.fixture(loop_scope="session")
async def hostile(scene: Scene, shared: Shared) -> Scene:
    """The other node has no rules any more, and may send us anything."""
    return await shared.part(no_rules, scene)


@pytest.mark.parametrize("version", [4, 6])
async def test_a_hostile_node_is_nobody_else(hostile: Scene, version: int) -> None:
    """It can send to a pod only with its own pods' addresses."""
    scene, site = hostile, hostile.site
    to, own = address_of(scene.pod, version), address_of(scene.theirs, version)
    sources = {
        "the pod itself": to,
        "another of its node": str(ip_address(to) + 1),
        "first hop": FIRST_HOP[version],
        "its node": site.address(version),
        "its node in the overlay": await overlay_address(site.node, version),
        "the hostile node's underlay": str(
            scene.hostile.ipv4 if version == 4 else scene.hostile.ipv6
        ),
        "outside": OUTSIDE[version],
    }
    tried = [
        packets.udp(one, to, (_PORT, _PORT), f"as {name}".encode()) for name, one in sources.items()
    ]
    async with site.running(scene.pod, "hear", link="eth0", end=END, greet=[]) as heard:
        await scene.by_overlay([*tried, packets.udp(own, to, (_PORT, _PORT), END.encode())])
        got = await heard.packets()
    trials.show(f"{len(tried)} forged sources by the overlay; the pod got", got)
    assert [frames.payload(one).decode() for one in got if _PORT in one.ports] == [END]


@pytest.mark.parametrize("version", [4, 6])
async def test_a_hostile_node_reaches_nothing_of_a_node(hostile: Scene, version: int) -> None:
    """Neither its services, by any of its addresses, nor by the first hop's."""
    scene, site = hostile, hostile.site
    sources = (
        address_of(scene.theirs, version),
        await overlay_address(scene.hostile, version),
    )
    targets = (
        await overlay_address(site.node, version),
        site.address(version),
        FIRST_HOP[version],
    )
    tried = [
        packet
        for source in sources
        for to in targets
        for packet in (
            packets.udp(source, to, (_PORT, SERVICE_PORT), f"{source} to {to}".encode()),
            packets.tcp(source, to, (_PORT, SERVICE_PORT), packets.SYN),
        )
    ]
    async with site.running(None, "serve", port=SERVICE_PORT, end=END) as heard:
        await _and_arrive(scene, version, tried)
        site.end_service(version)
        assert await heard.rest() == [END]


@pytest.mark.parametrize("version", [4, 6])
async def test_a_hostile_node_has_no_gateway(hostile: Scene, version: int) -> None:
    """It cannot use another node to reach the outside or that node's link."""
    scene, site = hostile, hostile.site
    own = address_of(scene.theirs, version)
    targets = (OUTSIDE[version], _ROUTER[version], *trials.METADATA[version])
    tried = [
        packet
        for to in targets
        for packet in (
            packets.udp(own, to, (_PORT, OUTSIDE_PORT), b"claim"),
            packets.tcp(own, to, (_PORT, OUTSIDE_PORT), packets.SYN),
            packets.tcp(own, to, (_PORT, OUTSIDE_PORT), packets.RST),
            packets.echo(own, to, b"claim"),
        )
    ]
    begin = len(site.sniffer.frames)
    await _and_arrive(scene, version, tried)
    # After all of them, this node sends a packet of its own pod.
    await site.out_of_pod(scene.pod, version, [])
    left = site.sent_by_node(begin)
    trials.show(f"{len(tried)} packets to forward; the node sent", left)
    assert trials.attempted(left) == []
    assert trials.of((network for network, _ in POD_NETWORKS), left) == []


async def test_a_removed_node_is_a_stranger(cluster: Cluster, hostile: Scene) -> None:
    """This holds as soon as no node has its key."""
    scene, site = hostile, hostile.site
    removed = await public_key(scene.hostile)
    show = ["wg", "show", allocs.OVERLAY_LINK, "peers"]
    assert removed in (await site.node.agent.run(show)).text
    async with cluster.store() as store:
        await administration.remove(store, "node-2")
    async with asyncio.timeout(LIMIT_S):
        # WireGuard has no events.
        while removed in (await site.node.agent.run(show)).text:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    for version in (4, 6):
        to, own = address_of(scene.pod, version), address_of(scene.theirs, version)
        async with site.hearing(scene.pod, version) as (heard, end):
            await scene.by_overlay([packets.udp(own, to, (_PORT, _PORT), b"claim")])
            end()
            assert trials.attempted(await heard.packets()) == []


async def _and_arrive(scene: Scene, version: int, some: list[bytes]) -> None:
    """Send packets by the overlay, until all have arrived and are filtered."""
    to, own = address_of(scene.pod, version), address_of(scene.theirs, version)
    last = packets.udp(own, to, (_PORT, _PORT), END.encode())
    async with scene.site.running(scene.pod, "hear", link="eth0", end=END, greet=[]) as heard:
        await scene.by_overlay([*some, last])
        await heard.rest()
