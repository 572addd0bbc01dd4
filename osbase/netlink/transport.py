# SPDX-License-Identifier: Apache-2.0
"""A netlink socket that sends batches and reads dumps.

Not thread-safe: one thread at a time uses a socket (see SocketPool). The
kernel executes a request within the send, so a call blocks its thread for as
long as the kernel works, up to tens of milliseconds for a link removal: call
from worker threads, never from an event loop.
"""

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from osbase.netlink.errors import (
    BatchError,
    DumpInterrupted,
    ProtocolError,
    ReplyLost,
    ReplyTimeout,
    RequestError,
    errno_name,
)
from osbase.netlink.message import (
    HEADER,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    Request,
    decode,
    encode,
    error_of,
)
from osbase.netlink.template import FIRST_SEQUENCE, Encoded

SOL_NETLINK = 270
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, since Linux 5.14

RECEIVE_SIZE = 32768  # the kernel fills datagrams of a dump up to this size
DUMP_ATTEMPTS = 10
DEFAULT_TIMEOUT_S = 5.0

_LAST = (NLMSG_DONE, NLMSG_ERROR)  # types that end a dump
_ACK = struct.Struct("=IHHIIi")  # an NLMSG_ERROR up to its errno
_ACK_SIZE = 36  # size for success: it repeats the request's header


class RawSocket(Protocol):
    """The used part of socket.socket; tests script one."""

    def send(self, data: bytes, /) -> int: ...
    def recvfrom(self, size: int, flags: int, /) -> tuple[bytes, tuple[int, int]]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


