# SPDX-License-Identifier: Apache-2.0
"""One node for all files of tests, and pods that do not outlive their test.

Settings of a file: IMAGE, a target of //metropolis/node; CONFIG, the node's
configuration, None: the image's. Files with the same image share the node; it
boots again for another configuration.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from metropolis.test.e2e import observe
from metropolis.test.e2e.world import CONFIG, World, running
from metropolis.test.launch import checks, failures
from metropolis.test.launch.cri import CriError, Pod
from metropolis.test.launch.lab import Lab
from metropolis.test.launch.node import Node
from metropolis.test.launch.shared import Shared, shared
from osbase.test.agent.client import AgentError

__all__ = ["lab", "node", "run_pod", "shared", "world"]

type RunPod = Callable[[str], Awaitable[Pod]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def left_clean(shared: Shared) -> AsyncIterator[list[World]]:
    """Check that a file of tests leaves nothing on the node."""
    used: list[World] = []
    yield used
    await shared.end_parts()
    if used:
        try:
            await observe.nothing_is_left(used[-1].node)
        except BaseException:
            await shared.close()
            raise


@pytest_asyncio.fixture(loop_scope="session")
async def world(
    request: pytest.FixtureRequest, shared: Shared, left_clean: list[World]
) -> AsyncIterator[World]:
    """Return the node and its lab; new ones after a failed test."""
    image = getattr(request.module, "IMAGE", "dev_image")
    config = getattr(request.module, "CONFIG", CONFIG)
    here = await shared.get(("node", image), lambda: running(image, config, shared.made))
    failed = request.session.testsfailed
    if here.config != config:
        try:
            await here.boot(config)
        except BaseException:
            await shared.close()
            raise
    left_clean[:] = [here]
    yield here
    if request.session.testsfailed > failed:
        left_clean.clear()
        said = await failures.of_nodes([here.node])
        try:
            await shared.close()
        finally:
            print(f"{said}\n{failures.paths(here.kept)}", flush=True)


@pytest.fixture
def lab(world: World) -> Lab:
    return world.lab


@pytest.fixture
def node(world: World) -> Node:
    """Return a node on which pods can be started."""
    return world.node


@pytest_asyncio.fixture(loop_scope="session")
async def run_pod(node: Node) -> AsyncIterator[RunPod]:
    """Start pods that serve their name; remove them afterwards."""
    started: list[Pod] = []

    async def run(name: str) -> Pod:
        pod = await node.cri.run_pod(name, checks.pod_command(name))
        started.append(pod)
        return pod

    yield run
    with contextlib.suppress(CriError, AgentError):
        await asyncio.gather(*(node.cri.remove_pod(pod.id) for pod in started))
