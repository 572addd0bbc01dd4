# SPDX-License-Identifier: Apache-2.0
"""One call on the server: reading its message, answering, its end."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc._cython import cygrpc

log = logging.getLogger(__name__)

# A client that opens a call sends the message along. One that does not must
# not keep a thread for ever.
_MESSAGE_S = 10.0
# Whether the caller has cancelled is looked at when a call is older than this:
# a younger cancellation might as well have come a little later.
_FRESH_S = 0.001

_TIMEOUT = cygrpc.CompletionType.queue_timeout
_SENT = object()  # nobody waits for it


class RpcError(Exception):
    """What a handler raises to end its call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def unexpected(method: str, error: Exception) -> RpcError:
    """The status of a call whose handler failed; the rest is logged."""
    name = method.rpartition("/")[2].lower()
    log.error("%s failed", method, exc_info=error)
    return RpcError(
        grpc.StatusCode.INTERNAL,
        f"{name}: unexpected {type(error).__name__}; see the service's log",
    )


class Call:
    """What a handler may know of its call. For the handler's thread only."""

    __slots__ = ("_arrived", "_call", "_cancelled", "_closed", "_deadline", "_queue")

    def __init__(self, event: Any, queue: Any) -> None:
        self._call = event.call
        self._queue = queue
        self._arrived = time.time()
        self._deadline: float = event.call_details.deadline
        self._cancelled = False
        self._closed = object()

    def left_s(self) -> float:
        """For how many seconds the caller still waits; 0 or less: not."""
        now = time.time()
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

    def read(self) -> bytes | None:
        """The request. None: there is none, and the call has ended."""
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        arrived = object()
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), arrived)
        deadline = self._arrived + _MESSAGE_S
        while True:
            event = self._queue.poll(deadline)
            if event.tag is arrived:
                message: bytes | None = event.batch_operations[0].message()
                return message
            if event.completion_type == _TIMEOUT:
                # Then the message arrives, as none.
                self._call.cancel()
                deadline = math.inf
            else:
                self._note(event)

    def answer(self, message: bytes) -> None:
        """End it with a response."""
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation(None, 0),
                cygrpc.SendMessageOperation(message, 0),
                cygrpc.SendStatusFromServerOperation(None, cygrpc.StatusCode.ok, b"", 0),
            ),
            _SENT,
        )

    def refuse(self, error: RpcError) -> None:
        """End it with a status."""
        refuse(self._call, error, _SENT)


def refuse(call: Any, error: RpcError, tag: object) -> None:
    """End a call to which nothing was sent yet with a status."""
    code: int = error.code.value[0]
    call.start_server_batch(
        (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendStatusFromServerOperation(None, code, error.details.encode(), 0),
        ),
        tag,
    )


type Unary = Callable[[bytes, Call], bytes]
