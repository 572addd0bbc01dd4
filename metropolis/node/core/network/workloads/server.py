# SPDX-License-Identifier: Apache-2.0
"""The engine as a gRPC service on a unix socket.

A synchronous server on a pool of threads: netlink blocks its thread, and a
call costs 0.1 ms less than on gRPC's asyncio server. Who may connect is who
may open the socket: 0600, in a directory of 0700. It is bound in a directory of
its own, 0700, made private there, and then renamed to its place, so there is
no moment at which it is more open, nor one at which the name is absent after a
restart: a dead server's socket is replaced, a live one's is an error.
"""

import contextlib
import logging
import os
import socket
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from google.protobuf.message import Message

from metropolis.node.core.network.workloads import wire
from metropolis.node.core.network.workloads.engine import Engine
from metropolis.node.core.network.workloads.errors import WorkloadError
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb

log = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["WorkloadNetworking"]
_SUN_PATH = 107  # bytes of a unix socket's path


class WorkloadServer:
    """`start` serves, `stop` ends; an object is good for one of each.

    socket_path: absolute. workers: calls at a time; removals wait for the
    kernel, so more than processors.
    """

    def __init__(self, engine: Engine, socket_path: str | Path, workers: int = 16) -> None:
        self._engine = engine
        self._path = Path(socket_path)
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._server: grpc.Server | None = None
        self._inode = 0

    def start(self) -> None:
        """Listen. Raises OSError when the socket cannot be made: the path is
        too long, taken by a live server, or in a directory others can use.
        """
        assert self._server is None, "a server starts once"
        make_private_directory(self._path.parent)
        refuse_if_served(self._path)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="workloads")
        server = grpc.server(
            self._pool,
            # One server a socket; SO_REUSEPORT means nothing there.
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 20)],
        )
        server.add_generic_rpc_handlers((_handlers(self._engine),))
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
            self._pool.shutdown(wait=False)
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                (private / "s").unlink()
            private.rmdir()
        self._server = server

    def stop(self, grace_s: float = 5.0) -> None:
        """Take no more calls, let those under way end, for at most grace_s."""
        if self._server is None or self._pool is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=True)
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


def _handlers(engine: Engine) -> grpc.GenericRpcHandler:
    """Requests and responses are bytes here: gRPC would turn a request that
    cannot be decoded into INTERNAL and a traceback.
    """

    def attach(data: bytes) -> Message:
        intent = wire.attach_intent(wire.decode(pb.AttachRequest, data))
        return wire.attach_response(engine.attach(intent))

    def detach(data: bytes) -> Message:
        request = wire.decode(pb.DetachRequest, data)
        engine.detach(request.workload_id, request.netns.netns_path, request.netns.if_name)
        return pb.DetachResponse()

    def status(data: bytes) -> Message:
        wire.decode(pb.StatusRequest, data)
        engine.status()
        return pb.StatusResponse()

    def list_(data: bytes) -> Message:
        request = wire.decode(pb.ListRequest, data)
        found = engine.list(request.workload_id)
        return pb.ListResponse(attachments=[wire.attachment(one) for one in found])

    methods = {"Attach": attach, "Detach": detach, "Status": status, "List": list_}
    assert methods.keys() == {method.name for method in _SERVICE.methods}
    return grpc.method_handlers_generic_handler(
        _SERVICE.full_name,
        {name: grpc.unary_unary_rpc_method_handler(_call(m)) for name, m in methods.items()},
    )


def _call(method: Callable[[bytes], Message]) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """The method with its errors as status codes, never a traceback."""

    def serve(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return method(data).SerializeToString()
        except WorkloadError as error:
            code, text = error.code, str(error)
        except Exception as error:
            log.exception("%s failed", method.__name__)
            code = grpc.StatusCode.INTERNAL
            text = f"{method.__name__}: unexpected {type(error).__name__}; see the service's log"
        # Outside of the handlers, so that no exception is chained to abort's.
        context.set_code(code)
        context.set_details(text)
        return b""

    return serve
