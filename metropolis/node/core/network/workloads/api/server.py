# SPDX-License-Identifier: Apache-2.0
"""The engine as a gRPC service on a unix socket.

osbase.rpc serves it: netlink blocks its thread, so each call has a thread to
its end. The socket's mode, 0600, decides who may connect; nobody else may write
to its directory, which is made with 0700 if it is missing. The socket is bound
in a private directory, 0700, and then renamed to its place, so at no moment is
it more open, or its name absent after a restart. A dead server's socket is
replaced; a live one's is an error.

Threads: calls that wait for the kernel, or for each other, have `workers`,
which start on demand. Status and List never wait, and have two of their own, so
they answer when all workers are stuck. Check may wait for the kernel, and has
some of its own. A Watch has a thread for as long as it lasts; there are at most
WATCHERS_MAX.
"""

import contextlib
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from metropolis.node.core.network.workloads.api import wire
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.watchers import BACKLOG, Watcher
from metropolis.node.core.network.workloads.errors import (
    GivenUp,
    Unavailable,
    WorkloadError,
)
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.validate import show
from osbase.rpc import choose
from osbase.rpc.call import Call, RpcError, Unary
from osbase.rpc.stream import Stream, Streaming

if TYPE_CHECKING:
    from osbase.rpc.server import Server
    from osbase.rpc.stock import StockServer

_SERVICE = pb.DESCRIPTOR.services_by_name["WorkloadNetworking"]
_SUN_PATH = 107  # bytes of a unix socket's path
_STOPPING = "watch: the workload network service stops"

WATCHERS_MAX = 32
WORKERS = 96
CHECKERS = 8  # concurrent calls of Check
CHECK_WAITS_S = 1.5  # for another call on its workload


@dataclass(frozen=True, slots=True)
class More:
    """Methods of other services on the same socket, by their full names. stop:
    ends their streams.
    """

    blocking: Mapping[str, Unary]
    streams: Mapping[str, Streaming]
    stop: Callable[[], None]


class WorkloadServer:
    """`start` serves, `stop` ends; an object may do each once, in any order and
    also concurrently: after `stop` it never serves.

    socket_path: absolute. workers: concurrent calls; so many removals can share
    one wait for the kernel. watch_backlog: changes that a watcher may be
    behind, besides those that gRPC has buffered. implementation: see
    osbase.rpc.choose. more: other services.
    """

    def __init__(
        self,
        engine: Engine,
        socket_path: str | Path,
        workers: int = WORKERS,
        *,
        watch_backlog: int = BACKLOG,
        implementation: str = choose.AUTO,
        more: More | None = None,
    ) -> None:
        self._implementation = implementation
        self._life = threading.Lock()  # held by start and stop
        self._ended = False
        self._path = Path(socket_path)
        self._workers = workers
        self._methods = _Methods(engine, watch_backlog)
        self._more = more
        self._server: Server | StockServer | None = None
        self._inode = 0

    def start(self) -> None:
        """Listen. Raises OSError when the socket cannot be made: the path is
        too long, taken by a live server, or in a directory others can use; and
        RuntimeError when threads cannot be started, or after `stop`.
        """
        with self._life:
            assert self._server is None, "a server starts once"
            if self._ended:
                raise RuntimeError("the server was stopped before it started")
            self._start()

    def _start(self) -> None:
        make_private_directory(self._path.parent)
        refuse_if_served(self._path)
        server = _server(self._methods, self._workers, self._implementation, self._more)
        private: Path | None = None
        try:
            private = Path(tempfile.mkdtemp(prefix=".", dir=self._path.parent))
            bound = private / "s"
            if len(os.fsencode(bound)) > _SUN_PATH:
                raise OSError(f"{self._path}: too long for a unix socket")
            server.listen(f"unix:{bound}")
            bound.chmod(0o600)
            server.start()
            self._inode = bound.stat().st_ino
            bound.rename(self._path)
        except BaseException:
            server.stop(0)
            raise
        finally:
            if private is not None:
                with contextlib.suppress(FileNotFoundError):
                    (private / "s").unlink()
                private.rmdir()
        self._server = server

    def stop(self, grace_s: float = 5.0) -> None:
        """Take no more calls, let those under way end; watches end at once.

        After grace_s calls are cancelled: a call that waits is not begun, and a
        call that was begun is finished all the same, and waited for.
        """
        with self._life:
            self._ended = True
            if self._server is None:
                return
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            self._methods.end_watches()
            if self._more is not None:
                self._more.stop()
            self._server.stop(grace_s)
            self._server = None


