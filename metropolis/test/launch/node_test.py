# SPDX-License-Identifier: Apache-2.0
"""The end of waiting for a node, with a fake machine and a fake agent."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from metropolis.test.launch.images import Images
from metropolis.test.launch.lab import Lab, Port
from metropolis.test.launch.node import Node, NodeError
from osbase.test.agent.client import Agent, AgentError, AgentGoneError, AgentRestartedError
from osbase.test.qemu.vm import Vm, VmError


class World:
    """A node. missing: returns what it lacks. Counts the tasks that are pending
    when `wait_ready` ends.
    """

    def __init__(self, directory: Path, missing: Callable[[], str]) -> None:
        self.ended, self.up = asyncio.Event(), asyncio.Event()
        self.gone: AgentError | None = None
        self.waiting = 0
        self.node = Node(cast(Images, None), cast(Lab, None), directory, port=Port(1, -1))
        self.node.vm = cast(Vm, SimpleNamespace(wait=self._wait, failure=self._failure))
        self.log = b""
        self.node.agent = cast(Agent, SimpleNamespace(ready=self._ready, read_file=self._read))
        self._missing = missing

    async def _read(self, path: str) -> bytes:
        if not path.startswith("/run/log/node-core/"):
            raise AgentError(f"{path}: ENOENT")
        return self.log

    async def _pend(self, event: asyncio.Event) -> None:
        self.waiting += 1
        try:
            await event.wait()
        finally:
            self.waiting -= 1

    async def _wait(self) -> str:
        await self._pend(self.ended)
        return "guest-panic"

    async def _ready(self) -> None:
        await self._pend(self.up)
        if self.gone is not None:
            raise self.gone

    def _failure(self, what: str) -> VmError:
        return VmError(f"{what}\n{'it' if self.ended.is_set() else 'nothing'} ended: the console")

    async def wait_ready(self, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 10.0) -> None:
        async def missing() -> str:
            return self._missing()

        async def logs(suspect: str = "node-core") -> str:
            return f"the logs of {suspect}"

        monkeypatch.setattr(self.node, "_missing", missing)
        monkeypatch.setattr(self.node, "logs", logs)
        try:
            await self.node.wait_ready(timeout_s)
        finally:
            assert self.waiting == 0


async def test_an_agent_that_starts_again_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["", "containerd"]

    def missing() -> str:
        if len(said) == 2:
            said.pop()
            raise AgentRestartedError("anew")
        return said.pop()

    world = World(tmp_path, missing)
    world.up.set()
    await world.wait_ready(monkeypatch)
    assert said == []


async def test_a_machine_that_ends_meanwhile_tells_its_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        asyncio.get_running_loop().call_later(0.3, world.ended.set)
        raise AgentGoneError("the machine closed the channel")

    world = World(tmp_path, missing)
    world.up.set()
    with pytest.raises(NodeError, match=r"closed the channel\nit ended: the console"):
        await world.wait_ready(monkeypatch)


async def test_a_machine_that_ends_before_the_agent_tells_its_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channel ends first, then QEMU."""
    world = World(tmp_path, str)
    world.gone = AgentGoneError("the machine closed the channel")
    world.up.set()
    asyncio.get_running_loop().call_later(0.3, world.ended.set)
    with pytest.raises(NodeError, match=r"closed the channel\nit ended: the console"):
        await world.wait_ready(monkeypatch)


async def test_time_is_up_before_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, str)
    with pytest.raises(NodeError, match=r"waiting for the agent\nthe logs of node-core"):
        await world.wait_ready(monkeypatch, 0.2)


async def test_time_is_up_while_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, lambda: "containerd")
    world.up.set()
    with pytest.raises(NodeError, match=r"waiting for containerd\nthe logs of node-core"):
        await world.wait_ready(monkeypatch, 0.5)


async def test_a_service_that_crashes_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, lambda: "the network service")
    world.up.set()
    world.log = b"-- start\nNameError: x\n-- start\nNameError: x\n-- start\n"
    with pytest.raises(NodeError) as caught:
        await world.wait_ready(monkeypatch, 30.0)
    assert str(caught.value).splitlines() == [
        "node-core ended 2 times and starts again: NameError: x (waited for the network service)",
        "the logs of node-core",
    ]


async def test_one_restart_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = asyncio.get_running_loop().time()
    late = 1.5
    world = World(
        tmp_path,
        lambda: "containerd" if asyncio.get_running_loop().time() < begin + late else "",
    )
    world.up.set()
    world.log = b"-- start\nNameError: x\n-- start\n"
    said: list[str] = []
    monkeypatch.setattr(world.node, "_progress", said.append)
    await world.wait_ready(monkeypatch, 30.0)
    assert "boot: node-core ended and starts again: NameError: x" in said
