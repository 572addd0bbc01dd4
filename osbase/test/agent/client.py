# SPDX-License-Identifier: Apache-2.0
"""The host's end, on asyncio.

    async with Agent(socket_path) as agent:
        done = await agent.run(["ip", "link"])
        async with agent.forward("/run/x.sock", local_path):
            ...

An Agent outlives the guest's program: when that restarts, everything open fails
with AgentRestartedError and the next request goes to the new one. Requests wait
until the guest answers, so they may be made before the guest is up.
"""

import asyncio
import contextlib
import json
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from osbase.test.agent.errors import AgentError as AgentError
from osbase.test.agent.errors import AgentGoneError as AgentGoneError
from osbase.test.agent.errors import AgentRestartedError as AgentRestartedError
from osbase.test.agent.errors import CommandError as CommandError
from osbase.test.agent.forward import forward
from osbase.test.agent.frame import Frame, Type
from osbase.test.agent.mux import Mux, ProtocolError

_CHUNK = 64 * 1024
_QUEUE = 256 * 1024
# Seconds; the answer to HELLO is prompt, unless the guest is not there yet. Its
# READY then makes us send HELLO again.
_HELLO_S = 10.0


@dataclass(frozen=True)
class Completed:
    """A command that ended. status < 0: by signal -status."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Stdout as text, without the last newline."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    def check(self) -> Self:
        """Raise CommandError unless the status is 0."""
        if self.status != 0:
            raise CommandError(
                f"{' '.join(self.argv)}: status {self.status}: "
                f"{self.stderr.decode(errors='replace').strip() or self.text}"
            )
        return self


class _Reader:
    """Received bytes of one channel."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.ended = False
        self.news = asyncio.Event()


class Stream:
    """One request under way. Channel 0 is the data, 1 is stderr."""

    def __init__(self, agent: Agent, number: int) -> None:
        """For Agent; others call its methods."""
        self._agent = agent
        self._number = number
        self._readers = (_Reader(), _Reader())
        self._room = asyncio.Event()
        self.outcome: asyncio.Future[dict[str, object]] = asyncio.Future()
        # Not every caller waits for the outcome.
        self.outcome.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def read(self, channel: int = 0, size: int = _CHUNK) -> bytes:
        """Return at least one byte, or none at the end of the channel.

        Raises the request's error, after all data.
        """
        reader = self._readers[channel]
        while not reader.buffer:
            if reader.ended or self.outcome.done():
                if self.outcome.done() and self.outcome.exception() is not None:
                    self.outcome.result()
                return b""
            reader.news.clear()
            await reader.news.wait()
        data = bytes(reader.buffer[:size])
        del reader.buffer[:size]
        self._agent.mux.consumed(self._number, channel, len(data))
        self._agent.flush()
        return data

    async def read_all(self, channel: int = 0) -> bytes:
        """Return everything up to the end of the channel."""
        data = bytearray()
        while part := await self.read(channel):
            data += part
        return bytes(data)

    async def write(self, data: bytes) -> None:
        """Queue data; returns when the queue has room for more."""
        self._agent.mux.send(self._number, 0, data)
        self._agent.flush()
        while self._agent.mux.queued(self._number, 0) > _QUEUE and not self.outcome.done():
            self._room.clear()
            await self._room.wait()
        if self.outcome.done():
            self.outcome.result()

    def finish(self) -> None:
        """Send the end of the data."""
        self._agent.mux.finish(self._number, 0)
        self._agent.flush()

    def send_signal(self, number: int) -> None:
        """Send a signal to the process group of the command."""
        self._agent.mux.control(Type.SIGNAL, self._number, number.to_bytes(4))
        self._agent.flush()

    def cancel(self) -> None:
        """Give up: a process is killed, a connection closed."""
        if not self.outcome.done():
            self._agent.mux.control(Type.CANCEL, self._number)
            self._agent.flush()
            self._fail(AgentError("cancelled"))
        self._agent.drop(self._number)

    # The agent calls these.

    def _frame(self, frame: Frame) -> None:
        reader = self._readers[min(frame.channel, 1)]
        if frame.type is Type.DATA:
            reader.buffer += frame.payload
        elif frame.type is Type.EOF:
            reader.ended = True
        elif frame.type is Type.RESULT:
            self._finish(frame.payload)
        reader.news.set()

    def _finish(self, payload: bytes) -> None:
        try:
            result = json.loads(payload)
            if not isinstance(result, dict):
                raise ValueError("not an object")
        except ValueError as error:
            self._fail(AgentError(f"result {payload[:100]!r}: {error}"))
            return
        if "error" in result:
            number = result.get("errno")
            text = str(result["error"])
            self._fail(AgentError(text, number if isinstance(number, int) else 0))
        elif not self.outcome.done():
            self.outcome.set_result(result)
            self._wake()

    def _fail(self, error: AgentError) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)
        self._wake()

    def _wake(self) -> None:
        self._room.set()
        for reader in self._readers:
            reader.news.set()


