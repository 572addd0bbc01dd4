# SPDX-License-Identifier: Apache-2.0
"""Channels to services of a slow machine."""

import asyncio
import contextlib
import socket
from pathlib import Path

import grpc.aio

from metropolis.test.launch.cri import Cri, unix_channel, why

DELAY_S = 0.7


def test_what_is_said_of_a_command_that_does_not_exist() -> None:
    chain = "failed to start exec: OCI runtime exec failed: exec failed: "
    reason = 'exec: "nosuch": executable file not found in $PATH'
    assert why(f"{chain}unable to start container process: {reason}") == reason
    during = "unable to start container process: error during container init: "
    assert why(chain + during + reason) == reason
    assert why("container is not running") == "container is not running"


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            await asyncio.sleep(wait_s)
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_a_server_that_answers_late_is_connected_to(tmp_path: Path) -> None:
    """A relay delays all data from the server."""
    behind, before = tmp_path / "behind", tmp_path / "before"
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{behind}")
    await server.start()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, to_them = await asyncio.open_unix_connection(str(behind))
        await asyncio.gather(copy(reader, to_them, 0), copy(theirs, writer, DELAY_S))

    try:
        async with await asyncio.start_unix_server(relay, str(before)), unix_channel(before) as it:
            async with asyncio.timeout(20):
                await it.channel_ready()
    finally:
        await server.stop(None)


async def unready(path: Path) -> str:
    async with unix_channel(path) as channel:
        return await Cri(channel).unready()


async def test_a_service_that_is_not_there_yet_needs_no_words(tmp_path: Path) -> None:
    """No socket, or no listener, or the relay closes at once."""
    assert await unready(tmp_path / "none") == "containerd"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "gone"))
    assert await unready(tmp_path / "gone") == "containerd"

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.close()

    async with await asyncio.start_unix_server(close, str(tmp_path / "closes")):
        assert await unready(tmp_path / "closes") == "containerd"


async def test_a_service_that_is_none_is_reported(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"login: ".ljust(100))
        await reader.read(1)
        # Left to the collector, it fails (3.14) when the server is gone.
        writer.close()

    async with await asyncio.start_unix_server(talk, str(tmp_path / "talks")):
        assert "SETTINGS" in await unready(tmp_path / "talks")