def make_private_directory(path: Path) -> None:
    """Make the directory, mode 0700, if it is missing.

    An existing one stays as it is: it may be shared, as /run. The socket's own
    mode decides who may connect. But nobody else may be able to put another
    socket in its place, unless the directory is sticky, as /tmp:
    PermissionError.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = path.stat()
    others_write = stat.S_IMODE(there.st_mode) & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISVTX)
    if there.st_uid != os.geteuid() or others_write:
        raise PermissionError(
            f"{path}: must be a directory of our own for the socket, in which nobody else may "
            f"write (owner {there.st_uid}, mode {stat.S_IMODE(there.st_mode):o})"
        )


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
    would turn an undecodable request into INTERNAL and a traceback.
    """

    def __init__(self, engine: Engine, watch_backlog: int) -> None:
        self._engine = engine
        self._watch_backlog = watch_backlog
        self._watching: set[Watcher] = set()
        self._stopping = False
        self._mutex = threading.Lock()

    def _read[M: Message, T](
        self, what: str, kind: type[M], data: bytes, read: Callable[[M], T]
    ) -> tuple[M, T]:
        """Decode a request, and read what it asks for. The log names one that
        has none of it; what: the call.
        """
        began = time.perf_counter()
        workload_id = ""
        try:
            request = wire.decode(kind, data)
            workload_id = request.workload_id  # type: ignore[attr-defined]
            return request, read(request)
        except WorkloadError as error:
            self._engine.failed(what, workload_id, "", error, began)
            raise

    def attach(self, data: bytes, call: Call) -> bytes:
        """Attach."""
        _, intent = self._read("attach", pb.AttachRequest, data, wire.attach_intent)
        return wire.attach_response(self._engine.attach(intent, time_remaining=call.time_remaining))

    def detach(self, data: bytes, call: Call) -> bytes:
        """Detach."""
        request, netns = self._read("detach", pb.DetachRequest, data, lambda one: one.netns)
        self._engine.detach(
            request.workload_id, netns.netns_path, netns.if_name, time_remaining=call.time_remaining
        )
        return pb.DetachResponse().SerializeToString()

    def set_bandwidth(self, data: bytes, call: Call) -> bytes:
        """SetBandwidth."""
        request, part = self._read("change", pb.SetBandwidthRequest, data, wire.limits_to_set)
        self._engine.change(
            request.workload_id, request.if_name, part, time_remaining=call.time_remaining
        )
        return pb.SetBandwidthResponse().SerializeToString()

    def status(self, data: bytes, _: Call) -> bytes:
        """Status."""
        problems: dict[str, str] = {}
        if wire.decode(pb.StatusRequest, data).report:
            problems = self._engine.problems()
        else:
            self._engine.status()
        return wire.status_response(self._engine.notes(), problems).SerializeToString()

    def list(self, data: bytes, _: Call) -> bytes:
        """List."""
        request = wire.decode(pb.ListRequest, data)
        found = self._engine.list(request.workload_id)
        answer = pb.ListResponse(attachments=[wire.attachment(one) for one in found])
        return answer.SerializeToString()

    def check(self, data: bytes, call: Call) -> bytes:
        """Check. It does not wait long for a stuck call."""
        request = wire.decode(pb.CheckRequest, data)
        netns = request.netns

        def time_remaining() -> float:
            return min(call.time_remaining(), CHECK_WAITS_S)

        try:
            checked = self._engine.check(
                request.workload_id, netns.if_name, netns.netns_path, time_remaining=time_remaining
            )
        except GivenUp as error:
            if call.time_remaining() <= 0:
                raise
            raise Unavailable(
                f"check {show(request.workload_id)}: another call for this workload has taken "
                f"over {CHECK_WAITS_S:g} s; try again"
            ) from error
        return wire.check_response(checked).SerializeToString()

    def collect(self, data: bytes, call: Call) -> bytes:
        """Collect."""
        request = wire.decode(pb.CollectRequest, data)
        is_live, owner = wire.live(request), wire.owner(request)
        collected = self._engine.collect(
            is_live, of_owner=owner.__eq__, time_remaining=call.time_remaining
        )
        return wire.collect_response(collected).SerializeToString()

    def watch(self, data: bytes, stream: Stream) -> Generator[bytes]:
        """Watch. Its thread waits for events, or for the client to read."""
        wire.decode(pb.WatchRequest, data)
        with self._engine.watch(self._watch_backlog) as watcher:
            with self._mutex:
                if self._stopping:
                    raise Unavailable(_STOPPING)
                self._watching.add(watcher)
            try:
                if stream.on_end(watcher.close):
                    for event in watcher:
                        yield wire.watch_event(event).SerializeToString()
            finally:
                with self._mutex:
                    self._watching.discard(watcher)

    def end_watches(self) -> None:
        """End present and later watches."""
        with self._mutex:
            self._stopping = True
            watching = list(self._watching)
        for watcher in watching:
            watcher.end(Unavailable(_STOPPING))


def _server(
    methods: _Methods, workers: int, implementation: str, more: More | None
) -> Server | StockServer:
    prefix = f"/{_SERVICE.full_name}/"
    blocking = {
        "Attach": methods.attach,
        "Detach": methods.detach,
        "SetBandwidth": methods.set_bandwidth,
        "Check": methods.check,
        "Collect": methods.collect,
    }
    quick = {"Status": methods.status, "List": methods.list}
    assert {*blocking, *quick, "Watch"} == {method.name for method in _SERVICE.methods}
    others = {} if more is None else more.blocking
    streams = {f"{prefix}Watch": methods.watch} | dict({} if more is None else more.streams)
    named = {prefix + name: method for name, method in blocking.items()} | dict(others)
    return choose.server_class(implementation)(
        blocking={name: _coded(method) for name, method in named.items()},
        quick={prefix + name: _coded(method) for name, method in quick.items()},
        streams={name: _coded_stream(method) for name, method in streams.items()},
        workers=workers,
        own_workers={f"{prefix}Check": CHECKERS},
        streams_at_once=WATCHERS_MAX,
        # One server per socket; SO_REUSEPORT has no effect there.
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 20)],
    )


def _coded(method: Unary) -> Unary:
    """Return the method with its errors as status codes."""

    def serve(data: bytes, call: Call) -> bytes:
        try:
            if call.time_remaining() > 0:  # it may have waited for a thread
                return method(data, call)
        except WorkloadError as error:
            raise RpcError(error.code, str(error)) from error
        return b""

    return serve


def _coded_stream(method: Streaming) -> Streaming:
    """Do as _coded for a streaming method."""

    def serve(data: bytes, stream: Stream) -> Generator[bytes]:
        try:
            yield from method(data, stream)
        except WorkloadError as error:
            raise RpcError(error.code, str(error)) from error

    return serve
