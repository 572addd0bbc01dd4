# SPDX-License-Identifier: Apache-2.0
"""What a handler has of its call, whichever server runs it."""

import abc
import logging
from collections.abc import Callable

import grpc

log = logging.getLogger(__name__)

# Bytes, of which percent-encoding makes up to three each: a client takes 8 KiB
# of metadata, or hears nothing but that it was more.
_DETAILS_MAX = 1996


class RpcError(Exception):
    """What a handler raises to end its call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class Call(abc.ABC):
    """A call that one message answers. For the handler's thread only."""

    __slots__ = ()

    @abc.abstractmethod
    def time_remaining(self) -> float:
        """For how many seconds the caller still waits; 0 or less: not."""


type Unary = Callable[[bytes, Call], bytes]


def short(method: str) -> str:
    """A method's name as its errors begin: of `/package.Service/Attach`,
    `attach`.
    """
    return method.rpartition("/")[2].lower()


def unexpected(method: str, error: BaseException) -> RpcError:
    """The status of a call whose handler failed; the rest is logged."""
    log.error("%s failed", method, exc_info=error)
    return RpcError(
        grpc.StatusCode.INTERNAL,
        f"{short(method)}: unexpected {type(error).__name__}; see the service's log",
    )


def status(error: RpcError) -> tuple[int, bytes]:
    """As it is sent. Details may quote what is no text, as a file's name can
    be, or have any length.
    """
    code: int = error.code.value[0]
    details = error.details.encode("utf-8", "backslashreplace")
    if len(details) > _DETAILS_MAX:
        details = details[:_DETAILS_MAX].decode("utf-8", "ignore").encode() + b" ..."
    return code, details
