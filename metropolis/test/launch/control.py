# SPDX-License-Identifier: Apache-2.0
"""A socket through which other commands ask a running launch to act.

    command                      launch
    {"op": "add"}          ->
                           <-    {"say": "node-4: boot: ..."}     any number
                           <-    {"result": {...}} or {"error": "..."}

Each is a line of JSON. After the result of "terminal" the connection carries
the frames of `terminal`. A connection is one request; closing it cancels the
request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from osbase.test.agent.listener import listening

SOCKET = "control.sock"
"""In the directory of a launch."""

type Request = dict[str, Any]
type Say = Callable[[str], None]
type Operation = Callable[[Request, Say], Awaitable[object]]
type Takeover = Callable[[Request, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ControlError(Exception):
    """The launch refused or failed; the text has the remedy."""


def _line(**answer: object) -> bytes:
    return json.dumps(answer).encode() + b"\n"


@contextlib.asynccontextmanager
async def control(
    path: Path,
    operations: Mapping[str, Operation],
    expected: tuple[type[Exception], ...],
    terminal: Takeover | None = None,
) -> AsyncIterator[None]:
    """Answer requests until the block is left.

    expected: errors whose text is the answer. terminal: gets the connection of
    a request "terminal", after the result.
    """
    refusals: tuple[type[Exception], ...] = (ControlError, *expected)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            name = request["op"]
        except ValueError, TypeError, KeyError:
            writer.write(_line(error="not a request"))
            return
        try:
            if name == "terminal" and terminal is not None:
                await terminal(request, reader, writer)
                return
            operation = operations.get(name)
            if operation is None:
                raise ControlError(f"this launch cannot {name}: launch-cluster can")
            result = await _until_closed(
                operation(request, lambda text: writer.write(_line(say=text))), reader
            )
            writer.write(_line(result=result))
        except refusals as error:
            writer.write(_line(error=str(error)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await answer(reader, writer)
            await writer.drain()

    async with listening(path, serve):
        yield


async def _until_closed(work: Awaitable[object], reader: asyncio.StreamReader) -> object:
    """Return the result of the work; cancel it when the command has gone."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ControlError("the command has gone")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def connect(directory: Path) -> socket.socket:
    """Connect to a launch. Raises ControlError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(directory / SOCKET))
    except OSError as error:
        connection.close()
        raise ControlError(
            f"the launch does not answer ({error.strerror}); is it ending?"
        ) from error
    return connection


def ask(directory: Path, request: Request, say: Say) -> Any:
    """Return a launch's result of a request. Raises ControlError."""
    with connect(directory) as connection, connection.makefile("rb") as lines:
        connection.sendall(_line(**request))
        for line in lines:
            answer = json.loads(line)
            if "say" in answer:
                say(answer["say"])
            elif "error" in answer:
                raise ControlError(answer["error"])
            else:
                return answer["result"]
    raise ControlError("the launch has ended")
