# SPDX-License-Identifier: Apache-2.0
"""A node in its lab, with a disk, shared by the tests of one node."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from metropolis.test.launch.images import Images, find_images
from metropolis.test.launch.lab import Lab
from metropolis.test.launch.node import Node, make_data_disk

POD_NETWORKS = ("10.192.0.0/24", "fd00:10:192::/112")
# Flows of one pod; lower than by default, since an emulated machine is slow.
FLOWS_PER_SECOND = 50


def config(*networks: str) -> str:
    """Return a NodeConfig with these networks for pods."""
    prefixes = "".join(f'pod_prefix: "{one}" ' for one in networks)
    flows = f"new_flows_per_second: {FLOWS_PER_SECOND}"
    return f"network {{ uplink {{ dhcp4 {{}} }} {prefixes} {flows} }}"


CONFIG = config(*POD_NETWORKS)
# Two IPv4 addresses, and enough IPv6 ones.
SMALL = config("10.192.0.0/30", POD_NETWORKS[1])


@dataclass
class World:
    """node: the running node; config: its configuration, None: the image's."""

    lab: Lab
    directory: Path
    images: Images
    disk: Path
    config: str | None = None
    boots: int = 0
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    node: Node = field(init=False)

    async def boot(self, config: str | None) -> Node:
        """Boot the node until pods can be started. A running one is powered off
        at once; the disk stays.
        """
        await self.stack.aclose()
        self.config = config
        self.boots += 1
        directory = self.directory / f"{self.boots}"
        node = Node(self.images, self.lab, directory, config, _say, self.disk)
        self.node = await self.stack.enter_async_context(node)
        await self.node.wait_ready()
        return self.node


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def running(image: str, config: str | None) -> AsyncIterator[World]:
    """Run a world until the block is left. image: of //metropolis/node."""
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-e2e-"))
    try:
        disk = directory / "data.img"
        await make_data_disk(disk)
        async with Lab(directory) as lab:
            world = World(lab, directory, find_images(image), disk)
            async with world.stack:
                await world.boot(config)
                yield world
    finally:
        shutil.rmtree(directory, ignore_errors=True)
