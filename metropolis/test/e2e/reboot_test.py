# SPDX-License-Identifier: Apache-2.0
"""The node dies and boots again; containerd's data is on a disk that stays."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from metropolis.test.e2e.observe import attachments, nothing_is_left
from metropolis.test.launch.cri import sandbox_config
from metropolis.test.launch.images import find_images
from metropolis.test.launch.lab import Lab
from metropolis.test.launch.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="module")

_DISK_BYTES = 1 << 29


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="m-e2e-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def disk(directory: Path) -> Path:
    made = directory / "data.img"
    with made.open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", made], check=True)
    return made


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


async def test_sandboxes_of_before_are_removed(lab: Lab, directory: Path, disk: Path) -> None:
    """Their namespaces are gone, so containerd has only the ids to give."""
    names = [f"pod-{number}" for number in range(3)]
    async with Node(find_images(), lab, directory / "1", progress=say, data=disk) as node:
        await node.wait_ready()
        old = [await node.cri.run_sandbox(sandbox_config(name)) for name in names]
        assert set(await attachments(node)) == set(old)
        await node.shell("sync")
        # Leaving ends the machine at once, with everything that runs.
    async with Node(find_images(), lab, directory / "2", progress=say, data=disk) as node:
        await node.wait_ready()
        # containerd knows them, none runs, nobody holds an address.
        assert await node.cri.sandboxes() == dict.fromkeys(old, False)
        assert await attachments(node) == {}
        # kubelet starts the same pods anew, and removes what was.
        fresh, _ = await asyncio.gather(
            node.cri.run_sandbox(sandbox_config("pod-new")),
            asyncio.gather(*(node.cri.remove_pod(ident) for ident in old)),
        )
        again = [await node.cri.run_sandbox(sandbox_config(name)) for name in names]
        assert set(await attachments(node)) == {fresh, *again}
        assert [ip.version for ip in await node.cri.sandbox_ips(again[0])] == [4, 6]
        await asyncio.gather(*(node.cri.remove_pod(ident) for ident in (fresh, *again)))
        await nothing_is_left(node)
