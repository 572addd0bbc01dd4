# SPDX-License-Identifier: Apache-2.0
"""What the client raises: one family, go-cni's members and two of ours."""

from typing import cast

import grpc


class CNIError(Exception):
    """Base; its text says operation, object and reason."""


class CNINotInitializedError(CNIError):
    """No network is loaded, or the service is away or has no prefix yet.

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


class ServiceError(CNIError):
    """The service refused: no address left, exists already, kernel error."""


_BY_CODE: dict[grpc.StatusCode, type[CNIError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidConfigError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAVAILABLE: CNINotInitializedError,
}


def from_rpc(operation: str, error: grpc.RpcError) -> CNIError:
    """Wrap an RPC's error; raise the result `from` it."""
    # What a stub raises is a grpc.Call as well, which grpc's types cannot say.
    call = cast(grpc.Call, error)
    code = call.code()
    return _BY_CODE.get(code, ServiceError)(f"{operation}: {code.name}: {call.details()}")
