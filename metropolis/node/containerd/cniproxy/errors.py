# SPDX-License-Identifier: Apache-2.0
"""What the client raises: one family, go-cni's errors and three of its own."""

from typing import cast

import grpc


class CNIError(Exception):
    """Base; the text names the operation, the object and the reason."""


class CNINotInitializedError(CNIError):
    """No network is loaded, or the service is away or not ready.

    go-cni: ErrCNINotInitialized. Trying again later may help.
    """


class InvalidConfigError(CNIError):
    """An argument or option cannot be used. go-cni: ErrInvalidConfig."""


class NotFoundError(CNIError):
    """No such network namespace or attachment. go-cni: ErrNotFound."""


class InvalidResultError(CNIError):
    """The service's answer is invalid. go-cni: ErrInvalidResult."""


class LoadError(CNIError):
    """An option failed in load(). go-cni: ErrLoad."""


class DeadlineExceededError(CNIError):
    """No answer in time; the request may be done or not. Call remove()."""


class CheckError(CNIError):
    """Something is not as setup() made it; the text lists every difference."""


class ServiceError(CNIError):
    """The service refused: no address left, exists already, kernel error, too
    many calls for one sandbox.
    """


_BY_CODE: dict[grpc.StatusCode, type[CNIError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidConfigError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAVAILABLE: CNINotInitializedError,
}


def is_unavailable(error: grpc.RpcError) -> bool:
    """Whether the service is away, not ready, or too busy."""
    return _call(error).code() is grpc.StatusCode.UNAVAILABLE


def from_rpc(operation: str, error: grpc.RpcError, *, ready: bool = False) -> CNIError:
    """Wrap an RPC's error; raise the result `from` it. ready: the service has
    a network to give, so this is not why it is unavailable.
    """
    code = _call(error).code()
    kind = ServiceError if ready else _BY_CODE.get(code, ServiceError)
    return kind(f"{operation}: {code.name}: {_call(error).details()}")


def _call(error: grpc.RpcError) -> grpc.Call:
    # A stub raises a grpc.Call, too, which grpc's types cannot express.
    return cast(grpc.Call, error)
