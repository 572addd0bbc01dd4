# SPDX-License-Identifier: Apache-2.0
"""One cluster for each file of tests, with a pod on every node.

A file may say which: NODES, how many; MTU, of the underlay.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from metropolis.test.launch import lab
from metropolis.test.launch.cluster import Cluster
from metropolis.test.launch.images import find_images
from metropolis.test.launch.prober import Prober


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-cl-"))
    nodes = getattr(request.module, "NODES", 3)
    mtu = getattr(request.module, "MTU", lab.MTU)
    outputs = os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR")
    keep = Path(outputs) if outputs else None
    failed = request.session.testsfailed
    try:
        async with Cluster(
            find_images(), directory, nodes, mtu=mtu, keep=keep, progress=say
        ) as running:
            await running.run_pods()
            yield running
            if request.session.testsfailed > failed:
                print(f"--- the nodes' logs\n{await running.logs()}", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def prober(cluster: Cluster) -> AsyncIterator[Prober]:
    """Pings between all pods, which were all answered once."""
    async with Prober(cluster) as running:
        await running.whole()
        yield running
