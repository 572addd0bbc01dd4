# SPDX-License-Identifier: Apache-2.0
"""Node core and containerd restart; pods are not affected."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc.aio
import pytest

from metropolis.node.core.network.workloads.spec import workload_pb2
from metropolis.test.e2e.observe import attachments, kernel
from metropolis.test.launch.cri import Pod
from metropolis.test.launch.lab import OUTSIDE_IPV4
from metropolis.test.launch.node import Node
from metropolis.test.launch.pings import pinging

pytestmark = pytest.mark.asyncio(loop_scope="session")

type RunPod = Callable[[str], Awaitable[Pod]]

# Seconds between lines on the TCP connection, and between pings.
_PAUSE_S = 0.2
# The file in the speaker that ends the traffic.
_STOP = "/tmp/stop"


async def core_pid(node: Node) -> int:
    """Return the process id of node core as runit knows it; 0: none."""
    text = await node.shell("cat /run/sv/node-core/supervise/pid")
    return int(text or 0)


async def service_is_back(node: Node) -> None:
    """Wait until the workload service answers."""
    async with asyncio.timeout(300):
        while True:
            try:
                await node.workloads.Status(workload_pb2.StatusRequest(), timeout=10)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.2)
            else:
                return


async def talk(node: Node, speaker: Pod, listener: Pod) -> int:
    """Run traffic between two pods until _STOP exists; nothing may get lost.

    There is a TCP connection with periodic lines, and pings in both families
    and to the outside. Return the number of lines sent.
    """
    say = (
        f"(n=0; until [ -e {_STOP} ]; do echo $n; n=$((n+1)); sleep {_PAUSE_S}; done;"
        f" echo $n >/tmp/said) | nc {listener.ipv4} 9000 && cat /tmp/said"
    )
    targets = *listener.ips, OUTSIDE_IPV4
    assert len(targets) == 3
    async with pinging(node, speaker, targets, _PAUSE_S) as answers:
        said = await node.cri.exec(speaker.container, ["sh", "-c", say], 300)
    assert said.status == 0, said
    for target in targets:
        assert len(answers[target].numbers) > 10, target
        assert answers[target].lost() == 0, target
    return int(said.stdout)


async def listen(node: Node, pod: Pod) -> None:
    """Begin to collect a TCP connection's data in /tmp/heard."""
    # Its input stays open, otherwise nc closes the connection at once.
    script = "(sleep 1000 | nc -l -p 9000 >/tmp/heard 2>&1) </dev/null >/dev/null 2>&1 &"
    done = await node.cri.exec(pod.container, ["sh", "-c", script])
    assert done.status == 0, done
    # 0x2328 is 9000, state 0A is LISTEN.
    wait = "until grep -q ':2328 .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done"
    assert (await node.cri.exec(pod.container, ["sh", "-c", wait])).status == 0


async def test_node_core_is_killed_while_pods_talk(node: Node, run_pod: RunPod) -> None:
    first, second = await asyncio.gather(run_pod("pod-a"), run_pod("pod-b"))
    before, objects = await attachments(node), await kernel(node)
    await listen(node, second)
    pid = await core_pid(node)
    async with asyncio.TaskGroup() as group:
        talking = group.create_task(talk(node, first, second))
        await node.shell("sleep 3 && sv kill /run/sv/node-core")
        await service_is_back(node)
        assert await core_pid(node) != pid
        await node.cri.exec(first.container, ["touch", _STOP])
    heard = await node.cri.exec(second.container, ["cat", "/tmp/heard"])
    assert heard.stdout.split() == [str(number) for number in range(talking.result())]
    # The new process adopted them without a change.
    assert await attachments(node) == before
    assert await kernel(node) == objects
    fresh = await run_pod("pod-c")
    assert not set(fresh.ips) & {*first.ips, *second.ips}
    for pod in (first, second):
        await node.cri.remove_pod(pod.id)
    assert set(await attachments(node)) == {fresh.id}


async def test_node_core_is_killed_over_and_over(node: Node, run_pod: RunPod) -> None:
    pod = await run_pod("pod-a")
    before = await kernel(node)
    for _ in range(2):
        await node.shell("sv kill /run/sv/node-core")
        await service_is_back(node)
    assert set(await attachments(node)) == {pod.id}
    assert await kernel(node) == before


async def test_containerd_stops_and_starts(node: Node, run_pod: RunPod) -> None:
    pod = await run_pod("pod-a")
    before = await kernel(node)
    await node.shell("sv -w 60 stop /run/sv/containerd")
    try:
        # The pod and its network go on.
        assert await node.shell(f"ping -c 3 -W 10 {pod.ipv4} && ping -c 3 -W 10 {pod.ipv6}")
    finally:
        await node.shell("sv -w 60 start /run/sv/containerd")
    await node.wait_ready()
    assert await kernel(node) == before
    assert set(await attachments(node)) == {pod.id}
    done = await node.cri.exec(pod.container, ["cat", "/tmp/www/name"])
    assert done.stdout.strip() == "pod-a"
    other = await run_pod("pod-b")
    assert not set(other.ips) & set(pod.ips)
    await node.cri.remove_pod(pod.id)
    assert set(await attachments(node)) == {other.id}
