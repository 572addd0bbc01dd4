# SPDX-License-Identifier: Apache-2.0
"""Both ends of the traffic: plain loops over sockets, timed as a whole.

Why not netperf: it sets up a control connection and a process for each of
hundreds of short turns. The loops add the same few microseconds for all rules,
which makes ratios a little smaller than netperf's.
"""

import contextlib
import functools
import os
import signal
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final

from metropolis.test.world.namespaces import Netns

_MIB: Final = 1024 * 1024
_TIMEOUT_S: Final = 30
_TIMEVAL: Final = struct.pack("ll", _TIMEOUT_S, 0)
# Closed by RST: no TIME_WAIT, which would run out of ports.
_RESET: Final = struct.pack("ii", 1, 0)


def _median_us(transact: Callable[[], None], seconds: float) -> float:
    """Return the median of one call: other work on the CPU does not count."""
    took: list[int] = []
    before = time.perf_counter_ns()
    end = before + int(seconds * 1e9)
    while before < end:
        transact()
        after = time.perf_counter_ns()
        took.append(after - before)
        before = after
    return statistics.median(took) / 1000


class TrafficError(Exception):
    """An end that did not answer."""


def _echo(listener: socket.socket) -> None:
    while True:
        peer, _ = listener.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := peer.recv(1):
                peer.send(data)


def _greet(listener: socket.socket) -> None:
    while True:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.send(b"x")
            peer.recv(1)  # until the client ends it


def _sink(listener: socket.socket) -> None:
    buffer = bytearray(_MIB)
    while True:
        peer, _ = listener.accept()
        with peer:
            left = _MIB
            while got := peer.recv_into(buffer, left):
                left -= got
                if not left:
                    peer.send(b"x")
                    left = _MIB


def _answer(sock: socket.socket) -> None:
    while True:
        data, sender = sock.recvfrom(16)
        sock.sendto(data, sender)


_SERVERS: Final[dict[str, tuple[int, socket.SocketKind, Callable[[socket.socket], None]]]] = {
    "TCP_RR": (1001, socket.SOCK_STREAM, _echo),
    "connection": (1002, socket.SOCK_STREAM, _greet),
    "UDP_RR": (1003, socket.SOCK_DGRAM, _answer),
    "stream": (1004, socket.SOCK_STREAM, _sink),
}
KINDS: Final = tuple(_SERVERS)


@contextlib.contextmanager
def serving(netns: Netns) -> Iterator[None]:
    """Run a listening process per kind of traffic. Call with one thread."""
    children = []
    try:
        for port, kind, serve in _SERVERS.values():
            sock = netns.inside(functools.partial(socket.socket, socket.AF_INET6, kind))
            with sock:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                sock.bind(("::", port))
                if kind == socket.SOCK_STREAM:
                    sock.listen()
                child = os.fork()
                if not child:
                    _become(serve, sock)
                children.append(child)
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _become(serve: Callable[[socket.socket], None], sock: socket.socket) -> None:
    while True:
        # A client that was interrupted.
        with contextlib.suppress(ConnectionError):
            serve(sock)


class Client:
    """Sends traffic from a namespace to a served one."""

    def __init__(self, netns: Netns, target: str) -> None:
        self._netns = netns
        self._target = target
        self._family = socket.AF_INET6 if ":" in target else socket.AF_INET

    def measure(self, kind: str, seconds: float) -> float:
        """Return the median of the transactions in the given time, us. That of
        a stream is a MiB and a byte of acknowledgement. Raises TrafficError.
        """
        try:
            return {
                "TCP_RR": self._request_response,
                "UDP_RR": self._request_response,
                "connection": self._connections,
                "stream": self._stream,
            }[kind](kind, seconds)
        except OSError as error:
            raise TrafficError(f"{kind} to {self._target}: {error}") from error

    def own_flows(self, count: int) -> None:
        """Make `count` flows without answers."""
        for first in range(0, count, 40_000):
            with self._open("UDP_RR") as sock:
                for port in range(first, min(first + 40_000, count)):
                    sock.sendto(b"", (self._target, 20_000 + port - first))

    def _open(self, kind: str) -> socket.socket:
        sock = self._netns.inside(lambda: socket.socket(self._family, _SERVERS[kind][1]))
        sock.settimeout(_TIMEOUT_S)
        return sock

    def _connect(self, kind: str) -> socket.socket:
        sock = self._open(kind)
        sock.connect((self._target, _SERVERS[kind][0]))
        # The kernel's timeout is cheaper than a check before each call.
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
        return sock

    def _request_response(self, kind: str, seconds: float) -> float:
        with self._connect(kind) as sock:
            if kind == "TCP_RR":
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def transact() -> None:
                sock.send(b"x")
                sock.recv(1)

            transact()  # the first makes the flow
            return _median_us(transact, seconds)

    def _connections(self, kind: str, seconds: float) -> float:
        address = (self._target, _SERVERS[kind][0])

        def connect() -> None:
            with socket.socket(self._family) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.connect(address)
                if sock.recv(1) != b"x":
                    raise TrafficError(f"{kind} to {self._target}: no greeting")

        return self._netns.inside(lambda: _median_us(connect, seconds))

    def _stream(self, kind: str, seconds: float) -> float:
        data = bytes(_MIB)
        with self._connect(kind) as sock:

            def transact() -> None:
                sock.sendall(data)
                sock.recv(1)

            transact()  # the windows grow
            return _median_us(transact, seconds)
