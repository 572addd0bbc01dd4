# SPDX-License-Identifier: Apache-2.0
"""The socket for the exec shim.

One connection is one execution. A caller has five seconds to send its request;
requests above a bound wait. The receipt confirms the answer: an end of file
without one means that the shim was killed.

Connections take at most a quarter of the process's descriptors; more of them
wait in the kernel. Why not asyncio's own server: it accepts without a bound,
and logs hundreds of errors a second when no descriptor is left.
"""

import asyncio
import contextlib
import logging
import os
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metropolis.node.core.network.cni import wire
from metropolis.node.core.network.cni.adapter import Adapter, Engine
from metropolis.node.core.network.cni.protocol import CniError, Code
from metropolis.node.core.network.cni.wire import Answer
from metropolis.node.core.network.workloads.api.server import (
    make_private_directory,
    refuse_if_served,
)

_logger = logging.getLogger(__name__)

_THREADS = 16  # concurrent engine calls; more gain nothing in the kernel
_REQUESTS = 128  # concurrent requests, up to 9 MiB each
_BACKLOG = 512
_REQUEST_S = 5.0
# Longer than the shim's limit for everything (TIMEOUT_MS, 60 s), so that the
# service never gives up on a receipt that still comes.
_RECEIPT_S = 90.0
_STOP_S = 10.0  # for calls under way when the server is stopped
_RETRY_S = 1.0  # pause when no connection can be accepted


class CniServer:
    """Serves CNI executions with the engine, until `run` is cancelled.

    The socket's directory is made if missing, 0700; the socket is 0600.
    """

    def __init__(self, engine: Engine, socket_path: str | os.PathLike[str]) -> None:
        """Make one; nothing is bound before `run`."""
        self._engine = engine
        self._path = Path(socket_path)

    async def run(self) -> None:
        """Serve until cancelled; calls under way are finished first.

        Raises OSError if the socket cannot be made: another process serves it,
        the path is no socket, or others may use its directory.
        """
        listener = _listener(self._path)
        inode = self._path.stat().st_ino
        executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="cni")
        session = _Session(Adapter(self._engine, executor))
        try:
            await session.accept(listener)
        finally:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == inode:
                    self._path.unlink()
            listener.close()
            await session.stop()
            executor.shutdown(wait=False)


class _Session:
    """The connections of one server."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._slots = asyncio.Semaphore(_REQUESTS)
        self._places = asyncio.Semaphore(_places())
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._places.release()
                _logger.warning("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(_RETRY_S)
                continue
            task = loop.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()

    async def _serve(self, connection: socket.socket) -> None:
        """Serve one connection, from request to receipt."""
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        try:
            await self._exchange(reader, writer)
        except ConnectionError as error:
            _logger.info("caller hung up: %s", error)
        finally:
            # A request that is not read by now is dropped.
            writer.transport.abort()

    async def stop(self) -> None:
        """Wait for connections, then cancel those that remain."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_STOP_S)
            for task in late:
                task.cancel()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        release = contextlib.ExitStack()

        async def deliver(answer: Answer) -> bool:
            # A slow reader blocks no other caller.
            release.close()
            try:
                writer.write(wire.encode_answer(answer))
                async with asyncio.timeout(_RECEIPT_S):
                    await writer.drain()
                    # After an error nothing depends on the receipt.
                    return bool(answer.exit_code or await reader.read(1))
            except OSError:  # a timeout is one
                return False

        with release:
            try:
                async with asyncio.timeout(_REQUEST_S):
                    lengths = wire.parse_header(await reader.readexactly(wire.REQUEST_HEADER_SIZE))
                await self._slots.acquire()
                release.callback(self._slots.release)
                async with asyncio.timeout(_REQUEST_S):
                    body = await reader.readexactly(lengths.total)
                request = wire.parse_body(lengths, body)
            except (wire.WireError, asyncio.IncompleteReadError, TimeoutError) as error:
                what = str(error) or f"no whole request in {_REQUEST_S} s"
                _logger.warning("not a request of cniproxy: %s", what)
                await deliver(CniError(Code.IO_FAILURE, "request not understood", what).answer())
                return
            await self._adapter.serve(request, deliver, reader.at_eof)


def _places() -> int:
    """Return the largest number of connections."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if limit == resource.RLIM_INFINITY else min(1024, limit // 4)


def _listener(path: Path) -> socket.socket:
    """Bind the socket; remove a file that nobody serves first."""
    make_private_directory(path.parent)
    refuse_if_served(path)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        # Nobody can connect before listen(), so this is soon enough.
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
