# SPDX-License-Identifier: Apache-2.0
"""One node for each file of tests, and pods that do not outlive their test.

A file may say which: IMAGE, a target of //metropolis/node; CONFIG, of the node.
"""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from metropolis.test.launch import checks
from metropolis.test.launch.cri import CriError, Pod
from metropolis.test.launch.images import find_images
from metropolis.test.launch.lab import Lab
from metropolis.test.launch.node import Node
from osbase.test.agent.client import AgentError

type RunPod = Callable[[str], Awaitable[Pod]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-lab-"))
    try:
        async with Lab(directory) as world:
            yield world
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """A node on which pods can be started."""

    def say(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    directory = Path(tempfile.mkdtemp(prefix="m-e2e-"))
    failed = request.session.testsfailed
    try:
        images = find_images(getattr(request.module, "IMAGE", "dev_image"))
        config = getattr(request.module, "CONFIG", None)
        async with Node(images, lab, directory, config, say) as running:
            await running.wait_ready()
            yield running
            if request.session.testsfailed > failed:
                print(f"--- the node's logs\n{await running.logs()}", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest_asyncio.fixture(loop_scope="module")
async def run_pod(node: Node) -> AsyncIterator[RunPod]:
    """Start pods that serve their name; what is left of them is removed."""
    started: list[Pod] = []

    async def run(name: str) -> Pod:
        pod = await node.cri.run_pod(name, checks.pod_command(name))
        started.append(pod)
        return pod

    yield run
    with contextlib.suppress(CriError, AgentError):
        await asyncio.gather(*(node.cri.remove_pod(pod.id) for pod in started))
