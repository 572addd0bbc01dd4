# SPDX-License-Identifier: Apache-2.0
"""One cluster for all test files with the same settings; a pod on every node.

Settings of a file: NODES, how many; MTU, of the underlay; SPENT: the cluster is
not usable after it.
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from metropolis.test.launch import failures, lab
from metropolis.test.launch.checks import Check
from metropolis.test.launch.cluster import BODIES, Cluster
from metropolis.test.launch.images import find_images
from metropolis.test.launch.node import NodeError
from metropolis.test.launch.prober import Prober
from metropolis.test.launch.shared import Shared, shared
from osbase.test.qemu import outputs

__all__ = ["cluster", "found", "prober", "shared"]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def running(nodes: int, mtu: int, number: int) -> AsyncIterator[Cluster]:
    """Run a cluster until the block is left. number: of the session's."""
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-cl-"))
    keep = failures.output(f"cluster-{number}")
    try:
        async with Cluster(
            find_images(), directory, nodes, mtu=mtu, keep=keep, progress=say
        ) as cluster:
            await cluster.run_pods()
            yield cluster
    except NodeError as error:
        error.add_note(f"logs: {keep and outputs.shown(keep)}")
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def pings(cluster: Cluster) -> AsyncIterator[Prober]:
    """Ping between all pods, which have all answered once."""
    async with Prober(cluster) as running:
        await running.whole()
        yield running


async def is_whole(cluster: Cluster, nodes: int) -> None:
    """Raise if the cluster is not in the state in which a file begins."""
    assert [place.node for place in cluster.places] == [f"node-{n + 1}" for n in range(nodes)]
    async with pings(cluster):
        pass


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def left_whole(
    request: pytest.FixtureRequest, shared: Shared
) -> AsyncIterator[list[Cluster]]:
    """Check that a file of tests leaves the cluster whole."""
    used: list[Cluster] = []
    yield used
    await shared.end_parts()
    if getattr(request.module, "SPENT", False):
        await shared.close()
    elif used:
        try:
            await is_whole(used[-1], getattr(request.module, "NODES", 3))
        except BaseException:
            await shared.close()
            raise


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(
    request: pytest.FixtureRequest, shared: Shared, left_whole: list[Cluster]
) -> AsyncIterator[Cluster]:
    """Return a cluster: whole at the start of a file, new after a failure."""
    nodes = getattr(request.module, "NODES", 3)
    mtu = getattr(request.module, "MTU", lab.MTU)
    failed = request.session.testsfailed
    here = await shared.get(("cluster", nodes, mtu), lambda: running(nodes, mtu, shared.made))
    left_whole[:] = [here]
    yield here
    if request.session.testsfailed > failed:
        left_whole.clear()
        members = here.members.values()
        said = await failures.of_nodes([one.node for one in members if one.node is not None])
        try:
            await shared.close()
        finally:
            kept = failures.output(f"cluster-{shared.made}")
            print(f"{said}\n{failures.paths(kept)}", flush=True)


@pytest_asyncio.fixture(loop_scope="session")
async def prober(cluster: Cluster, shared: Shared) -> Prober:
    """Ping between all pods, for as long as the file's tests run."""
    return await shared.part(pings, cluster)


@contextlib.asynccontextmanager
async def matrix(cluster: Cluster) -> AsyncIterator[list[Check]]:
    """Try everything, with large bodies."""
    yield await cluster.reach(max(BODIES))


@pytest_asyncio.fixture(loop_scope="session")
async def found(cluster: Cluster, shared: Shared) -> list[Check]:
    """Return all reachability checks, made once for the file's tests."""
    return await shared.part(matrix, cluster)
