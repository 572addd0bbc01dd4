# SPDX-License-Identifier: Apache-2.0
"""Every way to replace a file is reported, once per burst."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from osbase.inotify import changes

_WAIT_S = 60.0


class Reports:
    """Counts reports; a test can await the next."""

    def __init__(self, path: Path) -> None:
        self.times = 0
        self.begun = asyncio.Event()
        self._came = asyncio.Event()
        self._path = path

    async def follow(self) -> None:
        async for _ in changes([str(self._path)], quiet_s=0.2):
            self.times += 1
            self.begun.set()
            self._came.set()

    async def after(self, act: Callable[[], object]) -> None:
        """Call `act`; return when its change is reported."""
        self._came.clear()
        await asyncio.to_thread(act)
        async with asyncio.timeout(_WAIT_S):
            await self._came.wait()


async def following(path: Path) -> AsyncIterator[Reports]:
    reports = Reports(path)
    task = asyncio.create_task(reports.follow())
    async with asyncio.timeout(_WAIT_S):
        await reports.begun.wait()
    yield reports
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def replace(path: Path, text: str) -> None:
    new = path.with_name(".new")
    new.write_text(text)
    new.rename(path)


async def test_a_file(tmp_path: Path) -> None:
    """It is written in place, replaced, removed, created again."""
    path = tmp_path / "a" / "b" / "file"
    path.parent.mkdir(parents=True)
    path.write_text("1")
    async for reports in following(path):
        await reports.after(lambda: path.write_text("2"))
        await reports.after(lambda: replace(path, "3"))
        await reports.after(path.unlink)
        await reports.after(lambda: path.write_text("4"))
        await reports.after(lambda: path.chmod(0))


async def test_its_directory(tmp_path: Path) -> None:
    """It is missing, appears, disappears, is replaced."""
    path = tmp_path / "a" / "b" / "file"
    async for reports in following(path):
        await reports.after(path.parent.parent.mkdir)
        await reports.after(path.parent.mkdir)
        await reports.after(lambda: path.write_text("1"))
        await reports.after(lambda: path.parent.rename(tmp_path / "a" / "old"))
        await reports.after(lambda: shutil.copytree(tmp_path / "a" / "old", path.parent))
        await reports.after(lambda: path.write_text("2"))
        await reports.after(lambda: shutil.rmtree(tmp_path / "a"))
        await reports.after(path.parent.parent.mkdir)


async def test_links(tmp_path: Path) -> None:
    """Like a mounted secret: file -> ..data/file, ..data -> ..v1."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "file").write_text(version)
    path, data = tmp_path / "file", tmp_path / "data"
    data.symlink_to("v1")
    path.symlink_to("data/file")

    def swap() -> None:
        (tmp_path / "new").symlink_to("v2")
        (tmp_path / "new").rename(data)

    async for reports in following(path):
        await reports.after(lambda: (tmp_path / "v1" / "file").write_text("1"))
        await reports.after(swap)
        await reports.after(lambda: (tmp_path / "v2" / "file").write_text("2"))


async def test_links_to_links(tmp_path: Path) -> None:
    """Each is in another directory: a/file -> b/now/file, b/now -> c/v1."""
    for name in ("a", "b", "c/v1", "c/v2"):
        (tmp_path / name).mkdir(parents=True)
    for version in ("v1", "v2"):
        (tmp_path / "c" / version / "file").write_text(version)
    path, now = tmp_path / "a" / "file", tmp_path / "b" / "now"
    now.symlink_to("../c/v1")
    path.symlink_to("../b/now/file")

    def swap() -> None:
        (tmp_path / "b" / "new").symlink_to("../c/v2")
        (tmp_path / "b" / "new").rename(now)

    async for reports in following(path):
        await reports.after(swap)
        await reports.after(now.unlink)
        await reports.after(lambda: now.symlink_to("../c/v1"))


async def test_another_name_of_the_file(tmp_path: Path) -> None:
    """Like a file that is mounted alone."""
    path, other = tmp_path / "file", tmp_path / "other" / "file"
    path.write_text("1")
    other.parent.mkdir()
    other.hardlink_to(path)
    async for reports in following(path):
        await reports.after(lambda: other.write_text("2"))


async def test_a_burst_is_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def often() -> None:
        for number in range(100):
            replace(path, str(number))

    async for reports in following(path):
        await reports.after(often)
        # One more when the burst took longer than the pause.
        assert reports.times <= 3


async def test_it_looks_by_itself_and_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    looks = 0
    paths = [str(tmp_path / "x"), "relative", "/"]
    async with contextlib.aclosing(changes(paths, every_s=0.01)) as reports:
        async for _ in reports:
            looks += 1
            if looks == 3:
                break
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("path", ["loop", "loop/file"])
async def test_links_that_lead_nowhere(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    async for reports in following(tmp_path / path):
        await reports.after((tmp_path / "loop").unlink)
