# SPDX-License-Identifier: Apache-2.0
"""A handler's view of its call, the same for both servers."""

import abc
import logging
from collections.abc import Callable

import grpc

log = logging.getLogger(__name__)

# Bytes; percent-encoding makes up to three of each. A client accepts 8 KiB of
# metadata, and otherwise only reports that there was more.
_DETAILS_MAX = 1996


class RpcError(Exception):
    """A handler raises it to end its call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class Call(abc.ABC):
    """A unary call. For the handler's thread only."""

    __slots__ = ()

    @abc.abstractmethod
    def time_remaining(self) -> float:
        """Return the seconds until the caller's deadline; <= 0: it is over."""


type Unary = Callable[[bytes, Call], bytes]


def short(method: str) -> str:
    """Return a method's name as errors begin with it: `attach` for
    `/package.Service/Attach`.
    """
    return method.rpartition("/")[2].lower()


def unexpected(method: str, error: BaseException) -> RpcError:
    """Return the status of a call whose handler failed; log the error."""
    log.error("%s failed", method, exc_info=error)
    return RpcError(
        grpc.StatusCode.INTERNAL,
        f"{short(method)}: unexpected {type(error).__name__}; see the service's log",
    )


def status(error: RpcError) -> tuple[int, bytes]:
    """Return code and details as they are sent. Details may have any length,
    and quote bytes that are not text, such as a file's name.
    """
    code: int = error.code.value[0]
    details = error.details.encode("utf-8", "backslashreplace")
    if len(details) > _DETAILS_MAX:
        details = details[:_DETAILS_MAX].decode("utf-8", "ignore").encode() + b" ..."
    return code, details
