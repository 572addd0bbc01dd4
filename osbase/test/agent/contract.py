# SPDX-License-Identifier: Apache-2.0
"""The contract of an agent: one suite of tests for every transport.

A test module imports `AgentContract` under a name that pytest collects, and
provides the fixtures `agent` (a connected client.Agent) and `scratch` (an empty
directory of the guest, as str).
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from osbase.test.agent.client import Agent, AgentError, CommandError, Stream

# A unix socket server that sends back all it receives, and "bye" after EOF.
_ECHO = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1]); server.listen()
print("ready", flush=True)
while True:
    peer = server.accept()[0]
    while data := peer.recv(65536):
        peer.sendall(data)
    peer.sendall(b"bye"); peer.close()
"""


@contextlib.asynccontextmanager
async def echo_server(agent: Agent, path: str) -> AsyncIterator[None]:
    """Run the echo server in the guest."""
    async with agent.exec(["python3", "-I", "-S", "-c", _ECHO, path]) as server:
        assert await server.read() == b"ready\n"
        yield


class AgentContract:
    """The suite."""

    async def test_run(self, agent: Agent) -> None:
        done = await agent.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin=b"in", check=False)
        assert (done.status, done.stdout, done.stderr) == (3, b"in", b"err\n")

    async def test_status_checked(self, agent: Agent) -> None:
        with pytest.raises(CommandError, match="status 1: oops"):
            await agent.run(["sh", "-c", "echo oops >&2; exit 1"])

    async def test_environment(self, agent: Agent) -> None:
        done = await agent.run(["/bin/sh", "-c", "echo $A $HOME"], env={"A": "x y"})
        assert done.text == "x y"

    async def test_no_such_command(self, agent: Agent) -> None:
        with pytest.raises(AgentError, match="ENOENT") as caught:
            await agent.run(["/no/such/command"])
        assert caught.value.errno == 2

    async def test_death_by_signal(self, agent: Agent) -> None:
        done = await agent.run(["sh", "-c", "kill -9 $$"], check=False)
        assert done.status == -9

    async def test_signal(self, agent: Agent) -> None:
        # Short sleeps: the shell would wait for one that was forked, but not
        # yet executed, when the signal came.
        script = "trap 'echo got; exit 7' USR1; echo up; while :; do sleep 0.1; done"
        async with agent.exec(["sh", "-c", script]) as child:
            assert await child.read() == b"up\n"
            child.send_signal(10)
            assert await child.read() == b"got\n"
            assert await child.wait() == 7

    async def test_leaving_kills(self, agent: Agent) -> None:
        async with agent.exec(["sh", "-c", "echo $$; exec sleep 1000"]) as child:
            pid = (await child.read()).decode().strip()
        done = await agent.run(["sh", "-c", f"kill -0 {pid}"], check=False)
        assert done.status != 0

    async def test_much_data_both_ways(self, agent: Agent) -> None:
        data = os.urandom(3_000_000)
        done = await agent.run(["cat"], stdin=data)
        assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()

    async def test_unread_stdin(self, agent: Agent) -> None:
        done = await agent.run(["true"], stdin=bytes(3_000_000))
        assert done.status == 0

    async def test_stream_nobody_reads_blocks_nobody(self, agent: Agent) -> None:
        async with agent.exec(["sh", "-c", "cat /dev/zero"]), agent.exec(["cat"]) as second:
            for _ in range(20):
                await second.write(b"ping")
                assert await second.read() == b"ping"

    async def test_many_at_once(self, agent: Agent) -> None:
        runs = [agent.run(["echo", str(number)]) for number in range(20)]
        assert [done.text for done in await asyncio.gather(*runs)] == [str(n) for n in range(20)]

    async def test_files(self, agent: Agent, scratch: str) -> None:
        path = f"{scratch}/file"
        for data in (b"", b"short", os.urandom(2_000_000)):
            await agent.write_file(path, data, 0o640)
            assert await agent.read_file(path) == data
        assert (await agent.run(["stat", "-c", "%a", path])).text == "640"
        assert (await agent.run(["ls", scratch])).text == "file"

    async def test_file_errors(self, agent: Agent, scratch: str) -> None:
        for path, name in ((f"{scratch}/none", "ENOENT"), (scratch, "EINVAL"), ("", "ENOENT")):
            with pytest.raises(AgentError, match=name):
                await agent.read_file(path)
        with pytest.raises(AgentError, match="ENOENT"):
            await agent.write_file(f"{scratch}/none/file", bytes(1_000_000))
        assert (await agent.run(["ls", scratch])).text == ""

    async def test_kernel_file(self, agent: Agent) -> None:
        await agent.write_file("/proc/self/comm", b"renamed")
        assert await agent.read_file("/proc/self/comm") == b"renamed\n"

    async def test_dial(self, agent: Agent, scratch: str) -> None:
        path = f"{scratch}/echo"
        data = os.urandom(1_000_000)
        async with echo_server(agent, path), agent.dial(path) as stream:

            async def talk() -> None:
                await stream.write(data)
                stream.finish()

            _, got = await asyncio.gather(talk(), stream.read_all())
            assert got == data + b"bye"

    async def test_dial_nobody(self, agent: Agent, scratch: str) -> None:
        async with agent.dial(f"{scratch}/none") as stream:
            with pytest.raises(AgentError, match="ENOENT"):
                await stream.read()

    async def test_forward(self, agent: Agent, scratch: str, tmp_path: Path) -> None:
        path, local = f"{scratch}/echo", tmp_path / "s"
        async with echo_server(agent, path), agent.forward(path, local):
            assert local.stat().st_mode & 0o777 == 0o600
            for data in (b"", b"x", os.urandom(500_000)):
                reader, writer = await asyncio.open_unix_connection(str(local))
                writer.write(data)
                writer.write_eof()
                assert await reader.read(-1) == data + b"bye"
                writer.close()
                await writer.wait_closed()
        assert not local.exists()

    async def test_bad_requests(self, agent: Agent) -> None:
        for ask in ({}, {"op": "no"}, {"op": "exec"}, {"op": "exec", "argv": [1, "\0"]}):
            stream = await agent._open(Stream, ask)
            with pytest.raises(AgentError):
                await stream.read()
        assert (await agent.run(["echo", "fine"])).text == "fine"
