# SPDX-License-Identifier: Apache-2.0
"""The way from metroctl to the etcd of a launch.

    metroctl -> 127.0.0.1:PORT -> etcd.sock -> 198.51.100.1:PORT, etcd
    the command's process         the launch's directory and network

etcd is in the launch's network, which nobody else is in. Entering its
namespaces needs rights that an ordinary user lacks; opening a socket does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from osbase.test.agent.listener import listening

SOCKET = "etcd.sock"
_CREDENTIALS = "operator.json"
HOST = "127.0.0.1"
"""Where metroctl finds etcd; its certificate has to have it."""


def publish(directory: Path, ca: Path, cert: Path, key: Path) -> None:
    """Write where the operator's credentials are, in a launch's directory."""
    paths = {"ca": str(ca), "cert": str(cert), "key": str(key)}
    (directory / _CREDENTIALS).write_text(json.dumps(paths))


def credentials(directory: Path) -> dict[str, str]:
    """Return what was published: ca, cert, key. Raises FileNotFoundError."""
    paths: dict[str, str] = json.loads((directory / _CREDENTIALS).read_text())
    return paths


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def relayed(local: Path, host: str, port: int) -> AsyncIterator[None]:
    """Listen at a unix socket; connect each client to a TCP port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            theirs, to_them = await asyncio.open_connection(host, port)
        except OSError:
            return
        try:
            await asyncio.gather(_copy(reader, to_them), _copy(theirs, writer))
        finally:
            to_them.close()

    async with listening(local, serve):
        yield


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, path: Path) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        there = socket.socket(socket.AF_UNIX)
        try:
            there.connect(str(path))
        except OSError:
            client.close()
            continue
        for pair in ((client, there), (there, client)):
            threading.Thread(target=_pump, args=pair, daemon=True).start()


@contextlib.contextmanager
def port_to(path: Path) -> Iterator[int]:
    """Yield a TCP port of this host that leads to a unix socket.

    By threads, as metroctl has an event loop of its own.
    """
    with socket.create_server((HOST, 0)) as server:
        threading.Thread(target=_accept, args=(server, path), daemon=True).start()
        yield server.getsockname()[1]
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
