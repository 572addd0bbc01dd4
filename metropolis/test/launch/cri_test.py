# SPDX-License-Identifier: Apache-2.0
"""Channels to services of a slow machine."""

import asyncio
import contextlib
from pathlib import Path

import grpc.aio

from metropolis.test.launch.cri import unix_channel

DELAY_S = 0.7


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            await asyncio.sleep(wait_s)
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_a_server_that_answers_late_is_connected_to(tmp_path: Path) -> None:
    """By a relay whose every word from it takes a while."""
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
