# SPDX-License-Identifier: Apache-2.0
"""The server: which thread waits for which calls. See the package."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc

from osbase.rpc.call import RpcError, Unary, short
from osbase.rpc.connections import CUT_AFTER_S, cut
from osbase.rpc.limits import STREAMS, with_limits
from osbase.rpc.queued import QuickCall, StreamCall, abandon, asking_failed, run
from osbase.rpc.stream import Streaming
from osbase.rpc.unread import LIMIT, MESSAGE_S, PRESSED_S, QUICK_S, Ticker, Unread
from osbase.rpc.workers import NEW, Workers

log = logging.getLogger(__name__)

_STOPPED = object()
_SHUTDOWN = cygrpc.CompletionType.queue_shutdown
QUICK = 2  # threads of each quick method


class Server:
    """`start` serves, `stop` ends. An object takes one of each, in any order: a
    stopped server does not start.

    blocking, quick, streams: handlers by full method name, `/package.Service/
    Method`. workers: calls of blocking methods at a time, and so their threads;
    up to 1,000 further ones wait in C-core. own_workers: for blocking methods
    that do not share those. streams_at_once: calls of all streams; further ones
    get RESOURCE_EXHAUSTED. A handler's RpcError is the call's status; any other
    exception becomes INTERNAL, and is logged.
    """

    def __init__(
        self,
        *,
        blocking: Mapping[str, Unary],
        quick: Mapping[str, Unary],
        streams: Mapping[str, Streaming],
        workers: int,
        own_workers: Mapping[str, int] | None = None,
        streams_at_once: int = STREAMS,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._blocking = dict(blocking)
        self._quick = dict(quick)
        self._streams = dict(streams)
        self._streams_at_once = streams_at_once
        arguments = [(name.encode(), value) for name, value in with_limits(options)]
        self._server = cygrpc.Server(arguments, False)
        self._queues: list[Any] = []
        self._control = self._add_queue()
        self._streams_queue = self._add_queue()
        self._quick_queues = [
            (method, self._add_queue()) for method in self._quick for _ in range(QUICK)
        ]
        self._own = {
            method: self._workers(count, method, self._ask_of(method, NEW))
            for method, count in (own_workers or {}).items()
        }
        self._shared = self._workers(workers, "", self._ask)
        self._unread = {
            method: Unread(QUICK_S if method in self._quick else MESSAGE_S, LIMIT)
            for method in (*self._quick, *self._streams)
        }
        self._ticker = Ticker(self._tick)
        self._life = threading.Lock()  # held by start and stop
        self._addresses: set[str] = set()
        self._core_started = self._ended = self._cut = False
        self._stopping = threading.Event()
        self._cancel_at = 0.0  # once it is stopping
        self._threads: list[threading.Thread] = []
        self._acceptor: threading.Thread | None = None
        self._accepted_all = threading.Event()  # no stream can arrive any more
        # Below: guarded by the mutex.
        self._mutex = threading.Lock()
        self._streaming: list[threading.Thread] = []
        self._streams_now = 0

    def _add_queue(self) -> Any:
        made = cygrpc.CompletionQueue()
        self._server.register_completion_queue(made)
        self._queues.append(made)
        return made

    def listen(self, address: str) -> None:
        """Listen at an address of gRPC, e.g. `unix:/run/x`. Raises OSError."""
        if not self._server.add_http2_port(address.encode()):
            raise OSError(f"cannot listen at {address}")
        self._addresses.add(address)

    def start(self) -> None:
        """Accept calls. A failure, such as RuntimeError when a thread cannot be
        started, leaves no thread and no socket.
        """
        with self._life:
            if self._ended or self._core_started:
                raise RuntimeError("a server starts once, and not after its end")
            try:
                self._start()
            except BaseException:
                self._end(0)
                raise

    def _start(self) -> None:
        for method in (*self._quick, *self._streams, *self._own):
            self._server.register_method(method)
        # The control queue tells when it has ended.
        self._server.start(backup_queue=False)
        self._core_started = True
        self._ticker.start()
        for method, own in self._quick_queues:
            quick = _Quick(
                self._quick[method],
                method,
                self._ask_of(method, method),
                self._unread[method],
                self._stopping,
            )
            self._spawn("rpc-quick", quick.run, own)
        self._acceptor = _thread("rpc-accept-streams", self._accept_streams, self._streams_queue)
        for pool in self._pools():
            pool.start()

    def stop(self, grace_s: float) -> None:
        """Accept no more calls, and let those under way end. After grace_s
        cancel them, and soon after end the connections of clients that do not
        read. Return when all handlers have returned.
        """
        with self._life:
            if not self._ended:
                self._end(grace_s)

    def _end(self, grace_s: float) -> None:
        self._ended = True
        self._cancel_at = time.monotonic() + grace_s
        self._stopping.set()
        for pool in self._pools():
            pool.stop()
        if self._addresses and not self._core_started:
            # C-core closes no socket of a server that was not started.
            self._server.start(backup_queue=False)
            self._core_started = True
        if self._core_started:
            self._server.shutdown(self._control, _STOPPED)
            if grace_s > 0 and self._ticker.runs:
                self._ticker.hurry()
            else:
                self._server.cancel_all_calls()
            if not self._ticker.runs:
                cut(self._addresses)
            while self._control.poll().tag is not _STOPPED:
                pass
        # A queue must not be shut down under a call that may still use it.
        if self._acceptor is not None:
            self._accepted_all.wait()
        with self._mutex:
            streaming = list(self._streaming)
        for thread in (*self._threads, *streaming):
            thread.join()
        self._ticker.end()
        for own in self._queues:
            own.shutdown()
        if self._acceptor is not None:
            self._acceptor.join()  # it reads its queue to the end
        for own in self._queues:
            if own is not self._streams_queue or self._acceptor is None:
                _drain(own)
        self._server.destroy()

    def _pools(self) -> Sequence[Workers]:
        return (*self._own.values(), self._shared)

    def _tick(self) -> None:
        """See Ticker."""
        stopping = self._stopping.is_set()
        if stopping and time.monotonic() >= self._cancel_at:
            self._server.cancel_all_calls()
            if not self._cut and time.monotonic() >= self._cancel_at + CUT_AFTER_S:
                self._cut = cut(self._addresses)
        for unread in self._unread.values():
            unread.expire(PRESSED_S if stopping else MESSAGE_S)
        for pool in self._pools():
            pool.tick()

    def _spawn(self, name: str, run_: Callable[[Any], None], own: Any) -> None:
        self._threads.append(_thread(name, run_, own))

    def _workers(self, count: int, only: str, ask: Callable[[Any], object]) -> Workers:
        return Workers(
            [self._add_queue() for _ in range(count)],
            self._blocking,
            only,
            ask=ask,
            spawn=self._spawn,
        )

    def _ask(self, own: Any) -> None:
        """Request the next call of a method without its own threads, for the
        queue. Raises ValueError when that is shutting down.
        """
        self._server.request_call(own, own, NEW)

    def _ask_of(self, method: str, tag: object) -> Callable[[Any], None]:
        """Return a function like _ask, for one method."""
        ask = self._server.request_registered_call
        return lambda own: ask(own, own, method, tag)

    # ---- Streams -------------------------------------------------------------

    def _accept_streams(self, own: Any) -> None:
        asks = {method: self._ask_of(method, method) for method in self._streams}
        due = set(asks)  # methods whose next call is to be requested
        accepting = set(asks)
        reading: set[StreamCall] = set()
        while True:
            for method in list(due):
                try:
                    asks[method](own)
                    due.discard(method)
                except ValueError:
                    due.discard(method)
                    accepting.discard(method)
                except BaseException:
                    asking_failed(self._stopping)
            if not accepting and not reading:
                self._accepted_all.set()
            event = own.poll(0 if due else None)
            if event.completion_type == _SHUTDOWN:
                return
            try:
                if not isinstance(event.tag, str):
                    if callable(event.tag):
                        event.tag(event)
                elif event.success:
                    due.add(event.tag)
                    self._begin_reading(event, event.tag, reading)
                else:
                    accepting.discard(event.tag)
            except BaseException:
                log.exception("an event of a stream could not be handled")
            event = None

    def _begin_reading(self, event: Any, method: str, reading: set[StreamCall]) -> None:
        def begin(stream: StreamCall, request: bytes | None) -> None:
            reading.discard(stream)
            self._unread[method].discard(stream)
            if request is None:
                return
            try:
                self._begin_stream(stream, request)
            except BaseException:
                stream.abandon()
                raise

        stream = StreamCall(event, method, begin)
        reading.add(stream)
        try:
            stream.begin()
        except BaseException:
            reading.discard(stream)
            stream.abandon()
            raise
        self._unread[method].add(stream)

    def _begin_stream(self, stream: StreamCall, request: bytes) -> None:
        """Start a thread for a stream, within the limit."""
        name = short(stream.method)
        with self._mutex:
            full = self._streams_now >= self._streams_at_once
            self._streams_now += not full
        if full:
            _exhausted(stream, f"{name}: there are {self._streams_at_once} already; end one")
            return
        try:
            thread = _thread("rpc-stream", self._stream, (stream, request))
        except Exception as error:
            self._end_stream()
            log.warning("%s: no thread can be started: %s", name, error)
            _exhausted(stream, f"{name}: no thread can be started: {error}")
            return
        with self._mutex:
            self._streaming = [one for one in self._streaming if one.is_alive()]
            self._streaming.append(thread)

    def _stream(self, given: tuple[StreamCall, bytes]) -> None:
        stream, request = given
        try:
            stream.serve(self._streams[stream.method], request)
        except BaseException:
            log.exception("%s: no answer could be sent", stream.method)
            stream.abandon()
        finally:
            self._end_stream()

    def _end_stream(self) -> None:
        with self._mutex:
            self._streams_now -= 1


class _Quick:
    """The work of a thread of a quick method: it answers one call at a time,
    and waits for the messages of any number.
    """

    def __init__(
        self,
        handler: Unary,
        method: str,
        ask: Callable[[Any], object],
        unread: Unread,
        stopping: threading.Event,
    ) -> None:
        self._handler = handler
        self._method = method
        self._ask = ask
        self._unread = unread
        self._stopping = stopping
        self._reading = 0  # calls whose message, or its absence, is not reported yet

    def run(self, own: Any) -> None:
        """Serve until the server stops."""
        asked, accepting = False, True
        call: QuickCall | None
        while accepting or self._reading:
            try:
                if accepting and not asked:
                    self._ask(own)
                    asked = True
            except ValueError:
                accepting = False
                continue
            except BaseException:
                asking_failed(self._stopping)
                continue
            event = own.poll()
            try:
                if event.tag is self._method:
                    asked, accepting = False, event.success
                    if accepting:
                        call = QuickCall(event, self._method)
                        call.begin()
                        self._reading += 1
                        self._unread.add(call)
                        event = own.poll(0)  # usually the message is there already
                if isinstance(event.tag, QuickCall):
                    self._reading -= 1
                    self._unread.since.pop(event.tag, None)
                    request = event.batch_operations[0].message()
                    if request is not None:
                        run(self._handler, self._method, event.tag, request)
            except BaseException:
                log.exception("a call of %s could not be answered", self._method)
                if isinstance(event.tag, QuickCall):
                    event.tag.abandon()
                else:
                    abandon(event.call)
            event = call = None  # else the call object would live until the next one


def _exhausted(stream: StreamCall, text: str) -> None:
    stream.refuse(RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, text))


def _thread[Argument](
    name: str, run_: Callable[[Argument], None], argument: Argument
) -> threading.Thread:
    thread = threading.Thread(target=run_, args=(argument,), name=name, daemon=True)
    thread.start()
    return thread


def _drain(own: Any) -> None:
    """Read a queue that is shut down to its end."""
    while own.poll().completion_type != _SHUTDOWN:
        pass
