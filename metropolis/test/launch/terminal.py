# SPDX-License-Identifier: Apache-2.0
"""A command in a pod on the user's terminal: window size, raw keys, status.

    pod exec -it           launch             node                  pod
    run()        control   serve()    agent   guest_terminal        sh
    terminal <-----------> relay <----------> pty <-> ctr exec <--> pty

Frames, both ways, after the request "terminal" (see control): a kind, a size of
4 bytes, the payload. To the node: "d" data, "w" rows and columns, "e" the end
of stdin. From the node: "d" stdout, "r" stderr, "x" the status.

Why not the CRI's Exec: it answers with the address of an SPDY or WebSocket
server at the node's loopback interface; `ctr` on the node needs neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import select
import signal
import socket
import struct
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from metropolis.test.launch import control

_HEADER = struct.Struct("!cI")
_CHUNK = 65536
_PROGRAM = Path(__file__).with_name("guest_terminal.py")


class Frames:
    """Splits received bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Return the frames that are whole now: kind and payload."""
        self._buffer += data
        found = []
        while len(self._buffer) >= _HEADER.size:
            kind, size = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + size
            if len(self._buffer) < end:
                break
            found.append((kind, bytes(self._buffer[_HEADER.size : end])))
            del self._buffer[:end]
        return found


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return _HEADER.pack(kind, len(payload)) + payload


# The launch's end.


class Process(Protocol):
    """The used part of the agent's Process."""

    async def read(self, channel: int = 0) -> bytes:
        """Return the next output of stdout (0) or stderr (1)."""

    async def write(self, data: bytes) -> None:
        """Send bytes to its stdin."""

    def finish(self) -> None:
        """End its stdin."""

    async def wait(self) -> int:
        """Return its exit status."""


class Agent(Protocol):
    """The used part of the agent."""

    def exec(self, argv: Sequence[str]) -> contextlib.AbstractAsyncContextManager[Process]:
        """Run a command on the node."""


async def serve(
    agent: Agent,
    request: control.Request,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Relay between a command and a container of the agent's node.

    request: tty, rows, columns, container, command.
    """
    words = [
        "1" if request["tty"] else "0", str(request["rows"]), str(request["columns"]),
        str(request["container"]), f"terminal-{secrets.token_hex(4)}",
        *map(str, request["command"]),
    ]  # fmt: skip
    program = await asyncio.to_thread(_PROGRAM.read_text)
    async with agent.exec(["python3", "-I", "-S", "-c", program, *words]) as process:
        writer.write(json.dumps({"result": {}}).encode() + b"\n")

        async def keys() -> None:
            # If the connection breaks, too: the program then ends the command.
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHUNK):
                    await process.write(data)
            process.finish()

        async def output(channel: int, kind: bytes) -> None:
            while data := await process.read(channel):
                with contextlib.suppress(OSError):
                    writer.write(frame(kind, data))
                    await writer.drain()

        typing = asyncio.create_task(keys())
        try:
            await asyncio.gather(output(0, b"d"), output(1, b"r"))
            writer.write(frame(b"x", struct.pack("!i", await process.wait())))
        finally:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)


# The command's end.


@contextlib.contextmanager
def raw_terminal(on: bool) -> Iterator[None]:
    """Hand every key over, for as long as the context lasts."""
    if not on:
        yield
        return
    before = termios.tcgetattr(0)
    # Keeps what was typed already.
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizes() -> Iterator[socket.socket]:
    """Yield a socket that is readable after each change of the window."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGWINCH, before)
        ours.close()
        theirs.close()


def _window() -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(0)
    except OSError:
        return 24, 80
    return rows, columns


def run(directory: Path, node: str, container: str, command: Sequence[str], on_tty: bool) -> int:
    """Run a command in a container with our stdin; return its status.

    directory: of the launch. on_tty: give it a terminal, which ours becomes.
    Raises control.ControlError.
    """
    rows, columns = _window()
    request: dict[str, Any] = {
        "op": "terminal", "node": node, "container": container, "command": list(command),
        "tty": on_tty, "rows": rows, "columns": columns,
    }  # fmt: skip
    with control.connect(directory) as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb", buffering=0) as lines:
            answer = json.loads(lines.readline() or b'{"error": "the launch has ended"}')
        if "error" in answer:
            raise control.ControlError(answer["error"])
        with raw_terminal(on_tty), _resizes() as resized:
            return _relay(connection, resized)


def _relay(connection: socket.socket, resized: socket.socket) -> int:
    frames = Frames()
    watched: list[socket.socket | int] = [connection, resized, 0]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if resized in ready:
            resized.recv(_CHUNK)
            connection.sendall(frame(b"w", struct.pack("!HH", *_window())))
        if 0 in ready:
            keys = os.read(0, _CHUNK)
            connection.sendall(frame(b"d", keys) if keys else frame(b"e"))
            if not keys:
                watched.remove(0)
        if connection in ready:
            data = connection.recv(_CHUNK)
            if not data:
                raise control.ControlError("the launch has ended")
            for kind, payload in frames.feed(data):
                if kind == b"x":
                    status: int = struct.unpack("!i", payload)[0]
                    return status if status >= 0 else 128 - status
                _write_all(sys.stderr.fileno() if kind == b"r" else sys.stdout.fileno(), payload)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
