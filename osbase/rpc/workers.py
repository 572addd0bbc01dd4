# SPDX-License-Identifier: Apache-2.0
"""Threads that wait for calls of blocking methods, as many as needed.

A worker waits for a call, serves it to its end, and then waits again or is
parked. A worker that takes a call makes sure that another one waits. If no
thread can be started, calls wait for a worker that ends, and another start is
tried from time to time: fewer threads only make the server slower.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from osbase.rpc.call import RpcError, Unary
from osbase.rpc.queued import WorkerCall, abandon, asking_failed, refuse, run
from osbase.rpc.unread import MESSAGE_S, Unread

log = logging.getLogger(__name__)

NEW = object()  # the tag of a call's arrival
# The most workers that wait for a call; the others are parked. A waiting one
# wakes up five times a second (cygrpc checks for signals).
_WAITING_MAX = 2


class Workers:
    """queues: one for each possible thread. handlers: by method. only: the only
    method whose calls arrive, "" for any. ask: request the next call for a
    queue, tagged NEW; raises ValueError when the server is shutting down.
    spawn: start a thread.
    """

    def __init__(
        self,
        queues: list[Any],
        handlers: Mapping[str, Unary],
        only: str,
        *,
        ask: Callable[[Any], object],
        spawn: Callable[[str, Callable[[Any], None], Any], None],
    ) -> None:
        self._handlers: dict[bytes, tuple[Unary | None, str]] = {
            method.encode(): (handler, method) for method, handler in handlers.items()
        }
        # For calls of one method, C-core does not report its name.
        self._only: tuple[Unary | None, str] = (None, "")
        if only:
            self._only = (handlers[only], only)
        self._ask = ask
        self._spawn = spawn
        self._unread = Unread(MESSAGE_S)
        self._ended = threading.Event()
        # Below: guarded by the mutex.
        self._mutex = threading.Lock()
        self._queues = queues  # without a thread
        self._waiting = 0  # workers that wait for a call, or are about to
        self._parked: list[threading.Semaphore] = []
        self._stopping = False
        self._refused = False  # the last start of a thread failed

    def start(self) -> None:
        """Start the first. Raises RuntimeError when a thread cannot start."""
        with self._mutex:
            for _ in range(min(_WAITING_MAX, len(self._queues))):
                self._add()

    def stop(self) -> None:
        """Start no more threads; release all parked ones, so that they end."""
        self._ended.set()
        with self._mutex:
            self._stopping = True
            for parked in self._parked:
                parked.release()

    def tick(self) -> None:
        """Start a thread if one is missing. The ticker calls it."""
        with self._mutex:
            self._keep_one_waiting()
        self._unread.expire()

    def _wanted(self) -> bool:
        """Return whether a new call would find no worker."""
        return self._stopping or not self._waiting

    def _keep_one_waiting(self) -> None:
        """Make sure that another worker waits. Called under the mutex."""
        if self._waiting or self._stopping:
            return
        if self._parked:
            self._waiting += 1
            self._parked.pop().release()
        elif self._queues:
            try:
                self._add()
            except Exception as error:
                if not self._refused:
                    log.warning("no thread can be started, so calls wait: %s", error)
                self._refused = True
            else:
                self._refused = False

    def _add(self) -> None:
        """Start a worker. Called under the mutex."""
        own = self._queues.pop()
        self._waiting += 1
        try:
            self._spawn("rpc-worker", self._work, own)
        except BaseException:
            self._waiting -= 1
            self._queues.append(own)
            raise

    def _work(self, own: Any) -> None:
        place = threading.Semaphore(0)
        while True:
            try:
                self._ask(own)
            except ValueError:
                return
            except BaseException:
                asking_failed(self._ended)
                continue
            event = own.poll()
            while event.tag is not NEW:  # leftovers of earlier calls
                event = own.poll()
            if not event.success:
                return
            self._take()
            try:
                self._serve(event, own)
            except BaseException:
                log.exception("a call could not be answered")
                abandon(event.call)
            event = None  # else the call object would live until the next one
            self._rest(place)

    def _serve(self, event: Any, own: Any) -> None:
        handler, method = self._handlers.get(event.call_details.method, self._only)
        if handler is None:
            name = event.call_details.method.decode("ascii", "backslashreplace")
            unknown = f"there is no method {name[:200]}"
            refuse(event.call, RpcError(grpc.StatusCode.UNIMPLEMENTED, unknown))
            return
        call = WorkerCall(event, method, own)
        request = call.read(self._unread, self._wanted)
        if request is not None:
            run(handler, method, call, request)

    def _take(self) -> None:
        """Note that a worker has a call."""
        with self._mutex:
            self._waiting -= 1
            if not self._waiting:
                self._keep_one_waiting()

    def _rest(self, place: threading.Semaphore) -> None:
        """Wait for the next call, or park."""
        with self._mutex:
            if self._waiting < _WAITING_MAX or self._stopping:
                self._waiting += 1
                return
            self._parked.append(place)
        place.acquire()
