# SPDX-License-Identifier: Apache-2.0
"""Calls on completion queues: reading the message, answering, the end.

Each kind of method has its kind of call:

    WorkerCall   stays with a thread, which waits for its message and may then
                 take long; so it looks at its queue whether it was cancelled
    QuickCall    has no thread before its message has come
    StreamCall   likewise, and then one of its own

Whatever happens to the latter two arrives at the queue of the thread that
accepts them.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc._cython import cygrpc

from osbase.rpc.call import Call, RpcError, Unary, short, status, unexpected
from osbase.rpc.stream import Stream, Streaming
from osbase.rpc.unread import Unread

log = logging.getLogger(__name__)

# Whether the caller has cancelled is looked at when a call is older than this:
# a younger cancellation might as well have come a little later.
_FRESH_S = 0.001
_LOOK_S = 0.05  # how often a thread looks whether to wait for a message still
_AGAIN_S = 0.1

_TIMEOUT = cygrpc.CompletionType.queue_timeout
_LATE = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
SENT = object()  # the tag of what is not waited for


class _Given:
    """What all kinds have: the end of a call that nothing was sent to."""

    __slots__ = ("_call", "_method")

    _call: Any
    _method: str

    def give_up(self, reason: str) -> None:
        """See unread.Late."""
        self._call.cancel(_LATE, f"{short(self._method)}: {reason}")

    def abandon(self) -> None:
        """See below."""
        abandon(self._call)

    def answer(self, message: bytes) -> None:
        """End it with a response."""
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, 0),
                cygrpc.SendMessageOperation(message, 0),
                cygrpc.SendStatusFromServerOperation(None, cygrpc.StatusCode.ok, b"", 0),
            ),
            SENT,
        )

    def refuse(self, error: RpcError) -> None:
        """End it with a status."""
        refuse(self._call, error)


def refuse(call: Any, error: RpcError) -> None:
    """End a call of cygrpc's to which nothing was sent yet with a status."""
    code, details = status(error)
    call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendStatusFromServerOperation(None, code, details, 0),
        ),
        SENT,
    )


def asking_failed(ended: threading.Event) -> None:
    """The next call could not be asked for, as without memory. Returns when it
    may be tried again.
    """
    with contextlib.suppress(Exception):
        log.exception("the next call could not be asked for")
    ended.wait(_AGAIN_S)


def abandon(call: Any) -> None:
    """Something is wrong with a call of cygrpc's: let its caller not wait."""
    with contextlib.suppress(Exception):
        call.cancel()


class WorkerCall(_Given, Call):
    """A call of a blocking method. queue: its thread's own."""

    __slots__ = ("_arrived", "_cancelled", "_closed", "_deadline", "_queue")

    def __init__(self, event: Any, method: str, queue: Any) -> None:
        self._call = event.call
        self._method = method
        self._queue = queue
        self._arrived = now = time.monotonic()
        # By the monotonic clock from here on. cygrpc has it by the wall's, as
        # that is at this moment: it computes it when it is asked.
        self._deadline: float = event.call_details.deadline - time.time() + now
        self._cancelled = False
        self._closed = object()

    def time_remaining(self) -> float:
        now = time.monotonic()
        if now - self._arrived > _FRESH_S:
            self._look()
        return 0.0 if self._cancelled else self._deadline - now

    def _look(self) -> None:
        while not self._cancelled:
            event = self._queue.poll(0)
            if event.completion_type == _TIMEOUT:
                return
            self._note(event)

    def _note(self, event: Any) -> None:
        if event.tag is self._closed:
            self._cancelled = event.batch_operations[0].cancelled()

    def read(self, unread: Unread, pressed: Callable[[], bool]) -> bytes | None:
        """The request. None: there is none, and the call has ended. pressed:
        whether others want the thread.
        """
        # First, since what has happened is noticed without waiting then.
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        arrived = object()
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), arrived)
        unread.since[self] = self._arrived
        while True:
            # By the wall's clock, so it may take until `unread` is looked at.
            event = self._queue.poll(time.time() + _LOOK_S)
            if event.tag is arrived:
                unread.since.pop(self, None)
                message: bytes | None = event.batch_operations[0].message()
                return message
            if event.completion_type != _TIMEOUT:
                self._note(event)
            elif pressed():
                self.give_up("no message came, and others wait")


class QuickCall(_Given, Call):
    """A call of a quick method. Nobody asks whether it was cancelled: it would
    be answered before.
    """

    __slots__ = ("_deadline",)

    def __init__(self, event: Any, method: str) -> None:
        self._call = event.call
        self._method = method
        self._deadline: float = event.call_details.deadline - time.time() + time.monotonic()

    def time_remaining(self) -> float:
        return self._deadline - time.monotonic()

    def begin(self) -> None:
        """Wait for the message. The event's tag is this call."""
        # Not looked at; but C-core takes pains with a call that ends without.
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), SENT)
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self)


def run(handler: Unary, method: str, call: WorkerCall | QuickCall, request: bytes) -> None:
    """Answer a call. Whatever fails fails this call only."""
    try:
        try:
            call.answer(handler(request, call))
        except RpcError as error:
            call.refuse(error)
        except BaseException as error:
            call.refuse(unexpected(method, error))
    except BaseException:
        log.exception("%s: no answer could be sent", method)
        call.abandon()


class StreamCall(_Given, Stream):
    """A call that many messages answer."""

    def __init__(
        self, event: Any, method: str, then: Callable[[StreamCall, bytes | None], None]
    ) -> None:
        """then: called with it and its message, or None when there is none.
        Tags of its events are to be called with them.
        """
        self._call = event.call
        self._method = method
        self._then = then
        self._sent: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._ended = False
        self._on_end: list[Callable[[], None]] = []
        # Sent with whatever comes first.
        self._headers: tuple[Any, ...] = (cygrpc.SendInitialMetadataOperation(None, 0),)

    @property
    def method(self) -> str:
        """Its full name."""
        return self._method

    def on_end(self, callback: Callable[[], None]) -> bool:
        with self._mutex:
            if self._ended:
                return False
            self._on_end.append(callback)
            return True

    def begin(self) -> None:
        """Wait for the message."""
        self._start(self._closed, cygrpc.ReceiveCloseOnServerOperation(0))
        self._start(self._read, cygrpc.ReceiveMessageOperation(0))

    def serve(self, handler: Streaming, request: bytes) -> None:
        """Send what the handler yields, and a status."""
        outcome = RpcError(grpc.StatusCode.OK, "")
        try:
            with contextlib.closing(handler(request, self)) as answers:
                for answer in answers:
                    self._send(cygrpc.SendMessageOperation(answer, 0))
                    self._sent.get()
                    if self._ended:
                        return
        except RpcError as error:
            outcome = error
        except BaseException as error:
            outcome = unexpected(self._method, error)
        self._send(cygrpc.SendStatusFromServerOperation(None, *status(outcome), 0))

    def _send(self, operation: Any) -> None:
        self._start(self._finished, *self._headers, operation)
        self._headers = ()

    def _start(self, then: Callable[[Any], None], *operations: Any) -> None:
        self._call.start_server_batch(operations, then)

    # What is called with the events, by the accepting thread.

    def _read(self, event: Any) -> None:
        self._then(self, event.batch_operations[0].message())

    def _finished(self, _: Any) -> None:
        self._sent.put(None)

    def _closed(self, event: Any) -> None:
        with self._mutex:
            self._ended = True
            callbacks, self._on_end = self._on_end, []
        for callback in callbacks:
            callback()
