# SPDX-License-Identifier: Apache-2.0
"""The server: which thread waits for which calls. See the package."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import grpc
from grpc._cython import cygrpc

from osbase.rpc.call import Call, RpcError, Unary, refuse, unexpected
from osbase.rpc.stream import Stream, Streaming

_NEW = object()  # the tag of a call's arrival
_STOPPED = object()
_SHUTDOWN = cygrpc.CompletionType.queue_shutdown
QUICK = 2  # threads of each quick method
# Workers that wait for a call, at least and at most; the others are parked. A
# waiting one wakes up five times a second (cygrpc looks for signals).
_WAITING_MIN = 1
_WAITING_MAX = 2


class Server:
    """`start` serves, `stop` ends; an object is good for one of each.

    blocking, quick, streams: handlers by full method name, `/package.Service/
    Method`. workers: calls of blocking methods at a time, and so their threads;
    further ones wait in C-core, up to 1,000 of them. A handler's RpcError is
    the call's status, any other exception INTERNAL, and logged.
    """

    def __init__(
        self,
        *,
        blocking: Mapping[str, Unary],
        quick: Mapping[str, Unary],
        streams: Mapping[str, Streaming],
        workers: int,
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._blocking = dict(blocking)
        self._quick = dict(quick)
        self._streams = dict(streams)
        arguments = [(name.encode(), value) for name, value in options]
        self._server = cygrpc.Server(arguments, False)
        self._queues: list[Any] = []
        self._control = self._add_queue()
        self._started = False
        self._streams_queue = self._add_queue()
        self._threads: list[threading.Thread] = []
        self._acceptor: threading.Thread | None = None
        self._accepted_all = threading.Event()  # there is no stream to come
        # Below: guarded by the mutex.
        self._mutex = threading.Lock()
        self._waiting = 0  # workers that wait for a call, or are about to
        self._parked: list[threading.Semaphore] = []
        self._for_workers = [self._add_queue() for _ in range(workers)]
        self._streaming: list[threading.Thread] = []
        self._stopping = False

    def _add_queue(self) -> Any:
        made = cygrpc.CompletionQueue()
        self._server.register_completion_queue(made)
        self._queues.append(made)
        return made

    def listen(self, address: str) -> None:
        """As gRPC names addresses, e.g. `unix:/run/x`. Raises OSError."""
        if not self._server.add_http2_port(address.encode()):
            raise OSError(f"cannot listen at {address}")

    def start(self) -> None:
        """Take calls."""
        for method in (*self._quick, *self._streams):
            self._server.register_method(method)
        quick = [(method, self._add_queue()) for method in self._quick for _ in range(QUICK)]
        # The control queue tells when it has ended.
        self._server.start(backup_queue=False)
        self._started = True
        for method, own in quick:
            self._spawn("rpc-quick", partial(self._serve_quick, method), own)
        self._acceptor = _thread("rpc-accept-streams", self._accept_streams, self._streams_queue)
        with self._mutex:
            for _ in range(min(_WAITING_MAX, len(self._for_workers))):
                self._add_worker()

    def stop(self, grace_s: float) -> None:
        """Take no more calls, let those under way end; after grace_s cancel
        them. Returns when their handlers have returned, too.
        """
        started, self._started = self._started, False
        if not started:
            return
        with self._mutex:
            self._stopping = True
            for parked in self._parked:
                parked.release()
        self._server.shutdown(self._control, _STOPPED)
        if self._control.poll(time.time() + grace_s).tag is not _STOPPED:
            self._server.cancel_all_calls()
            self._control.poll()
        # A queue must not be shut down under a call that may still use it.
        self._accepted_all.wait()
        for thread in (*self._threads, *self._streaming):
            thread.join()
        for own in self._queues:
            own.shutdown()
        if self._acceptor is not None:
            self._acceptor.join()  # it reads its queue to the end
        for own in self._queues:
            if own is not self._streams_queue:
                _drain(own)
        self._server.destroy()

    def _spawn(self, name: str, run: Callable[[Any], None], own: Any) -> None:
        self._threads.append(_thread(name, run, own))

    # ---- Blocking methods ----------------------------------------------------

    def _add_worker(self) -> None:
        """Under the mutex."""
        self._waiting += 1
        self._spawn("rpc-worker", self._work, self._for_workers.pop())

    def _work(self, own: Any) -> None:
        place = threading.Semaphore(0)
        while True:
            try:
                self._server.request_call(own, own, _NEW)
            except ValueError:  # it is shutting down
                return
            event = _next(own, _NEW)
            if not event.success:
                return
            self._take()
            self._serve(event, own)
            event = None  # or the call would live until the next one
            self._rest(place)

    def _take(self) -> None:
        """A worker has a call: see to it that another one waits."""
        with self._mutex:
            self._waiting -= 1
            if self._waiting >= _WAITING_MIN or self._stopping:
                return
            if self._parked:
                self._waiting += 1
                self._parked.pop().release()
            elif self._for_workers:
                self._add_worker()

    def _rest(self, place: threading.Semaphore) -> None:
        """A worker is done: it waits for a call, or is parked."""
        with self._mutex:
            if self._waiting < _WAITING_MAX or self._stopping:
                self._waiting += 1
                return
            self._parked.append(place)
        place.acquire()

    def _serve(self, event: Any, own: Any) -> None:
        method = event.call_details.method.decode("ascii", "backslashreplace")
        handler = self._blocking.get(method)
        if handler is None:
            unknown = f"there is no method {method[:200]}"
            refuse(event.call, RpcError(grpc.StatusCode.UNIMPLEMENTED, unknown), None)
            return
        _run(handler, method, Call(event, own))

    # ---- The other kinds -----------------------------------------------------

    def _request(self, own: Any, method: str) -> bool:
        """Be told of its next call; False: it is shutting down."""
        try:
            self._server.request_registered_call(own, own, method, method)
        except ValueError:
            return False
        return True

    def _serve_quick(self, method: str, own: Any) -> None:
        """One method, one call at a time: while a call is read nothing else
        may arrive in the queue.
        """
        while self._request(own, method):
            event = _next(own, method)
            if not event.success:
                return
            _run(self._quick[method], method, Call(event, own))
            event = None

    def _accept_streams(self, own: Any) -> None:
        for method in self._streams:
            self._request(own, method)
        accepting = set(self._streams)
        while True:
            if not accepting:
                self._accepted_all.set()
            event = own.poll()
            if event.completion_type == _SHUTDOWN:
                return
            if not isinstance(event.tag, str):
                event.tag(event)
            elif event.success:
                self._begin_stream(Stream(event, event.tag), self._streams[event.tag])
                if not self._request(own, event.tag):
                    accepting.discard(event.tag)
            else:
                accepting.discard(event.tag)
            event = None

    def _begin_stream(self, stream: Stream, handler: Streaming) -> None:
        thread = _thread("rpc-stream", stream.serve, handler)
        with self._mutex:
            self._streaming = [one for one in self._streaming if one.is_alive()]
            self._streaming.append(thread)


def _thread(name: str, run: Callable[[Any], None], argument: Any) -> threading.Thread:
    thread = threading.Thread(target=run, args=(argument,), name=name, daemon=True)
    thread.start()
    return thread


def _next(own: Any, tag: object) -> Any:
    """The next call's arrival; what is left of calls before it is dropped."""
    while True:
        event = own.poll()
        if event.tag is tag:
            return event


def _drain(own: Any) -> None:
    """Read a queue that was shut down to its end."""
    while own.poll().completion_type != _SHUTDOWN:
        pass


def _run(handler: Unary, method: str, call: Call) -> None:
    request = call.read()
    if request is None:
        return
    try:
        answer = handler(request, call)
    except RpcError as error:
        call.refuse(error)
    except Exception as error:
        call.refuse(unexpected(method, error))
    else:
        call.answer(answer)
