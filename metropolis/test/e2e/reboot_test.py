# SPDX-License-Identifier: Apache-2.0
"""The node dies and boots again, with containerd's data on the same disk."""

import asyncio

import pytest

from metropolis.test.e2e.observe import attachments
from metropolis.test.e2e.world import SMALL, World
from metropolis.test.launch.cri import sandbox_config

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_sandboxes_of_before_are_removed(world: World) -> None:
    """Their namespaces are gone, so containerd only has their ids.

    The node boots with the configuration of the next file of tests.
    """
    names = [f"pod-{number}" for number in range(2)]
    node = world.node
    old = [await node.cri.run_sandbox(sandbox_config(name)) for name in names]
    assert set(await attachments(node)) == set(old)
    await node.shell("sync")
    # End the machine at once, with all its processes.
    node = await world.boot(SMALL)
    # containerd knows them, none runs, and no address is in use.
    assert await node.cri.sandboxes() == dict.fromkeys(old, False)
    assert await attachments(node) == {}
    # Like kubelet, start the same pods again, and remove the old ones.
    fresh, _ = await asyncio.gather(
        node.cri.run_sandbox(sandbox_config("pod-new")),
        asyncio.gather(*(node.cri.remove_pod(ident) for ident in old)),
    )
    again = await node.cri.run_sandbox(sandbox_config(names[0]))
    assert set(await attachments(node)) == {fresh, again}
    assert [ip.version for ip in await node.cri.sandbox_ips(again)] == [4, 6]
    await asyncio.gather(*(node.cri.remove_pod(ident) for ident in (fresh, again)))