def open_raw(protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    """Open a socket in the calling thread's namespace, with error texts."""
    raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        raw.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    except OSError:
        raw.close()
        raise
    return raw


def make_strict(raw: socket.socket) -> socket.socket:
    """Make the kernel filter dumps by the request's attributes."""
    raw.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    return raw


class NetlinkSocket:
    """A socket of the namespace in which it was opened; by default for routes.

    It owns `raw`, which should be strict for dumps. After ProtocolError,
    ReplyTimeout or ReplyLost an answer may be outstanding: close the socket.
    """

    def __init__(
        self, raw: RawSocket | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self._raw: RawSocket = make_strict(open_raw()) if raw is None else raw
        self._timeout_s = timeout_s
        self._sequence = 1

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def make_room(self, size: int) -> None:
        """Let one send have so many bytes. Needs privileges over the initial
        user namespace for more than net.core.wmem_max. Raises OSError.
        """
        with socket.socket(fileno=os.dup(self._raw.fileno())) as raw:
            try:
                raw.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
            except PermissionError:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def batch(
        self,
        requests: Sequence[Request],
        *,
        tolerate: Container[int] = (),
        whole: bool = False,
    ) -> None:
        """Send the requests in one system call; return when all are done.

        The kernel continues after a failed request: BatchError holds every
        failure, and all other requests were carried out. tolerate: error
        numbers that are as good as success. whole: it is a transaction, so none
        was, and there is no answer to the last one: BatchError holds the first.
        """
        if not requests:
            return
        first = self._take_sequence(len(requests))
        self._send(encode(requests, first), requests[0])
        self._await(first, requests, tolerate=tolerate, whole=whole)

    def batch_encoded(self, batch: Encoded, requests: Callable[[], Sequence[Request]]) -> None:
        """Like `batch`. requests: the requests of the batch, for errors."""
        try:
            self._raw.send(batch.data)
            data, (sender, _) = self._raw.recvfrom(RECEIVE_SIZE, socket.MSG_DONTWAIT)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                raise ReplyLost(
                    f"{requests()[0].what}: send or receive: {errno_name(error.errno or 0)}"
                ) from error
            data, sender = b"", 0
        if len(data) == _ACK_SIZE and not sender:
            _, kind, _, sequence, _, number = _ACK.unpack_from(data)
            if kind == NLMSG_ERROR and sequence == batch.last_sequence and not number:
                return
        self._await(FIRST_SEQUENCE, requests(), b"" if sender else data)

    def _await(
        self,
        first: int,
        requests: Sequence[Request],
        data: bytes = b"",
        tolerate: Container[int] = (),
        whole: bool = False,
    ) -> None:
        """Read answers until that to the last request. data: read already."""
        last = (first + len(requests) - 1) & 0xFFFFFFFF
        errors: list[RequestError] = []
        deadline = time.monotonic() + self._timeout_s
        while True:
            for message in decode(data) if data else self._receive(deadline, requests[0]):
                index = (message.sequence - first) & 0xFFFFFFFF
                if index >= len(requests) or message.kind != NLMSG_ERROR:
                    continue
                number, text = error_of(message)
                if number and number not in tolerate:
                    failed = requests[index]
                    errors.append(RequestError(index, failed.kind, failed.what, number, text))
                if message.sequence == last or (whole and errors):
                    if errors:
                        raise BatchError(errors)
                    return
            data = b""

    def dump(self, request: Request) -> list[Message]:
        """Return all objects of a kind. Repeat if they changed meanwhile.

        Raises DumpInterrupted after ten attempts, BatchError when refused.
        """
        for _ in range(DUMP_ATTEMPTS):
            found = self._dump_once(request)
            if found is not None:
                return found
        raise DumpInterrupted(f"{request.what}: changed during each of {DUMP_ATTEMPTS} attempts")

    def get(self, request: Request) -> Message:
        """Return one object. Raises BatchError when there is none."""
        sequence = self._take_sequence(1)
        self._send(encode([request], sequence), request)
        deadline = time.monotonic() + self._timeout_s
        found: Message | None = None
        while True:
            for message in self._receive(deadline, request):
                if message.sequence != sequence:
                    continue
                if message.kind != NLMSG_ERROR:
                    found = message
                    continue
                number, text = error_of(message)
                if number:
                    raise BatchError([RequestError(0, request.kind, request.what, number, text)])
                if found is None:
                    raise ProtocolError(f"{request.what}: acknowledged without an answer")
                return found

    def stream(self, request: Request) -> Iterator[Message]:
        """Yield the objects of a kind, for dumps too large to keep.

        Objects that change meanwhile may be missing or come twice. A reader
        that stops before the end has to close the socket. Raises BatchError
        when refused.
        """
        for message in self._answers(request):
            if message.kind not in _LAST:
                yield message

    def _dump_once(self, request: Request) -> list[Message] | None:
        """Return the objects; None: interrupted, try again."""
        found: list[Message] = []
        intact = True
        try:
            for message in self._answers(request):
                if message.flags & NLM_F_DUMP_INTR:
                    intact = False
                if message.kind not in _LAST:
                    found.append(message)
        except BatchError as error:
            if error.errors[0].errno == errno.EINTR:
                return None
            raise
        return found if intact else None

    def _answers(self, request: Request) -> Iterator[Message]:
        """Yield the messages of a dump, including the last (NLMSG_DONE)."""
        sequence = self._take_sequence(1)
        header = HEADER.pack(
            16 + len(request.body),
            request.kind,
            NLM_F_REQUEST | NLM_F_ACK | NLM_F_DUMP | request.flags,
            sequence,
            0,
        )
        self._send(header + request.body, request)
        deadline = time.monotonic() + self._timeout_s
        while True:
            for message in self._receive(deadline, request):
                if message.sequence != sequence:
                    continue
                if message.kind not in _LAST:
                    yield message
                    continue
                number, text = error_of(message)
                if number:
                    raise BatchError([RequestError(0, request.kind, request.what, number, text)])
                yield message
                return

    def _take_sequence(self, count: int) -> int:
        first = self._sequence
        self._sequence = (first + count) & 0xFFFFFFFF
        return first

    def _send(self, data: bytes, request: Request) -> None:
        try:
            self._raw.send(data)
        except OSError as error:
            raise ReplyLost(f"{request.what}: send: {errno_name(error.errno or 0)}") from error

    def _receive(self, deadline: float, request: Request) -> Iterator[Message]:
        """Yield the messages of one datagram from the kernel.

        The answer is there when the send returns; waiting is the exception.
        """
        while True:
            try:
                data, (sender, _) = self._raw.recvfrom(RECEIVE_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(deadline, request)
                continue
            except OSError as error:
                raise ReplyLost(
                    f"{request.what}: receive: {errno_name(error.errno or 0)}"
                ) from error
            if sender == 0:
                return decode(data)
            # Another process's socket wrote to ours: not the kernel's answer.
            if time.monotonic() > deadline:
                raise ReplyTimeout(f"{request.what}: no answer in {self._timeout_s} s")

    def _wait(self, deadline: float, request: Request) -> None:
        left = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._raw.fileno(), select.POLLIN)
        if left <= 0 or not poll.poll(left * 1000):
            raise ReplyTimeout(f"{request.what}: no answer in {self._timeout_s} s")


class SocketPool:
    """Sockets of one namespace for many threads, each used by one at a time.

    After a failed call a socket is closed, unless the kernel refused the
    request. At most `keep` idle ones stay open. open_one: by default, for
    routes.
    """

    def __init__(
        self, keep: int = 8, open_one: Callable[[], NetlinkSocket] = NetlinkSocket
    ) -> None:
        self._keep = keep
        self._open_one = open_one
        self._idle: list[NetlinkSocket] = []
        self._lock = threading.Lock()
        self._closed = False

    def socket(self) -> Borrowed:
        """Borrow a socket for the time of a `with` block.

        New ones are opened in the calling thread's namespace.
        """
        try:
            return Borrowed(self, self._idle.pop())
        except IndexError:
            return Borrowed(self, self._open_one())

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for chosen in idle:
            chosen.close()

    def put(self, chosen: NetlinkSocket) -> None:
        """Take it back."""
        with self._lock:
            if not self._closed and len(self._idle) < self._keep:
                self._idle.append(chosen)
                return
        chosen.close()


class Borrowed:
    """A socket of a pool, until the end of a `with` block. Not a generator:
    that costs three times as much, and an attach does this twice.
    """

    __slots__ = ("_pool", "_socket")

    def __init__(self, pool: SocketPool, chosen: NetlinkSocket) -> None:
        self._pool = pool
        self._socket = chosen

    def __enter__(self) -> NetlinkSocket:
        return self._socket

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, BatchError):
            self._pool.put(self._socket)
        else:
            self._socket.close()
