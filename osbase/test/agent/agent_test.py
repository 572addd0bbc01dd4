# SPDX-License-Identifier: Apache-2.0
"""The contract over a socket pair, and tests that need a local process."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from osbase.test.agent import guest
from osbase.test.agent.client import Agent, AgentError, AgentGoneError, AgentRestartedError
from osbase.test.agent.contract import AgentContract
from osbase.test.agent.frame import Frame, Type, encode


async def start_guest(theirs: socket.socket) -> asyncio.subprocess.Process:
    """Start the guest's program on a socket."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", guest.__file__, "--fd", str(theirs.fileno()),
        pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


@pytest_asyncio.fixture
async def agent() -> AsyncIterator[Agent]:
    ours, theirs = socket.socketpair()
    process = await start_guest(theirs)
    theirs.close()
    async with asyncio.timeout(60), Agent(ours) as connected:
        yield connected
    assert await process.wait() == 0


@pytest.fixture
def scratch(tmp_path: Path) -> str:
    path = tmp_path / "scratch"
    path.mkdir()
    return str(path)


class TestAgent(AgentContract):
    """The contract."""


async def test_the_guest_starts_again() -> None:
    ours, theirs = socket.socketpair()
    async with asyncio.timeout(60), Agent(ours) as agent:
        first = await start_guest(theirs)
        async with agent.exec(["cat"]) as child:
            await child.write(b"x")
            assert await child.read() == b"x"
            first.kill()
            await first.wait()
            second = await start_guest(theirs)
            with pytest.raises(AgentRestartedError):
                await child.read()
        assert (await agent.run(["echo", "again"])).text == "again"
        second.kill()
        await second.wait()
    theirs.close()


async def test_leftovers_of_an_earlier_host() -> None:
    ours, theirs = socket.socketpair()
    stale = encode(Frame(Type.OPEN, 7, 1, 0, b'{"op":"exec","argv":["true"]}'))
    ours.sendall(b"garbage" + stale + stale[: len(stale) // 2])
    process = await start_guest(theirs)
    theirs.close()
    async with asyncio.timeout(60), Agent(ours) as agent:
        assert (await agent.run(["echo", "hello"])).text == "hello"
    assert await process.wait() == 0


async def test_a_new_host_ends_the_old_ones_commands(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    process = await start_guest(theirs)
    theirs.close()
    keep = socket.socket(fileno=os.dup(ours.fileno()))
    async with asyncio.timeout(60):
        async with Agent(ours) as first:
            held = first.exec(["sh", "-c", "echo $$; exec sleep 1000"])
            stream = await held.__aenter__()
            pid = int(await stream.read())
        async with Agent(keep) as second:
            await second.run(["true"])
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    assert await process.wait() == 0


async def test_the_machine_goes_away() -> None:
    ours, theirs = socket.socketpair()
    async with asyncio.timeout(60), Agent(ours) as agent:
        waiting = asyncio.create_task(agent.run(["true"]))
        theirs.close()
        with pytest.raises(AgentGoneError):
            await waiting
        with pytest.raises(AgentGoneError):
            await agent.run(["true"])


async def test_no_descriptor_is_lost(agent: Agent) -> None:
    async def count() -> int:
        done = await agent.run(["sh", "-c", "ls /proc/$PPID/fd | wc -l"])
        return int(done.text)

    before = await count()
    for _ in range(20):
        await agent.run(["true"])
        with pytest.raises(AgentError):
            await agent.run(["/no/such"])
        with pytest.raises(AgentError):
            await agent.read_file("/no/such")
    # A child's are closed some time after its end, here as in `before`. A leak
    # per command would be twenty more, for ever.
    async with asyncio.timeout(20):
        while await count() > before:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