class Process(Stream):
    """A command under way: read(0) is stdout, read(1) stderr."""

    async def wait(self) -> int:
        """Return the exit status; < 0: by signal. Output has ended by then,
        so somebody has to read it meanwhile.
        """
        return int(str((await self.outcome).get("exit")))


class Agent:
    """A connection to a guest's agent; an async context manager."""

    def __init__(self, endpoint: Path | socket.socket) -> None:
        """endpoint: the channel's unix socket, or a connected one to own."""
        self.mux = Mux()
        self._endpoint = endpoint
        self._streams: dict[int, Stream] = {}
        self._next = 1
        self._instance: bytes | None = None
        self._session = 0
        self._up = asyncio.Event()
        self._wanted = asyncio.Event()
        self._gone: AgentGoneError | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Connect to the pipe; the guest need not be there yet."""
        if isinstance(self._endpoint, socket.socket):
            streams = await asyncio.open_unix_connection(sock=self._endpoint)
        else:
            streams = await asyncio.open_unix_connection(str(self._endpoint))
        self._reader, self._writer = streams
        self._begin()
        self._tasks = [asyncio.create_task(work(*streams)) for work in (self._read, self._write)]
        self._tasks.append(asyncio.create_task(self._greet()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the pipe; the guest's end kills what is still running when the
        next session begins.
        """
        self._end(AgentGoneError("agent: closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def flush(self) -> None:
        """Write the queued frames."""
        self._wanted.set()

    def drop(self, number: int) -> None:
        """Forget a stream."""
        self._streams.pop(number, None)
        self.mux.drop(number)

    def _begin(self) -> None:
        """Begin a new session: send HELLO, wait for WELCOME."""
        self._up.clear()
        self._instance = None
        self._session = secrets.randbelow(2**32 - 1) + 1
        self.mux.reset(self._session)
        self._hello()

    def _hello(self) -> None:
        self.mux.announce(Type.HELLO, self._session)
        self.flush()

    async def _greet(self) -> None:
        """Send HELLO again, in case one was lost with a dying guest."""
        while True:
            await asyncio.sleep(_HELLO_S)
            writer = self._writer
            # Not into a pipe without a reader.
            if not self._up.is_set() and writer and not writer.transport.get_write_buffer_size():
                self._hello()

    def _lose(self, error: AgentError) -> None:
        streams = [*self._streams.values()]
        self._streams.clear()
        for stream in streams:
            stream._fail(error)

    def _end(self, error: AgentGoneError) -> None:
        self._gone = self._gone or error
        self._up.set()
        self._lose(error)

    async def _read(self, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while True:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            if not data:
                self._end(AgentGoneError("agent: the machine closed the channel"))
                return
            try:
                for frame in self.mux.feed(data):
                    self._frame(frame)
            except ProtocolError as error:
                self._lose(AgentRestartedError(f"agent: {error}"))
                self._begin()
            for number, stream in self._streams.items():
                if self.mux.queued(number, 0) <= _QUEUE:
                    stream._room.set()
            self.flush()

    async def _write(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                while data := self.mux.pull(_CHUNK):
                    writer.write(data)
                    await writer.drain()
                for number, stream in self._streams.items():
                    if self.mux.queued(number, 0) <= _QUEUE:
                        stream._room.set()
        except OSError as error:
            self._end(AgentGoneError(f"agent: {error}"))

    def _frame(self, frame: Frame) -> None:
        if frame.type is Type.READY:
            if self._instance is None:
                self._hello()
            elif frame.payload != self._instance:
                self._lose(AgentRestartedError("agent: started anew in the guest"))
                self._begin()
        elif frame.type is Type.WELCOME:
            if frame.session != self._session:
                return
            if self._instance is None:
                self._instance = frame.payload
                self._up.set()
            elif frame.payload != self._instance:
                self._lose(AgentRestartedError("agent: started anew in the guest"))
                self._begin()
        elif (stream := self._streams.get(frame.stream)) is not None:
            stream._frame(frame)
            if frame.type is Type.RESULT:
                # The reader may still have bytes to fetch; the mux is done.
                self.drop(frame.stream)

    async def ready(self) -> None:
        """Wait until the guest has answered."""
        await self._up.wait()
        if self._gone is not None:
            raise self._gone

    async def _open[S: Stream](self, kind: type[S], ask: Mapping[str, object]) -> S:
        await self.ready()
        number = self._next
        self._next += 1
        stream = kind(self, number)
        self._streams[number] = stream
        self.mux.add(number)
        self.mux.control(Type.OPEN, number, json.dumps(ask).encode())
        self.flush()
        return stream

    @contextlib.asynccontextmanager
    async def exec(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None
    ) -> AsyncIterator[Process]:
        """Run a command, with the agent's environment unless `env` is given.

        It is killed when the block is left before its end.
        """
        ask = {"op": "exec", "argv": list(argv), "env": None if env is None else dict(env)}
        process = await self._open(Process, ask)
        try:
            yield process
        finally:
            process.cancel()

    async def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        check: bool = True,
    ) -> Completed:
        """Run a command to its end. CommandError when it fails and `check`."""
        async with self.exec(argv, env) as process:

            async def feed() -> None:
                # A command need not read all its input.
                with contextlib.suppress(AgentError):
                    await process.write(stdin)
                    process.finish()

            async with asyncio.TaskGroup() as group:
                group.create_task(feed())
                out = group.create_task(_plain(process.read_all(0)))
                err = group.create_task(_plain(process.read_all(1)))
            status = await process.wait()
        done = Completed(tuple(argv), status, out.result(), err.result())
        return done.check() if check else done

    async def read_file(self, path: str) -> bytes:
        """Return the contents of a regular file of the guest."""
        stream = await self._open(Stream, {"op": "read", "path": path})
        try:
            data = await stream.read_all()
            await stream.outcome
            return data
        finally:
            stream.cancel()

    async def write_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file of the guest: complete, or not at all."""
        stream = await self._open(Stream, {"op": "write", "path": path, "mode": mode})
        try:
            await stream.write(data)
            stream.finish()
            await stream.outcome
        finally:
            stream.cancel()

    @contextlib.asynccontextmanager
    async def dial(self, path: str) -> AsyncIterator[Stream]:
        """Connect to a unix stream socket of the guest."""
        stream = await self._open(Stream, {"op": "dial", "path": path})
        try:
            yield stream
        finally:
            stream.cancel()

    @contextlib.asynccontextmanager
    async def forward(self, path: str, local: Path) -> AsyncIterator[None]:
        """Listen at `local` (mode 0600) for the guest's socket at `path`."""
        async with forward(lambda: self.dial(path), local):
            yield


async def _plain(reading: Coroutine[None, None, bytes]) -> bytes:
    """Return the data; empty after an error, which wait() raises."""
    try:
        return await reading
    except AgentError:
        return b""
