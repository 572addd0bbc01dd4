# SPDX-License-Identifier: Apache-2.0
"""A socket of the guest, at a path of the host."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from osbase.test.agent.errors import AgentError
from osbase.test.agent.listener import listening

_CHUNK = 64 * 1024


class Stream(Protocol):
    """The used part of client.Stream."""

    async def read(self) -> bytes:
        """Return the next bytes; b"" at the end."""

    async def write(self, data: bytes) -> None:
        """Send bytes; wait while the guest does not take them."""

    def finish(self) -> None:
        """Send no more."""


@contextlib.asynccontextmanager
async def forward(
    dial: Callable[[], AbstractAsyncContextManager[Stream]], local: Path
) -> AsyncIterator[None]:
    """Listen at `local` (mode 0600); connect each client to a new stream."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The client sees a closed connection, as from the server.
        with contextlib.suppress(AgentError, OSError):
            async with dial() as stream:
                await _relay(stream, reader, writer)

    async with listening(local, serve):
        yield


async def _relay(
    stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Copy both ways until both have ended, or one failed."""

    async def out() -> None:
        while data := await reader.read(_CHUNK):
            await stream.write(data)
        stream.finish()

    async def back() -> None:
        while data := await stream.read():
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    directions = [asyncio.create_task(out()), asyncio.create_task(back())]
    try:
        await asyncio.gather(*directions)
    finally:
        for task in directions:
            task.cancel()
        await asyncio.gather(*directions, return_exceptions=True)
