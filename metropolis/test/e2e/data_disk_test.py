# SPDX-License-Identifier: Apache-2.0
"""A data disk is present but unusable: the node reports it and powers off.

The tests observe the production image from outside.
"""

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from metropolis.test.launch.images import find_images
from metropolis.test.launch.node import make_data_disk
from osbase.test.qemu.accel import find_accel
from osbase.test.qemu.config import Drive, Machine
from osbase.test.qemu.vm import Vm

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT_S = 600.0
_SUPERBLOCK = 1024  # its offset and its size, bytes


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory with a path short enough for sockets."""
    made = Path(tempfile.mkdtemp(prefix="m-disk-"))
    yield made
    shutil.rmtree(made)


async def console(directory: Path, disk: Drive) -> str:
    """Boot with the disk until the machine is off; return its console."""
    images = find_images("image")
    machine = Machine(
        kernel=images.kernel,
        initrd=images.initramfs,
        cmdline="quiet",
        drives=(Drive(images.root, "root"), disk),
    )
    accel = await find_accel(images.kernel)
    async with asyncio.timeout(LIMIT_S), Vm(machine, accel, directory / "vm") as vm:
        assert await vm.wait() == "guest-shutdown"
        return vm.layout.console_log.read_text(errors="replace")


async def test_a_damaged_file_system(directory: Path) -> None:
    path = directory / "data.img"
    await make_data_disk(path)
    with path.open("r+b") as file:
        file.seek(_SUPERBLOCK)
        file.write(os.urandom(_SUPERBLOCK))
    said = await console(directory, Drive(path, "data", readonly=False))
    assert re.search(r"boot: STOPPED: the data disk /dev/vd. has no ext4 .*boot again", said), said
    assert "starting services" not in said


async def test_a_disk_that_cannot_be_written(directory: Path) -> None:
    path = directory / "data.img"
    await make_data_disk(path)
    said = await console(directory, Drive(path, "data"))
    assert re.search(r"boot: STOPPED: the data disk /dev/vd. cannot be written; ", said), said
    assert "starting services" not in said
