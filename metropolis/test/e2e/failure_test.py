# SPDX-License-Identifier: Apache-2.0
"""Pods that cannot have a network leave no sandbox, namespace or address."""

import asyncio

import pytest

from metropolis.test.e2e.observe import attachments, kernel, nothing_is_left
from metropolis.test.e2e.world import SMALL
from metropolis.test.launch.cri import CriError, sandbox_config
from metropolis.test.launch.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONFIG = SMALL


async def test_no_address_is_left(node: Node) -> None:
    first = [await node.cri.run_sandbox(sandbox_config(f"pod-{number}")) for number in range(2)]
    with pytest.raises(CriError, match=r"RESOURCE_EXHAUSTED.*10\.192\.0\.0/30"):
        await node.cri.run_sandbox(sandbox_config("pod-2"))
    assert set(await node.cri.sandboxes()) == set(first)
    assert set(await attachments(node)) == set(first)
    assert len((await node.shell("ls /run/netns")).split()) == len(first)
    # After the removal of one pod there is room again.
    await node.cri.remove_pod(first.pop())
    first.append(await node.cri.run_sandbox(sandbox_config("pod-2")))
    await asyncio.gather(*(node.cri.remove_pod(ident) for ident in first))
    await nothing_is_left(node)


async def test_the_service_is_down(node: Node) -> None:
    """New pods fail, cleanly and with the reason. Old ones are removed, and
    their attachments once the service is back.
    """
    old = await node.cri.run_sandbox(sandbox_config("pod-old"))
    _, netns = await node.cri.sandbox_process(old)
    # An open file keeps the pod's network namespace after the pod's removal.
    holder = await node.shell(f"sleep 3600 <{netns} >/dev/null 2>&1 & echo $!")
    await node.shell("sv -w 60 stop /run/sv/node-core")
    try:
        unready = await node.cri.unready()
        assert unready.startswith("NetworkReady: "), unready
        assert "cni plugin not initialized" in unready
        with pytest.raises(CriError, match="cni plugin not initialized"):
            await node.cri.run_sandbox(sandbox_config("pod-new"))
        assert set(await node.cri.sandboxes()) == {old}
        assert len((await node.shell("ls /run/netns")).split()) == 1
        await node.cri.remove_pod(old)
        assert await node.cri.sandboxes() == {}
        assert (await kernel(node)).links
    finally:
        await node.shell("sv -w 60 start /run/sv/node-core")
    await node.wait_ready()
    async with asyncio.timeout(60):
        while await attachments(node):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.1)
    await nothing_is_left(node)
    await node.shell(f"kill {holder}")


async def test_the_first_two_pods_may_come_together(node: Node) -> None:
    """If the kernel loaded veth for one pod, it would come too late for the
    other: so the service loads it before it is ready.
    """
    await nothing_is_left(node)
    await node.shell("sv -w 60 stop /run/sv/node-core && rmmod veth")
    await node.shell("sv -w 60 start /run/sv/node-core")
    await node.wait_ready()
    assert "Live" in await node.shell("grep '^veth ' /proc/modules")
    pods = [node.cri.run_sandbox(sandbox_config(f"pod-{number}")) for number in range(2)]
    await asyncio.gather(*(node.cri.remove_pod(pod) for pod in await asyncio.gather(*pods)))
