# SPDX-License-Identifier: Apache-2.0
"""The engine as a gRPC service on a unix socket.

A synchronous server on a pool of threads: netlink blocks its thread, and a
call costs 0.1 ms less than on gRPC's asyncio server. Who may connect is who
may open the socket: 0600, in a directory of 0700. It is bound in a directory of
its own, 0700, made private there, and then renamed to its place, so there is
no moment at which it is more open, nor one at which the name is absent after a
restart: a dead server's socket is replaced, a live one's is an error.

Threads: calls that wait for the kernel, or for each other, have `workers`.
Status and List, which wait for nobody, have two of their own, so they answer
when all workers are stuck. A Watch holds a thread for as long as it lasts:
WATCHERS_MAX are theirs, and one more refuses those who come too many.
"""

import contextlib
import logging
import math
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from metropolis.node.core.network.workloads import wire
from metropolis.node.core.network.workloads.engine import Engine
from metropolis.node.core.network.workloads.errors import (
    Exhausted,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.watchers import BACKLOG, Watcher

log = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["WorkloadNetworking"]
_SUN_PATH = 107  # bytes of a unix socket's path
_STOPPING = "watch: the workload network service stops"

WATCHERS_MAX = 32


class WorkloadServer:
    """`start` serves, `stop` ends; an object is good for one of each.

    socket_path: absolute. workers: calls at a time; removals wait for the
    kernel, so more than processors. watch_backlog: changes that a watcher may
    be behind, besides what gRPC has taken for it.
    """

    def __init__(
        self,
        engine: Engine,
        socket_path: str | Path,
        workers: int = 16,
        *,
        watch_backlog: int = BACKLOG,
    ) -> None:
        self._path = Path(socket_path)
        self._workers = workers
        self._methods = _Methods(engine, watch_backlog)
        self._pools: list[ThreadPoolExecutor] = []
        self._server: grpc.Server | None = None
        self._inode = 0

    def start(self) -> None:
        """Listen. Raises OSError when the socket cannot be made: the path is
        too long, taken by a live server, or in a directory others can use.
        """
        assert self._server is None, "a server starts once"
        make_private_directory(self._path.parent)
        refuse_if_served(self._path)
        workers = ThreadPoolExecutor(self._workers, thread_name_prefix="workloads")
        quick = ThreadPoolExecutor(2, thread_name_prefix="workloads-quick")
        watches = ThreadPoolExecutor(WATCHERS_MAX + 1, thread_name_prefix="workloads-watch")
        self._pools = [workers, quick, watches]
        server = grpc.server(
            workers,
            # One server a socket; SO_REUSEPORT means nothing there.
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 20)],
        )
        server.add_generic_rpc_handlers((_handlers(self._methods, quick, watches),))
        private = Path(tempfile.mkdtemp(prefix=".", dir=self._path.parent))
        try:
            bound = private / "s"
            if len(os.fsencode(bound)) > _SUN_PATH:
                raise OSError(f"{self._path}: too long for a unix socket")
            try:
                server.add_insecure_port(f"unix:{bound}")
            except RuntimeError as error:
                raise OSError(f"bind {self._path}: {error}") from error
            bound.chmod(0o600)
            server.start()
            self._inode = bound.stat().st_ino
            bound.rename(self._path)
        except BaseException:
            server.stop(0)
            for pool in self._pools:
                pool.shutdown(wait=False)
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                (private / "s").unlink()
            private.rmdir()
        self._server = server

    def stop(self, grace_s: float = 5.0) -> None:
        """Take no more calls, let those under way end; watches end at once.

        After grace_s calls are cancelled: what waits for its turn is not begun,
        and what was begun is finished all the same, and waited for.
        """
        if self._server is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        stopped = self._server.stop(grace_s)
        self._methods.end_watches()
        stopped.wait()
        for pool in self._pools:
            pool.shutdown(wait=True)
        self._server = None


