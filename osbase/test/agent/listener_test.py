# SPDX-License-Identifier: Apache-2.0
"""Clients of a unix socket, and how their serving ends."""

import asyncio
from pathlib import Path

from osbase.test.agent.listener import listening

LIMIT_S = 20.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
        await writer.drain()


async def test_clients_are_served_at_once(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with listening(path, echo), asyncio.timeout(LIMIT_S):
        assert path.stat().st_mode & 0o777 == 0o600
        both = [await asyncio.open_unix_connection(str(path)) for _ in range(2)]
        for reader, writer in reversed(both):
            writer.write(b"a")
            assert await reader.read(1) == b"a"
            writer.close()


async def test_a_client_that_stays_delays_nothing(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with asyncio.timeout(LIMIT_S):
        async with listening(path, echo):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b"a")
            assert await reader.read(1) == b"a"
        assert await reader.read() == b""
        writer.close()
    assert not path.exists()
