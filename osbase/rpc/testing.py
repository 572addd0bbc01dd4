# SPDX-License-Identifier: Apache-2.0
"""For tests of both servers: handlers, their server, and raw HTTP/2 clients."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import grpc
import pytest

from osbase.rpc.call import Call, RpcError
from osbase.rpc.choose import server_class
from osbase.rpc.stream import Stream

WAIT_S = 20.0
Code = grpc.StatusCode


def connect(path: Path) -> Any:
    """Return a client with its own connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"unix:{path}", options=options)


class Service:
    """Handlers that tests control, and their server."""

    def __init__(self, directory: Path, kind: str, workers: int = 4) -> None:
        self.path = directory / "s"
        self.arrived, self.opened = threading.Semaphore(0), threading.Event()
        self.left: list[float] = []
        self.ended = threading.Event()
        self.most, self._inside, self._mutex = 0, 0, threading.Lock()
        self.server = server_class(kind)(
            blocking={
                "/t/Echo": self.echo,
                "/t/Fail": self.fail,
                "/t/Gate": self.gate,
                "/t/Linger": self.linger,
            },
            quick={"/t/Quick": self.echo, "/t/Fast": self.echo},
            streams={"/t/Count": self.count, "/t/Wait": self.wait},
            workers=workers,
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1000)],
        )
        self.server.listen(f"unix:{self.path}")
        self.server.start()
        self.channel = connect(self.path)

    def echo(self, request: bytes, _: Call) -> bytes:
        return request

    def fail(self, request: bytes, _: Call) -> bytes:
        if request == b"own":
            raise RpcError(Code.NOT_FOUND, "there is no ü")
        if request == b"this":
            return self.failure()
        raise ZeroDivisionError

    def failure(self) -> bytes:
        """For tests to replace."""
        raise NotImplementedError

    def gate(self, _: bytes, call: Call) -> bytes:
        with self._mutex:
            self._inside += 1
            self.most = max(self.most, self._inside)
        self.arrived.release()
        assert self.opened.wait(WAIT_S)
        self.left.append(call.time_remaining())
        with self._mutex:
            self._inside -= 1
        return b"done"

    def linger(self, _: bytes, call: Call) -> bytes:
        self.arrived.release()
        until = time.monotonic() + WAIT_S
        while call.time_remaining() > 0:
            assert time.monotonic() < until
        self.ended.set()
        return b""

    def count(self, request: bytes, _: Stream) -> Generator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number
        if request == b"3":
            raise RpcError(Code.ABORTED, "three is enough")
        if request == b"4":
            raise ZeroDivisionError

    def wait(self, _: bytes, stream: Stream) -> Generator[bytes]:
        gone = threading.Event()
        assert stream.on_end(gone.set)
        yield b"begun"
        self.arrived.release()
        assert gone.wait(WAIT_S)
        assert not stream.on_end(gone.set)
        self.ended.set()

    def call(self, method: str) -> Any:
        return self.channel.unary_unary(f"/t/{method}")

    def stream(self, method: str, request: bytes) -> Any:
        return self.channel.unary_stream(f"/t/{method}")(request, timeout=WAIT_S)

    def close(self) -> None:
        self.opened.set()
        self.channel.close()
        self.server.stop(WAIT_S)


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Return the status with which a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def frame(kind: int, flags: int, stream: int, data: bytes = b"") -> bytes:
    """Return a frame of HTTP/2, RFC 9113 section 4.1."""
    return len(data).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + data


def headers(method: str, stream: int = 1, flags: int = 4) -> bytes:
    """Return HEADERS that open a call, with END_HEADERS, without a message."""
    fields = b"".join(
        b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", method.encode()),
            (b":authority", b"x"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        )
    )
    return frame(1, flags, stream, fields)


def message(data: bytes, stream: int = 1) -> bytes:
    """Return DATA with a whole message and END_STREAM."""
    return frame(0, 1, stream, b"\0" + len(data).to_bytes(4) + data)


class Raw:
    """A connection that sends and reads only on request."""

    def __init__(self, path: Path, *sent: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WAIT_S)
        self._socket.connect(str(path))
        self.send(*sent)

    def send(self, *sent: bytes) -> None:
        """Send bytes. The server may have closed the connection."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            self._socket.sendall(b"".join(sent))

    def frames(self) -> Generator[tuple[int, int, int, bytes]]:
        """Yield the server's frames: kind, flags, stream, data."""
        with self._socket.makefile("rb") as file:
            while len(head := file.read(9)) == 9:
                length = int.from_bytes(head[:3])
                yield head[3], head[4], int.from_bytes(head[5:]), file.read(length)

    def open(self, method: str, count: int) -> None:
        """Open calls that send no message."""
        self.send(PREFACE, SETTINGS, *(headers(method, 2 * n + 1) for n in range(count)))

    def shut(self) -> None:
        """Shut the connection down, also for a thread that is sending."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self._socket.close()
