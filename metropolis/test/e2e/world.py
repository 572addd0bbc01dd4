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

from metropolis.test.launch import failures, keeping
from metropolis.test.launch.images import Images, find_images
from metropolis.test.launch.lab import Lab
from metropolis.test.launch.node import Node, NodeError, make_data_disk
from osbase.test.qemu import outputs

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
    """node: the running node; config: its configuration, None: the image's.
    kept: gets the logs in the end, in a directory for each boot.
    """

    lab: Lab
    directory: Path
    images: Images
    disk: Path
    config: str | None = None
    boots: int = 0
    kept: Path | None = None
    runs: bool = False
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    node: Node = field(init=False)

    async def boot(self, config: str | None) -> Node:
        """Boot the node until pods can be started. A running one is powered off
        at once; the disk stays.
        """
        await self.end()
        self.config = config
        self.boots += 1
        directory = self.directory / f"{self.boots}"
        node = Node(self.images, self.lab, directory, config, _say, self.disk)
        self.node = await self.stack.enter_async_context(node)
        self.runs = True
        await self.node.wait_ready()
        return self.node

    async def end(self) -> None:
        """End the node, and keep its services' logs beside its console's."""
        if self.runs:
            self.runs = False
            await self.node.save_logs(self.directory / f"{self.boots}")
        await self.stack.aclose()


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def running(image: str, config: str | None, number: int = 1) -> AsyncIterator[World]:
    """Run a world until the block is left. image: of //metropolis/node. number:
    of the session's.
    """
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-e2e-"))
    kept = failures.output(f"node-{number}")
    try:
        disk = directory / "data.img"
        await make_data_disk(disk)
        async with Lab(directory) as lab:
            world = World(lab, directory, find_images(image), disk, kept=kept)
            async with world.stack:
                try:
                    await world.boot(config)
                    yield world
                finally:
                    await world.end()
    except NodeError as error:
        error.add_note(f"logs: {kept and outputs.shown(kept)}")
        raise
    finally:
        if kept is not None:
            keeping.copy(directory, kept)
        shutil.rmtree(directory, ignore_errors=True)
