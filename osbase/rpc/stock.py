# SPDX-License-Identifier: Apache-2.0
"""The same server on grpc.server, with grpcio's public interface only.

It is twice as slow (see the package), and is used when grpcio's private parts
have changed. It serves all methods as if requests were streams, and reads one
message: only so does a handler's thread have its call before the message
arrives, and can give it up without one. Each kind of method has a pool of
threads: further calls wait in the pool's queue.
"""

import contextlib
import functools
import importlib
import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from osbase.rpc.call import Call, RpcError, Unary, short, status, unexpected
from osbase.rpc.connections import CUT_AFTER_S, cut
from osbase.rpc.limits import STREAMS, with_limits
from osbase.rpc.stream import Stream, Streaming
from osbase.rpc.unread import MESSAGE_S, Ticker, Unread

log = logging.getLogger(__name__)

type _Handler = grpc.RpcMethodHandler[bytes, bytes]

_QUICK_THREADS = 16  # for each quick method, calls without a message included
# When other calls wait for the thread. One thread of grpc.server takes all
# messages from C-core: an arrived one may wait there while that thread is busy.
_WANTED_S = 4.0
_READING = 8  # threads beyond the limit of streams, for those without a message


class StockServer:
    """See server.Server. The caller of a call that is given up gets CANCELLED,
    without a reason.
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
        own = own_workers or {}
        shared = _Pool("rpc-worker", workers, MESSAGE_S)
        handlers: dict[str, _Handler] = {}
        self._pools = [shared]
        for method, handler in blocking.items():
            pool = shared
            if method in own:
                pool = self._add_pool("rpc-worker", own[method], MESSAGE_S)
            handlers[method] = _unary(handler, method, pool)
        for method, handler in quick.items():
            pool = self._add_pool("rpc-quick", _QUICK_THREADS, _WANTED_S)
            handlers[method] = _unary(handler, method, pool)
        places = threading.Semaphore(streams_at_once)
        full = f"there are {streams_at_once} already; end one"
        pool = self._add_pool("rpc-stream", streams_at_once + _READING, MESSAGE_S)
        for method, streaming in streams.items():
            handlers[method] = _streaming(streaming, method, pool, places, full)
        self._server: Any = grpc.server(shared, [_Handlers(handlers)], options=with_limits(options))
        self._ticker = Ticker(self._tick)
        self._addresses: set[str] = set()
        self._cut_at = math.inf
        self._life = threading.Lock()  # held by start and stop
        self._started = self._ended = False

    def _add_pool(self, name: str, threads: int, patience_s: float) -> _Pool:
        pool = _Pool(name, threads, patience_s)
        self._pools.append(pool)
        return pool

    def listen(self, address: str) -> None:
        """See Server."""
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen at {address}") from error
        self._addresses.add(address)

    def start(self) -> None:
        """See Server."""
        with self._life:
            if self._ended or self._started:
                raise RuntimeError("a server starts once, and not after its end")
            try:
                self._ticker.start()
                for pool in self._pools:
                    pool.begin()
                self._started = True
                self._run()
            except BaseException:
                self._end(0)
                raise

    def _run(self) -> None:
        try:
            self._server.start()
        except RuntimeError:
            # grpc.server's thread did not start, and without it the server
            # cannot be stopped: this thread does its work. The private names
            # are imported here, so that nothing else depends on them.
            module: Any = importlib.import_module("grpc._server")
            state = self._server._state
            module._begin_shutdown_once(state)
            state.server.cancel_all_calls()
            module._serve(state)
            raise

    def stop(self, grace_s: float) -> None:
        """See Server."""
        with self._life:
            if not self._ended:
                self._end(grace_s)

    def _end(self, grace_s: float) -> None:
        self._ended = True
        if not self._started:
            # grpc closes no socket of a server that was not started.
            with contextlib.suppress(RuntimeError):
                self._run()
        self._cut_at = time.monotonic() + grace_s + CUT_AFTER_S
        for pool in self._pools:
            pool.stopping = True
        try:
            self._server.stop(grace_s if grace_s > 0 else None).wait()
        except RuntimeError:  # no thread for the grace
            self._server.stop(None).wait()
        for pool in self._pools:
            pool.shutdown()
        self._ticker.end()

    def _tick(self) -> None:
        """See Ticker."""
        for pool in self._pools:
            pool.tick()
        if time.monotonic() >= self._cut_at and cut(self._addresses):
            self._cut_at = math.inf


class _Pool(ThreadPoolExecutor):
    """Threads for some methods, and their calls without a message. One thread
    exists from `begin` on; if no more can start, calls wait for it.

    The newest call gets a thread first: behind a thousand calls without a
    message, one with a message would wait for minutes.
    """

    def __init__(self, name: str, threads: int, patience_s: float) -> None:
        super().__init__(threads, name)
        self.unread = Unread(patience_s)
        self.stopping = False
        self._patience_s = patience_s
        self._mutex = threading.Lock()
        self._queued: list[Callable[[], object]] = []

    def begin(self) -> None:
        """Start a thread. Raises RuntimeError when none can be started."""
        super().submit(lambda: None).result()

    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call. Must not fail: that ends grpc.server's only thread."""

        with self._mutex:
            self._queued.append(functools.partial(fn, *args, **kwargs))
        made: Future[T] = Future()  # not looked at
        try:
            super().submit(self._serve)
        except RuntimeError as error:
            # It is in the queue of the existing threads.
            log.warning("no thread can be started, so calls wait: %s", error)
        return made

    def _serve(self) -> None:
        with self._mutex:
            newest = self._queued.pop()
        newest()

    def tick(self) -> None:
        """Give up late calls. The ticker calls it."""
        wanted = bool(self._queued) or self.stopping
        self.unread.expire(_WANTED_S if wanted else self._patience_s)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, handlers: Mapping[str, _Handler]) -> None:
        self._handlers = handlers

    def service(self, details: grpc.HandlerCallDetails) -> _Handler | None:
        return self._handlers.get(details.method)


