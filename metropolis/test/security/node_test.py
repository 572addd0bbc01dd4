# SPDX-License-Identifier: Apache-2.0
"""One node on its own, attacked by a pod and by a host on the uplink's link."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_asyncio

from metropolis.test.e2e.world import POD_NETWORKS
from metropolis.test.launch import capture, checks
from metropolis.test.launch.capture import Capture
from metropolis.test.launch.cri import CriError, Pod
from metropolis.test.launch.lab import OUTSIDE_PORT, Lab
from metropolis.test.launch.node import Node
from metropolis.test.launch.shared import Shared
from metropolis.test.security import trials
from metropolis.test.security.attacks import OUTSIDE, Site, Sniffer, arm
from osbase.test.agent.client import AgentError

pytestmark = pytest.mark.asyncio(loop_scope="session")

_FLOOD = 20_000
_CONNECTIONS = 10


@dataclass(frozen=True)
class Scene:
    """A node and its pods; the attacker has all capabilities in its netns."""

    site: Site
    capture: Capture
    attacker: Pod
    victim: Pod


@contextlib.asynccontextmanager
async def two_pods(node: Node, lab: Lab, directory: Path) -> AsyncIterator[Scene]:
    """Start attacker and victim on the node, and capture what goes outside."""
    async with Sniffer() as sniffer, Capture(directory) as running:
        attacker, victim = await asyncio.gather(
            *(node.cri.run_pod(name, checks.pod_command(name)) for name in ("attacker", "victim"))
        )
        await arm(node)
        yield Scene(Site(lab, node, sniffer), running, attacker, victim)
        with contextlib.suppress(CriError, AgentError):
            await asyncio.gather(*(node.cri.remove_pod(pod.id) for pod in (attacker, victim)))


@pytest_asyncio.fixture(loop_scope="session")
async def scene(
    node: Node, lab: Lab, shared: Shared, tmp_path_factory: pytest.TempPathFactory
) -> Scene:
    return await shared.part(two_pods, node, lab, tmp_path_factory.mktemp("capture"))


@pytest.mark.parametrize("version", [4, 6])
async def test_an_outsider_reaches_no_pod(scene: Scene, version: int) -> None:
    await trials.nothing_enters(scene.site, scene.victim, scene.attacker, version)


@pytest.mark.parametrize("version", [4, 6])
async def test_an_outsider_is_no_pod_and_not_the_node(scene: Scene, version: int) -> None:
    await trials.sources_are_not_forged(scene.site, scene.victim, version)


@pytest.mark.parametrize("version", [4, 6])
async def test_nothing_leaves_with_a_pods_address(scene: Scene, version: int) -> None:
    await trials.nothing_leaves(scene.site, scene.attacker, version)


@pytest.mark.parametrize("version", [4, 6])
async def test_a_pod_asks_nobody_for_credentials(scene: Scene, version: int) -> None:
    await trials.metadata_stays(scene.site, scene.attacker, version)


@pytest.mark.parametrize("version", [4, 6])
async def test_a_pod_reaches_nothing_of_the_node_but_icmp(scene: Scene, version: int) -> None:
    await trials.services_are_out_of_reach(scene.site, scene.attacker, version)


async def test_a_pod_invents_no_neighbours(scene: Scene) -> None:
    await trials.neighbours_are_not_invented(scene.site, scene.attacker)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("origin", ["pod", "node"])
async def test_a_segment_outside_the_window_ends_nothing(
    scene: Scene, version: int, origin: str
) -> None:
    pod = scene.victim if origin == "pod" else None
    await trials.segments_outside_the_window_end_nothing(scene.site, pod, version)


async def entries(node: Node) -> int:
    """Return the number of flows that the node's kernel tracks."""
    return int(await node.shell("cat /proc/sys/net/netfilter/nf_conntrack_count"))


async def refusals(site: Site) -> int:
    """Return how many new flows of pods were refused so far."""
    counters = await site.counters()
    return sum(counters[name] for name in ("new_flow_rate", "conntrack_offender"))


@pytest.mark.parametrize("version", [4, 6])
async def test_a_pod_that_floods_disturbs_nobody(scene: Scene, version: int) -> None:
    """Another pod can connect meanwhile; few of the flows are tracked."""
    node, victim = scene.site.node, scene.victim
    fetch = " ".join(checks.fetch(ip_address(OUTSIDE[version]), OUTSIDE_PORT, ""))
    work = f"for n in $(seq {_CONNECTIONS}); do {fetch} || exit 1; done"
    before, refused = await entries(node), await refusals(scene.site)
    flood = asyncio.create_task(
        scene.site.run(scene.attacker, "flood", address=OUTSIDE[version], ports=_FLOOD)
    )
    try:
        done = await node.cri.exec(victim.container, ["sh", "-c", work])
        assert done.status == 0, done
        assert set(done.stdout.split()) == {scene.site.address(version)}
        sent = int(await flood)
    finally:
        flood.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flood
    made = await entries(node) - before
    refused = await refusals(scene.site) - refused
    print(f"flood: {sent} packets of as many flows: {made} more flows known, {refused} refused")
    assert sent > _FLOOD / 2
    assert refused > sent / 2
    assert made < sent / 4


async def test_no_packet_of_a_pod_left_in_all_of_this(scene: Scene) -> None:
    """The capture on the uplink's link has the attempts of earlier tests."""
    ours = f"dst host {OUTSIDE[4]} or dst host {OUTSIDE[6]}"
    by_node = f"ether src {scene.site.node.port.mac}"
    pods = " or ".join(f"src net {network}" for network in POD_NETWORKS)
    kinds = {
        "the node's, to the outside": f"{by_node} and ({ours})",
        "from addresses of pods": f"{by_node} and ({pods})",
        "from the first hop": f"{by_node} and (src net 169.254.0.0/16 or src host fe80::1)",
        "to link-local IPv4": f"{by_node} and ip and dst net 169.254.0.0/16",
    }
    counts = {name: await scene.capture.count(text) for name, text in kinds.items()}
    print(f"the uplink:\n{capture.to_text(counts)}")
    first, *others = counts.values()
    assert first.packets > 0
    for text, found in zip([*kinds.values()][1:], others, strict=True):
        assert found.packets == 0, await scene.capture.show(text)


PAGE = Path("SECURITY.md").read_text()


async def test_each_drop_is_counted_by_its_name(scene: Scene) -> None:
    """The drops are those of the earlier tests."""
    counters = await scene.site.counters()
    print("\n".join(f"{name:24} {count}" for name, count in sorted(counters.items())))
    assert set(counters) == set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", PAGE, re.MULTILINE))
    assert sum(counters.values()) > 100
