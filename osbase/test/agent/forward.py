# SPDX-License-Identifier: Apache-2.0
"""A socket of the guest, at a path of the host."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from osbase.test.agent.errors import AgentError

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
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            tasks.add(task)
        try:
            async with dial() as stream:
                await _relay(stream, reader, writer)
        except AgentError, OSError:
            # The client sees a closed connection, as from the server.
            return
        finally:
            writer.close()
            if task is not None:
                tasks.discard(task)

    mask = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(serve, str(local))
    finally:
        os.umask(mask)
    try:
        yield
    finally:
        server.close()
        for task in [*tasks]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            os.unlink(local)


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
