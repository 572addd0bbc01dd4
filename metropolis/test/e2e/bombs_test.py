# SPDX-License-Identifier: Apache-2.0
"""A pod that exhausts resources harms neither the node nor other pods.

Meanwhile node core answers, pods communicate, another pod starts and stops, and
the attacker is removed like any other. If the disk is full, no pod can start: a
container has to write.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from metropolis.node.core.network.workloads.spec import workload_pb2
from metropolis.test.launch import checks
from metropolis.test.launch.cri import Pod, sandbox_config
from metropolis.test.launch.node import Node
from metropolis.test.launch.shared import Shared

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMIT_S = 300.0
PODS = "/sys/fs/cgroup/k8s.io"


@dataclass(frozen=True)
class Bomb:
    """command: for a shell in the pod. struck: for a shell on the node; it
    prints something once the limit is reached. CONTAINER is the pod's.
    """

    command: str
    struck: str


BOMBS = {
    "threads": Bomb(
        "while :; do sleep 10000 & done",
        f"sed -n 's/^max [1-9]/&/p' {PODS}/CONTAINER/pids.events",
    ),
    "memory": Bomb(
        "for n in 1 2 3 4; do while :; do tail /dev/zero; done & done",
        f"sed -n 's/^oom_kill [1-9]/&/p' {PODS}/memory.events",
    ),
    "disk": Bomb(
        "while :; do cat /dev/zero >>/big; sleep 1; done",
        "df /var | sed -n 's/ 100% /&/p'",
    ),
    "CPU": Bomb("for n in 1 2 3 4 5 6 7 8; do while :; do :; done & done", "echo yes"),
}


async def services(node: Node) -> str:
    """Return the services' processes, which change at a restart."""
    return await node.shell("cat /run/sv/node-core/supervise/pid /run/sv/containerd/supervise/pid")


async def assert_the_node_answers(node: Node, pods: list[Pod], *, room: bool = True) -> None:
    # An error if pods could not be attached.
    await node.workloads.Status(workload_pb2.StatusRequest(), timeout=60)
    a, b = pods
    for one, other in ((a, b), (b, a)):
        assert one.ipv4 is not None
        command = checks.fetch(one.ipv4, checks.PORT, "name")
        done = await node.cri.exec(other.container, list(command))
        assert done.stdout.strip() == one.name, done
    if room:
        new = await node.cri.run_sandbox(sandbox_config("new"))
        await node.cri.remove_pod(new)


@contextlib.asynccontextmanager
async def two_pods(node: Node) -> AsyncIterator[list[Pod]]:
    names = ("pod-a", "pod-b")
    pods = [*await asyncio.gather(*(node.cri.run_pod(n, checks.pod_command(n)) for n in names))]
    yield pods
    await asyncio.gather(*(node.cri.remove_pod(pod.id) for pod in pods))


@pytest_asyncio.fixture(loop_scope="session")
async def pods(node: Node, shared: Shared) -> list[Pod]:
    """Return pods that live through all tests."""
    return await shared.part(two_pods, node)


@pytest.mark.parametrize("kind", BOMBS)
async def test_one_pod_does_not_starve_the_node(node: Node, pods: list[Pod], kind: str) -> None:
    bomb = BOMBS[kind]
    before = await services(node)
    shell = f"({bomb.command}) 2>/dev/null & exec sleep 100000"
    bad = await node.cri.run_pod("bomb", ["sh", "-c", shell])
    try:
        begin = time.monotonic()
        struck = ""
        while not struck:
            assert time.monotonic() - begin < LIMIT_S, await node.shell(f"head {PODS}/*.events")
            await asyncio.sleep(0.5)  # counters of the guest's kernel
            struck = (await node.shell(bomb.struck.replace("CONTAINER", bad.container))).strip()
        at = time.monotonic()
        await assert_the_node_answers(node, pods, room=kind != "disk")
        print(
            f"{kind}: struck after {at - begin:.1f} s ({struck}); Status, two requests between "
            f"pods, a pod that came and went: {time.monotonic() - at:.1f} s"
        )
    finally:
        begin = time.monotonic()
        await node.cri.remove_pod(bad.id)
    print(f"{kind}: removed in {time.monotonic() - begin:.1f} s")
    await assert_the_node_answers(node, pods)
    assert await services(node) == before
