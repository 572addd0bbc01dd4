# SPDX-License-Identifier: Apache-2.0
"""A call that is answered by many messages, on a thread of its own.

What happens to it arrives at the queue of the thread that accepts streams,
and is passed on from there: a stream's own thread is mostly in its handler,
waiting for something to send, and must learn there that the caller has gone.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

import grpc
from grpc._cython import cygrpc

from osbase.rpc.call import RpcError, unexpected


class Stream:
    """What a handler may know of its call."""

    def __init__(self, event: Any, method: str) -> None:
        self._method = method
        self._call = event.call
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._ended = False
        self._on_end: list[Callable[[], None]] = []
        # Sent with whatever comes first.
        self._headers: tuple[Any, ...] = (cygrpc.SendInitialMetadataOperation(None, 0),)

    def on_end(self, callback: Callable[[], None]) -> bool:
        """Have it called, by another thread, when the caller has gone. False,
        and it is not called, when that is so already.
        """
        with self._mutex:
            if self._ended:
                return False
            self._on_end.append(callback)
            return True

    def serve(self, handler: Streaming) -> None:
        """Read the request, send what the handler yields, and a status."""
        self._start(self._closed, cygrpc.ReceiveCloseOnServerOperation(0))
        self._start(self._finished, cygrpc.ReceiveMessageOperation(0))
        message = self._done.get().batch_operations[0].message()
        if message is None:
            return
        status = RpcError(grpc.StatusCode.OK, "")
        try:
            with contextlib.closing(handler(message, self)) as answers:
                for answer in answers:
                    self._send(cygrpc.SendMessageOperation(answer, 0))
                    self._done.get()
                    if self._ended:
                        return
        except RpcError as error:
            status = error
        except Exception as error:
            status = unexpected(self._method, error)
        code, details = status.code.value[0], status.details.encode()
        self._send(cygrpc.SendStatusFromServerOperation(None, code, details, 0))

    def _send(self, operation: Any) -> None:
        headers, self._headers = self._headers, ()
        self._start(self._finished, *headers, operation)

    def _start(self, then: Callable[[Any], None], *operations: Any) -> None:
        self._call.start_server_batch(operations, then)

    # What is called with the events, by the accepting thread.

    def _finished(self, event: Any) -> None:
        self._done.put(event)

    def _closed(self, event: Any) -> None:
        with self._mutex:
            self._ended = True
            callbacks, self._on_end = self._on_end, []
        for callback in callbacks:
            callback()


type Streaming = Callable[[bytes, Stream], Generator[bytes]]
