# SPDX-License-Identifier: Apache-2.0
"""Calls on completion queues: each reads its message, is answered, and ends.

Each kind of method (see the package) has its class of calls:

    WorkerCall   has a thread, which waits for the message and runs the handler;
                 that may take long, so it checks its queue for a cancellation
    QuickCall    has no thread before its message arrives
    StreamCall   has no thread before its message arrives, and then its own

A WorkerCall's events arrive at the queue of its thread, those of the others at
the queue of the thread that accepts them.
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
from osbase.rpc.unread import PRESSED_S, Unread

log = logging.getLogger(__name__)

# A call checks for a cancellation when it is older than this: an earlier
# cancellation might as well have come a little later.
_FRESH_S = 0.001
_LOOK_S = 0.05  # how often a thread checks whether to go on waiting for a message
_AGAIN_S = 0.1  # pause after a call could not be requested

_TIMEOUT = cygrpc.CompletionType.queue_timeout
_LATE = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
SENT = object()  # the tag of operations that are not awaited


class _Accepted:
    """Base of all kinds: the ways to end a call to which nothing was sent."""

    __slots__ = ("_call", "_method")

    _call: Any
    _method: str

    def give_up(self, reason: str) -> None:
        """See unread.Late."""
        self._call.cancel(_LATE, f"{short(self._method)}: {reason}")

    def abandon(self) -> None:
        """See the function `abandon`."""
        abandon(self._call)

    def answer(self, message: bytes) -> None:
        """End the call with a response."""
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, 0),
                cygrpc.SendMessageOperation(message, 0),
                cygrpc.SendStatusFromServerOperation(None, cygrpc.StatusCode.ok, b"", 0),
            ),
            SENT,
        )

    def refuse(self, error: RpcError) -> None:
        """End the call with a status."""
        refuse(self._call, error)


def refuse(call: Any, error: RpcError) -> None:
    """End a cygrpc call, to which nothing was sent yet, with a status."""
    code, details = status(error)
    call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendStatusFromServerOperation(None, code, details, 0),
        ),
        SENT,
    )


def asking_failed(ended: threading.Event) -> None:
    """Log that the next call could not be requested, for example without
    memory. Return after a pause, or when `ended` is set.
    """
    with contextlib.suppress(Exception):
        log.exception("the next call could not be asked for")
    ended.wait(_AGAIN_S)


def abandon(call: Any) -> None:
    """Cancel a broken cygrpc call, so that its caller does not wait."""
    with contextlib.suppress(Exception):
        call.cancel()


class WorkerCall(_Accepted, Call):
    """A call of a blocking method. queue: the queue of its thread."""

    __slots__ = ("_arrived", "_cancelled", "_closed", "_deadline", "_queue")

    def __init__(self, event: Any, method: str, queue: Any) -> None:
        self._call = event.call
        self._method = method
        self._queue = queue
        self._arrived = now = time.monotonic()
        # By the monotonic clock from here on. cygrpc has computed the deadline
        # by the wall clock, when the call arrived.
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
        """Return the request; None if the call ended without one. pressed:
        returns whether other calls wait for a thread.
        """
        # First, so that a call that has ended already is noticed at once.
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        arrived = object()
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), arrived)
        unread.since[self] = self._arrived
        while True:
            # The limit is by the wall clock: if that is set back, the wait
            # lasts until a check of `unread` ends the call.
            event = self._queue.poll(time.time() + _LOOK_S)
            if event.tag is arrived:
                unread.since.pop(self, None)
                message: bytes | None = event.batch_operations[0].message()
                return message
            if event.completion_type != _TIMEOUT:
                self._note(event)
            elif time.monotonic() - self._arrived > PRESSED_S and pressed():
                self.give_up("no message came, and others wait")


class QuickCall(_Accepted, Call):
    """A call of a quick method. It never checks for a cancellation: the answer
    takes less time than the check.
    """

    __slots__ = ("_deadline",)

    def __init__(self, event: Any, method: str) -> None:
        self._call = event.call
        self._method = method
        self._deadline: float = event.call_details.deadline - time.time() + time.monotonic()

    def time_remaining(self) -> float:
        return self._deadline - time.monotonic()

    def begin(self) -> None:
        """Request the message. The event's tag is this call."""
        # The result is ignored, but a call without this operation costs C-core
        # more.
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), SENT)
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self)


def run(handler: Unary, method: str, call: WorkerCall | QuickCall, request: bytes) -> None:
    """Run the handler and answer. A failure ends only this call."""
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


class StreamCall(_Accepted, Stream):
    """A streaming call."""

    def __init__(
        self, event: Any, method: str, then: Callable[[StreamCall, bytes | None], None]
    ) -> None:
        """then: called with the call and its message, or None if it ended
        without one. The tags of the call's events are functions: the accepting
        thread calls them with the event.
        """
        self._call = event.call
        self._method = method
        self._then = then
        self._sent: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._ended = False
        self._on_end: list[Callable[[], None]] = []
        # Sent with the first operation.
        self._headers: tuple[Any, ...] = (cygrpc.SendInitialMetadataOperation(None, 0),)

    @property
    def method(self) -> str:
        """Return the full name of the method."""
        return self._method

    def on_end(self, callback: Callable[[], None]) -> bool:
        with self._mutex:
            if self._ended:
                return False
            self._on_end.append(callback)
            return True

    def begin(self) -> None:
        """Request the message."""
        self._start(self._closed, cygrpc.ReceiveCloseOnServerOperation(0))
        self._start(self._read, cygrpc.ReceiveMessageOperation(0))

    def serve(self, handler: Streaming, request: bytes) -> None:
        """Send the messages that the handler yields, and a status."""
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

    # Tags of events.

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
