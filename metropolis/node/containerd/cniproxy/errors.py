# SPDX-License-Identifier: Apache-2.0
"""What the client raises: one family, go-cni's members and three of ours."""

from typing import cast

import grpc


class CNIError(Exception):
    """Base; its text says operation, object and reason."""


class CNINotInitializedError(CNIError):
    """No network is loaded, or the service is away or not ready.

    go-cni: ErrCNINotInitialized. Trying again later may help.
    """


class InvalidConfigError(CNIError):
    """An argument or option cannot be used. go-cni: ErrInvalidConfig."""


class NotFoundError(CNIError):
    """No such network namespace or attachment. go-cni: ErrNotFound."""


class InvalidResultError(CNIError):
    """The service answered with what is none. go-cni: ErrInvalidResult."""


class LoadError(CNIError):
    """An option failed in load(). go-cni: ErrLoad."""


class DeadlineExceededError(CNIError):
    """No answer in time; what was asked may be done or not. Call remove()."""


class CheckError(CNIError):
    """Something is not as setup() made it; the text has all that differs."""


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
    a network to give, so that is not why it is unavailable.
    """
    code = _call(error).code()
    kind = ServiceError if ready else _BY_CODE.get(code, ServiceError)
    return kind(f"{operation}: {code.name}: {_call(error).details()}")


def _call(error: grpc.RpcError) -> grpc.Call:
    # What a stub raises is a grpc.Call as well, which grpc's types cannot say.
    return cast(grpc.Call, error)
