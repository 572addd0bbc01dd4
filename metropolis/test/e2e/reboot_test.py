# SPDX-License-Identifier: Apache-2.0
"""The node dies and boots again; containerd's data is on a disk that stays."""

import asyncio

import pytest

from metropolis.test.e2e.observe import attachments
from metropolis.test.e2e.world import SMALL, World
from metropolis.test.launch.cri import sandbox_config

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_sandboxes_of_before_are_removed(world: World) -> None:
    """Their namespaces are gone, so containerd has only the ids to give.

    It boots with the configuration that the next file of tests wants.
    """
    names = [f"pod-{number}" for number in range(2)]
    node = world.node
    old = [await node.cri.run_sandbox(sandbox_config(name)) for name in names]
    assert set(await attachments(node)) == set(old)
    await node.shell("sync")
    # Ends the machine at once, with everything that runs.
    node = await world.boot(SMALL)
    # containerd knows them, none runs, nobody holds an address.
    assert await node.cri.sandboxes() == dict.fromkeys(old, False)
    assert await attachments(node) == {}
    # kubelet starts the same pods anew, and removes what was.
    fresh, _ = await asyncio.gather(
        node.cri.run_sandbox(sandbox_config("pod-new")),
        asyncio.gather(*(node.cri.remove_pod(ident) for ident in old)),
    )
    again = await node.cri.run_sandbox(sandbox_config(names[0]))
    assert set(await attachments(node)) == {fresh, again}
    assert [ip.version for ip in await node.cri.sandbox_ips(again)] == [4, 6]
    await asyncio.gather(*(node.cri.remove_pod(ident) for ident in (fresh, again)))