class _StockCall(Call):
    __slots__ = ("_context", "_deadline")

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context
        # By the monotonic clock from here on.
        left = context.time_remaining()
        self._deadline = math.inf if left is None else time.monotonic() + left

    def time_remaining(self) -> float:
        return self._deadline - time.monotonic() if self._context.is_active() else 0.0


class _StockStream(Stream):
    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def on_end(self, callback: Callable[[], None]) -> bool:
        return bool(self._context.add_callback(callback))


class _Waiting:
    """A call that waits for its message; see unread.Late."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def give_up(self, _: str) -> None:
        self._context.cancel()


def _read(requests: Iterator[bytes], context: grpc.ServicerContext, pool: _Pool) -> bytes | None:
    """Return the first message. None: there is none; the call has ended."""
    waiting = _Waiting(context)
    pool.unread.add(waiting)
    try:
        return next(requests, None)
    except Exception:  # grpc.RpcError, and others after a cancellation
        return None
    finally:
        pool.unread.discard(waiting)


def _unary(handler: Unary, method: str, pool: _Pool) -> _Handler:
    def serve(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        call = _StockCall(context)
        request = _read(requests, context, pool)
        if request is None:
            context.cancel()
            return b""
        try:
            answer = handler(request, call)
            # grpc.server would leave the caller waiting.
            if isinstance(answer, bytes):
                return answer
            raise TypeError(f"an answer must be bytes, not {type(answer).__name__}")
        except RpcError as error:
            refusal = error
        except BaseException as error:
            refusal = unexpected(method, error)
        _end_with(context, refusal)
        return b""

    serve.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return grpc.stream_unary_rpc_method_handler(serve)


def _streaming(
    handler: Streaming, method: str, pool: _Pool, places: threading.Semaphore, full: str
) -> _Handler:
    def serve(requests: Iterator[bytes], context: grpc.ServicerContext) -> Generator[bytes]:
        request = _read(requests, context, pool)
        if request is None:
            context.cancel()
            return
        if not places.acquire(blocking=False):
            text = f"{short(method)}: {full}"
            _end_with(context, RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, text))
            return
        try:
            refusal = None
            try:
                yield from handler(request, _StockStream(context))
            except GeneratorExit:
                raise
            except RpcError as error:
                refusal = error
            except BaseException as error:
                refusal = unexpected(method, error)
            if refusal is not None:
                _end_with(context, refusal)
        finally:
            places.release()

    serve.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return grpc.stream_stream_rpc_method_handler(serve)


def _end_with(context: grpc.ServicerContext, refusal: RpcError) -> None:
    context.set_code(refusal.code)
    context.set_details(status(refusal)[1].decode())
