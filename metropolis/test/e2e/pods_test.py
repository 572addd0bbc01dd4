# SPDX-License-Identifier: Apache-2.0
"""Pods start, communicate and are removed."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from metropolis.test.e2e.observe import attachments, kernel
from metropolis.test.launch import checks
from metropolis.test.launch.cri import Pod
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, OUTSIDE_PORT, Lab
from metropolis.test.launch.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

type RunPod = Callable[[str], Awaitable[Pod]]


async def two(run_pod: RunPod) -> list[Pod]:
    """Start two pods at once."""
    return [*await asyncio.gather(run_pod("pod-a"), run_pod("pod-b"))]


async def ended(node: Node, pod: Pod) -> None:
    """Wait until containerd knows that the processes of a pod have ended."""
    while (await node.cri.sandboxes())[pod.id] or any(  # noqa: ASYNC110 - of another process
        one.running for one in await node.cri.pods() if one.name == pod.name
    ):
        await asyncio.sleep(0.2)


async def test_everything_is_reached(node: Node, lab: Lab, run_pod: RunPod) -> None:
    pods = await two(run_pod)
    assert node.ipv6 is not None
    own: list[IPv4Address | IPv6Address] = [node.ipv4, node.ipv6]
    lab.seen.clear()
    plans = checks.plan(pods, own, [OUTSIDE_IPV4, OUTSIDE_IPV6], OUTSIDE_PORT)
    outcome = await checks.run(node.cri, pods, plans)
    assert len(outcome) == 12
    assert [check for check in outcome if not check.ok] == []
    # A pod's own address is never seen outside.
    assert set(lab.seen) == set(own)


async def test_udp_is_masqueraded(node: Node, run_pod: RunPod) -> None:
    pod = await run_pod("pod-a")
    for outside, source in ((OUTSIDE_IPV4, node.ipv4), (OUTSIDE_IPV6, node.ipv6)):
        script = f"tftp -g -r x -l /tmp/x {outside} {OUTSIDE_PORT} && cat /tmp/x"
        done = await node.cri.exec(pod.container, ["sh", "-c", script])
        assert done.stdout.strip() == str(source), done


async def test_the_runtime_and_the_service_agree(node: Node, run_pod: RunPod) -> None:
    pods = await two(run_pod)
    known = await attachments(node)
    assert set(known) == {pod.id for pod in pods}
    for pod in pods:
        assert {ip.packed for ip in pod.ips} == set(known[pod.id].ip)
        assert pod.ipv4 is not None
        assert pod.ipv6 is not None
        shown = await node.cri.exec(pod.container, ["ip", "-o", "addr", "show", "dev", "eth0"])
        assert f"inet {pod.ipv4}/32" in shown.stdout
        assert f"inet6 {pod.ipv6}/128" in shown.stdout


async def test_a_removed_pod_leaves_nothing(node: Node, run_pod: RunPod) -> None:
    pods = await two(run_pod)
    before = await kernel(node)
    assert (len(before.links), len(before.routes)) == (2, 6)
    await asyncio.gather(*(node.cri.remove_pod(pod.id) for pod in pods))
    after = await kernel(node)
    assert (after.links, after.routes) == ((), ())
    assert await attachments(node) == {}
    # Addresses come back as late as possible, so not now.
    fresh = await run_pod("pod-c")
    assert not {ip for pod in pods for ip in pod.ips} & set(fresh.ips)


async def test_a_pod_whose_namespace_is_gone(node: Node, run_pod: RunPod) -> None:
    pod = await run_pod("pod-a")
    pid, netns = await node.cri.sandbox_process(pod.id)
    # The pod's processes and the file keep the namespace.
    users = (await node.agent.run(["ip", "netns", "pids", Path(netns).name])).text.split()
    assert str(pid) in users
    await node.shell(f"kill -9 {' '.join(users)}; umount -l {netns} && rm {netns}")
    # The service notices by itself, and frees the addresses.
    async with asyncio.timeout(180):
        while pod.id in await attachments(node):  # noqa: ASYNC110 - no Watch yet
            await asyncio.sleep(0.2)
    assert (await kernel(node)).links == ()
    # Wait for containerd to notice the end of the processes; before, a request
    # may meet a shim that is just ending.
    async with asyncio.timeout(180):
        await ended(node, pod)
    # The runtime, which knows nothing of the network, can delete the pod.
    await node.cri.remove_pod(pod.id)
    assert pod.id not in await attachments(node)
    assert (await run_pod("pod-b")).ips
