# SPDX-License-Identifier: Apache-2.0
"""Requests to a launch, over a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from metropolis.test.launch import control
from metropolis.test.launch.control import ControlError, Request, Say, ask


class Launch:
    """Operations of a launch."""

    def __init__(self) -> None:
        self.waits, self.cancelled = asyncio.Event(), asyncio.Event()

    async def add(self, request: Request, say: Say) -> object:
        say("booting")
        say("booted")
        return [request.get("node")]

    async def fail(self, request: Request, say: Say) -> object:
        raise OSError("no room")

    async def hang(self, request: Request, say: Say) -> object:
        self.waits.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return None


async def asked(tmp_path: Path, request: Request) -> tuple[object, list[str]]:
    launch = Launch()
    operations = {"add": launch.add, "fail": launch.fail}
    said: list[str] = []
    async with control.control(tmp_path / control.SOCKET, operations, (OSError,)):
        return await asyncio.to_thread(ask, tmp_path, request, said.append), said


async def test_progress_and_result(tmp_path: Path) -> None:
    request = {"op": "add", "node": "node-1"}
    assert await asked(tmp_path, request) == (["node-1"], ["booting", "booted"])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"op": "fail"}, "no room"),
        ({"op": "poweroff"}, "this launch cannot poweroff: launch-cluster can"),
        ({}, "not a request"),
    ],
)
async def test_errors(tmp_path: Path, request_: Request, words: str) -> None:
    with pytest.raises(ControlError, match=words):
        await asked(tmp_path, request_)


async def test_a_command_that_goes_cancels_its_request(tmp_path: Path) -> None:
    launch = Launch()
    async with control.control(tmp_path / control.SOCKET, {"hang": launch.hang}, ()):
        _, writer = await asyncio.open_unix_connection(str(tmp_path / control.SOCKET))
        writer.write(b'{"op": "hang"}\n')
        await launch.waits.wait()
        writer.close()
        async with asyncio.timeout(20):
            await launch.cancelled.wait()


async def test_the_launch_ends_meanwhile(tmp_path: Path) -> None:
    launch = Launch()
    async with control.control(tmp_path / control.SOCKET, {"hang": launch.hang}, ()):
        asking = asyncio.create_task(asyncio.to_thread(ask, tmp_path, {"op": "hang"}, print))
        await launch.waits.wait()
    with pytest.raises(ControlError, match="the launch has ended"):
        await asking


def test_no_launch(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="does not answer"):
        ask(tmp_path, {"op": "list"}, print)
