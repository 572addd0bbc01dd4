# SPDX-License-Identifier: Apache-2.0
"""The socket that the exec shim talks to.

One connection is one execution. A caller has five seconds to send its request;
connections above a bound wait their turn. The answer has arrived when its
receipt is there: an end of file without one means that the shim was killed.
"""

import asyncio
import contextlib
import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metropolis.node.core.network.cni import wire
from metropolis.node.core.network.cni.adapter import Adapter, Engine
from metropolis.node.core.network.cni.protocol import CniError, Code
from metropolis.node.core.network.cni.wire import Answer
from metropolis.node.core.network.workloads.server import make_private_directory, refuse_if_served

_logger = logging.getLogger(__name__)

_THREADS = 16  # engine calls at once; the kernel gains nothing beyond
_CONNECTIONS = 128  # requests that are not answered yet at once, up to 9 MiB each
_BACKLOG = 512
_REQUEST_S = 5.0
# Longer than the shim's own limit for everything (TIMEOUT_MS, 60 s), so that it
# is never us who give up on a receipt that still comes.
_RECEIPT_S = 90.0
_STOP_S = 10.0  # for calls in flight when the server is stopped


class CniServer:
    """Serves CNI executions with the engine, until `run` is cancelled.

    The socket's directory is made if missing, 0700; the socket is 0600.
    """

    def __init__(self, engine: Engine, socket_path: str | os.PathLike[str]) -> None:
        """Make one; nothing is bound before `run`."""
        self._engine = engine
        self._path = Path(socket_path)

    async def run(self) -> None:
        """Serve until cancelled; calls in flight are finished first.

        Raise OSError if the socket cannot be made: somebody else serves it, it
        is no socket, or others may use its directory.
        """
        listener = _listener(self._path)
        executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="cni")
        session = _Session(Adapter(self._engine, executor))
        try:
            server = await asyncio.start_unix_server(session.serve, sock=listener, backlog=_BACKLOG)
        except BaseException:
            listener.close()
            executor.shutdown(wait=False)
            raise
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()
            await session.stop()
            executor.shutdown(wait=False)


class _Session:
    """The connections of one server."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, from request to receipt."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served by a task")
        self._tasks.add(task)
        try:
            await self._exchange(reader, writer)
        except ConnectionError as error:
            _logger.info("caller hung up: %s", error)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def stop(self) -> None:
        """Wait for connections, then cancel what is left of them."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_STOP_S)
            for task in late:
                task.cancel()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._slots.acquire()
        release = contextlib.ExitStack()
        release.callback(self._slots.release)

        async def deliver(answer: Answer) -> bool:
            # A caller that does not take it keeps no other out.
            release.close()
            try:
                writer.write(wire.encode_answer(answer))
                async with asyncio.timeout(_RECEIPT_S):
                    await writer.drain()
                    return bool(await reader.read(1))
            except OSError:  # a timeout is one
                return False

        with release:
            try:
                async with asyncio.timeout(_REQUEST_S):
                    lengths = wire.parse_header(await reader.readexactly(wire.REQUEST_HEADER_SIZE))
                    body = await reader.readexactly(lengths.total)
                request = wire.parse_body(lengths, body)
            except (wire.WireError, asyncio.IncompleteReadError, TimeoutError) as error:
                what = str(error) or f"no whole request in {_REQUEST_S} s"
                _logger.warning("not a request of cniproxy: %s", what)
                await deliver(CniError(Code.IO_FAILURE, "request not understood", what).answer())
                return
            await self._adapter.serve(request, deliver, reader.at_eof)


def _listener(path: Path) -> socket.socket:
    """Bind the socket; a file that is there and that nobody serves goes."""
    make_private_directory(path.parent)
    refuse_if_served(path)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        # Nobody can connect before listen(), so this is soon enough.
        path.chmod(0o600)
    except BaseException:
        listener.close()
        raise
    return listener
