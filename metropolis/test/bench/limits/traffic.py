# SPDX-License-Identifier: Apache-2.0
"""A stream through a limit, and questions beside it.

A stream is a TCP connection whose sender writes as fast as it can. Its receiver
notes when bytes come. A question is a datagram that the other end sends back;
it waits in the same queue as the stream.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from metropolis.test.bench.common.errors import BenchError

SECOND: Final = 1.0
_CHUNK: Final = 1 << 20
_ANSWER_S: Final = 1.0
QUESTIONS: Final = 30
_EVERY_S: Final = 0.01
_COUNT_EVERY_S: Final = 0.004

type Open = Callable[[int], socket.socket]
"""Returns a socket of one end: it takes the kind, of TCP or UDP."""


@dataclass
class Stream:
    """Times are since its first byte was sent, in seconds. counts: bytes that
    the limit has passed since, from there to the end of the first second.
    arrivals: bytes of payload.
    """

    counts: list[tuple[float, int]] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)


@contextlib.contextmanager
def stream(client: Open, server: Open, address: str, count: Callable[[], int]) -> Iterator[Stream]:
    """Send from the client to the server, at this address of its. The block
    begins when the first second is over, and the stream ends with it. count:
    returns the bytes that the limit has passed.
    """
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(server(socket.SOCK_STREAM))
        listening.bind((address, 0))
        listening.listen()
        sending = stack.enter_context(client(socket.SOCK_STREAM))
        sending.connect(listening.getsockname()[:2])
        receiving, _ = listening.accept()
        stack.enter_context(receiving)
        made = Stream()
        ended = threading.Event()

        def send() -> None:
            data = bytes(_CHUNK)
            with contextlib.suppress(OSError):  # it is shut down
                while not ended.is_set():
                    sending.send(data)

        def receive() -> None:
            buffer = bytearray(_CHUNK)
            while size := receiving.recv_into(buffer):
                made.arrivals.append((time.monotonic() - began, size))

        before = count()
        began = time.monotonic()
        threads = [threading.Thread(target=one) for one in (send, receive)]
        for one in threads:
            one.start()
        try:
            made.counts.append((0.0, 0))
            while made.counts[-1][0] < SECOND:
                time.sleep(_COUNT_EVERY_S)
                passed = count() - before
                made.counts.append((time.monotonic() - began, passed))
            yield made
        finally:
            ended.set()
            sending.shutdown(socket.SHUT_RDWR)
            receiving.shutdown(socket.SHUT_RDWR)
            for one in threads:
                one.join()


def round_trips(client: Open, server: Open, address: str) -> list[float]:
    """Ask QUESTIONS times; return the milliseconds of each. Raises BenchError
    when none is answered. One that is dropped is not counted.
    """
    with client(socket.SOCK_DGRAM) as asking, server(socket.SOCK_DGRAM) as answering:
        answering.bind((address, 0))
        asking.connect(answering.getsockname()[:2])
        asking.settimeout(_ANSWER_S)
        answering.settimeout(None)

        def answer() -> None:
            while data := answering.recvfrom(64):
                if not data[0]:
                    return
                answering.sendto(*data)

        thread = threading.Thread(target=answer)
        thread.start()
        found = []
        try:
            for number in range(QUESTIONS):
                time.sleep(_EVERY_S)
                began = time.monotonic()
                word = number.to_bytes(4)
                asking.send(word)
                with contextlib.suppress(TimeoutError):
                    while asking.recv(64) != word:
                        pass  # a late answer to an earlier one
                    found.append((time.monotonic() - began) * 1000)
        finally:
            _end(asking, thread)
    if not found:
        raise BenchError("no question was answered")
    return found


def _end(asking: socket.socket, thread: threading.Thread) -> None:
    """Have the other end stop; the message for it may be dropped, too."""
    while thread.is_alive():
        asking.send(b"")
        thread.join(_EVERY_S)
