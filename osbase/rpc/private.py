# SPDX-License-Identifier: Apache-2.0
"""Check the parts of grpcio's private cygrpc that osbase.rpc.server uses.

grpcio promises nothing about them. `problems` compares names and signatures,
and tries those that need no server; the contract suite tests the behaviour.
"""

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import grpc

MODULE = "grpc._cython.cygrpc"

# Parameters after self, in their order; the rest of a signature is not used.
METHODS = {
    "Server.add_http2_port": ("address", "server_credentials"),
    "Server.cancel_all_calls": (),
    "Server.destroy": (),
    "Server.register_completion_queue": ("queue",),
    "Server.register_method": ("fully_qualified_method",),
    "Server.request_call": ("call_queue", "server_queue", "tag"),
    "Server.request_registered_call": ("call_queue", "server_queue", "method", "tag"),
    "Server.shutdown": ("queue", "tag"),
    "Server.start": ("backup_queue",),
    "CompletionQueue.poll": ("deadline",),
    "CompletionQueue.shutdown": (),
    "Call.cancel": ("error_code", "details"),
    "Call.start_server_batch": ("operations", "tag"),
    "ReceiveCloseOnServerOperation.cancelled": (),
    "ReceiveMessageOperation.message": (),
}
ATTRIBUTES = (
    "BatchOperationEvent.batch_operations",
    "BatchOperationEvent.completion_type",
    "BatchOperationEvent.success",
    "BatchOperationEvent.tag",
    "CallDetails.deadline",
    "CallDetails.method",
    "CompletionType.queue_shutdown",
    "CompletionType.queue_timeout",
    "RequestCallEvent.call",
    "RequestCallEvent.call_details",
    "RequestCallEvent.completion_type",
    "RequestCallEvent.success",
    "RequestCallEvent.tag",
    "ServerShutdownEvent.tag",
    "StatusCode.ok",
)
# Arguments as they are given.
MADE: dict[str, tuple[object, ...]] = {
    "ReceiveCloseOnServerOperation": (0,),
    "ReceiveMessageOperation": (0,),
    "SendInitialMetadataOperation": (None, 0),
    "SendMessageOperation": (b"", 0),
    "SendStatusFromServerOperation": (None, 0, b"", 0),
}


def problems(module: ModuleType | None = None) -> list[str]:
    """Return the changes, one line each; []: the module is usable. module:
    inspected instead of the real one.
    """
    try:
        found: Any = module or importlib.import_module(MODULE)
    except ImportError as error:
        return [f"{MODULE} cannot be imported: {error}"]
    return [*_absent(found), *_signatures(found), *_unlike(found)]


def explain(changed: list[str]) -> str:
    """Return a text for a log or an error."""
    return (
        f"grpcio {grpc.__version__} is not as osbase.rpc.server uses it "
        f"({len(changed)} differences): {'; '.join(changed)}"
    )


def _get(module: Any, path: str) -> Any:
    found = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _absent(module: Any) -> Iterator[str]:
    for path in (*MADE, *ATTRIBUTES):
        if _get(module, path) is None:
            yield f"there is no {path}"


def _signatures(module: Any) -> Iterator[str]:
    for path, expected in METHODS.items():
        method = _get(module, path)
        if method is None:
            yield f"there is no {path}"
            continue
        try:
            parameters = tuple(inspect.signature(method).parameters.values())[1:]
        except TypeError, ValueError:
            yield f"{path} tells no signature"
            continue
        names = tuple(one.name for one in parameters)
        further = [
            one.name
            for one in parameters[len(expected) :]
            if one.default is inspect.Parameter.empty
        ]
        if names[: len(expected)] != expected or further:
            yield f"{path} takes ({', '.join(names)}), not ({', '.join(expected)})"


def _unlike(module: Any) -> Iterator[str]:
    """Yield differences in behaviour that needs no server."""
    for name, arguments in MADE.items():
        try:
            getattr(module, name)(*arguments)
        except Exception as error:
            yield f"{name}{arguments} fails: {type(error).__name__}: {error}"
    try:
        module.Server([(b"grpc.so_reuseport", 0)], False).destroy()
    except Exception as error:
        yield f"a Server fails: {type(error).__name__}: {error}"
    try:
        queue = module.CompletionQueue()
        timeout = queue.poll(0)
        queue.shutdown()
        ends = (timeout.completion_type, timeout.tag, queue.poll().completion_type)
        types = module.CompletionType
        if ends != (types.queue_timeout, None, types.queue_shutdown):
            yield f"a queue without events says {ends}"
    except Exception as error:
        yield f"a CompletionQueue fails: {type(error).__name__}: {error}"
