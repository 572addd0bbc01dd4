# SPDX-License-Identifier: Apache-2.0
"""Pods that cannot have a network leave no sandbox, namespace or address."""

import asyncio

import pytest

from metropolis.test.e2e.observe import attachments, nothing_is_left
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
    # One goes, and there is room again.
    await node.cri.remove_pod(first.pop())
    first.append(await node.cri.run_sandbox(sandbox_config("pod-2")))
    await asyncio.gather(*(node.cri.remove_pod(ident) for ident in first))
    await nothing_is_left(node)


async def test_the_service_is_down(node: Node) -> None:
    """New pods fail, cleanly; old ones are removed when it is back."""
    old = await node.cri.run_sandbox(sandbox_config("pod-old"))
    await node.shell("sv -w 60 stop /run/sv/node-core")
    try:
        unready = await node.cri.unready()
        assert unready.startswith("NetworkReady: "), unready
        assert "cni plugin not initialized" in unready
        with pytest.raises(CriError, match="cni plugin not initialized"):
            await node.cri.run_sandbox(sandbox_config("pod-new"))
        assert set(await node.cri.sandboxes()) == {old}
        assert len((await node.shell("ls /run/netns")).split()) == 1
        # Not without the service, but as soon as there is one.
        removal = asyncio.create_task(node.cri.remove_pod(old))
        await asyncio.sleep(1)
        assert not removal.done()
    finally:
        await node.shell("sv -w 60 start /run/sv/node-core")
    try:
        await removal
    except CriError:  # it started too slowly for one call; kubelet repeats it
        await node.wait_ready()
        await node.cri.remove_pod(old)
    await node.wait_ready()
    await nothing_is_left(node)