def make_private_directory(path: Path) -> None:
    """The directory, mode 0700, made if it is not there.

    One that exists is made private, too, unless others' files may be in it
    (sticky, as /tmp) or it is not ours: PermissionError.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = path.stat()
    if there.st_uid != os.geteuid() or there.st_mode & stat.S_ISVTX:
        raise PermissionError(f"{path}: must be a directory of our own for the socket")
    if stat.S_IMODE(there.st_mode) != 0o700:
        path.chmod(0o700)


def refuse_if_served(path: Path) -> None:
    """Raise OSError when something listens there, or it is not a socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(f"{path}: exists and is not a socket; remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return
    raise OSError(f"{path}: another server listens there; stop it first")


class _Methods:
    """What the handlers share. Requests and responses are bytes here: gRPC
    would turn a request that cannot be decoded into INTERNAL and a traceback.
    """

    def __init__(self, engine: Engine, watch_backlog: int) -> None:
        self._engine = engine
        self._watch_backlog = watch_backlog
        self._watching: set[Watcher] = set()
        self._stopping = False
        self._mutex = threading.Lock()
        self._places = threading.Semaphore(WATCHERS_MAX)

    def attach(self, data: bytes, left_s: Callable[[], float]) -> Message:
        """Attach."""
        intent = wire.attach_intent(wire.decode(pb.AttachRequest, data))
        return wire.attach_response(self._engine.attach(intent, left_s=left_s))

    def detach(self, data: bytes, left_s: Callable[[], float]) -> Message:
        """Detach."""
        request = wire.decode(pb.DetachRequest, data)
        netns = request.netns
        self._engine.detach(request.workload_id, netns.netns_path, netns.if_name, left_s=left_s)
        return pb.DetachResponse()

    def status(self, data: bytes, _: Callable[[], float]) -> Message:
        """Status."""
        wire.decode(pb.StatusRequest, data)
        self._engine.status()
        return pb.StatusResponse()

    def list(self, data: bytes, _: Callable[[], float]) -> Message:
        """List."""
        request = wire.decode(pb.ListRequest, data)
        found = self._engine.list(request.workload_id)
        return pb.ListResponse(attachments=[wire.attachment(one) for one in found])

    def check(self, data: bytes, left_s: Callable[[], float]) -> Message:
        """Check."""
        request = wire.decode(pb.CheckRequest, data)
        netns = request.netns
        checked = self._engine.check(
            request.workload_id, netns.if_name, netns.netns_path, left_s=left_s
        )
        return wire.check_response(checked)

    def collect(self, data: bytes, left_s: Callable[[], float]) -> Message:
        """Collect."""
        is_live = wire.live(wire.decode(pb.CollectRequest, data))
        return wire.collect_response(self._engine.collect(is_live, left_s=left_s))

    def watch(self, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Watch. Its thread waits for events, or for the client to read."""
        wire.decode(pb.WatchRequest, data)
        if not self._places.acquire(blocking=False):
            raise Exhausted(f"watch: there are {WATCHERS_MAX} watchers already; end one")
        try:
            with self._engine.watch(self._watch_backlog) as watcher:
                with self._mutex:
                    if self._stopping:
                        raise Unavailable(_STOPPING)
                    self._watching.add(watcher)
                try:
                    if context.add_callback(watcher.close):
                        for event in watcher:
                            yield wire.watch_event(event).SerializeToString()
                finally:
                    with self._mutex:
                        self._watching.discard(watcher)
        finally:
            self._places.release()

    def end_watches(self) -> None:
        """Those that are, and those to come."""
        with self._mutex:
            self._stopping = True
            watching = list(self._watching)
        for watcher in watching:
            watcher.end(Unavailable(_STOPPING))


def _handlers(
    methods: _Methods, quick: ThreadPoolExecutor, watches: ThreadPoolExecutor
) -> grpc.GenericRpcHandler:
    """Whatever is not given a pool of its own runs in the server's."""
    unary = {
        "Attach": methods.attach,
        "Detach": methods.detach,
        "Status": methods.status,
        "List": methods.list,
        "Check": methods.check,
        "Collect": methods.collect,
    }
    pools = {"Status": quick, "List": quick}
    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(_call(name, method, pools.get(name)))
        for name, method in unary.items()
    }
    handlers["Watch"] = grpc.unary_stream_rpc_method_handler(
        _stream("Watch", methods.watch, watches)
    )
    assert handlers.keys() == {method.name for method in _SERVICE.methods}
    return grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)


def _call(
    name: str,
    method: Callable[[bytes, Callable[[], float]], Message],
    pool: ThreadPoolExecutor | None,
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """The method with its errors as status codes, never a traceback."""

    def serve(data: bytes, context: grpc.ServicerContext) -> bytes:
        def left_s() -> float:
            return _time_left(context) if context.is_active() else 0.0

        with _errors(name, context):
            if left_s() > 0:  # it may have waited for a thread
                return method(data, left_s).SerializeToString()
        return b""

    return _in_pool(serve, pool)


def _stream(
    name: str,
    method: Callable[[bytes, grpc.ServicerContext], Iterator[bytes]],
    pool: ThreadPoolExecutor,
) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
    """As _call, for a stream."""

    def serve(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        with _errors(name, context):
            yield from method(data, context)

    return _in_pool(serve, pool)


def _in_pool[F: Callable[..., object]](behaviour: F, pool: ThreadPoolExecutor | None) -> F:
    """gRPC runs a handler that has this attribute in that pool. It is marked
    experimental, and there since 2018; server_test would miss it.
    """
    if pool is not None:
        behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return behaviour


def _time_left(context: grpc.ServicerContext) -> float:
    left = context.time_remaining()
    return math.inf if left is None else left


@contextlib.contextmanager
def _errors(name: str, context: grpc.ServicerContext) -> Iterator[None]:
    """Tell errors by code and text."""
    try:
        yield
    except WorkloadError as error:
        context.set_code(error.code)
        context.set_details(str(error))
    except Exception as error:
        log.exception("%s failed", name)
        context.set_code(grpc.StatusCode.INTERNAL)
        context.set_details(
            f"{name.lower()}: unexpected {type(error).__name__}; see the service's log"
        )
