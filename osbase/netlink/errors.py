# SPDX-License-Identifier: Apache-2.0
"""The errors of this package: one family, each naming the operation."""

import errno as errno_module
import os
from collections.abc import Sequence
from dataclasses import dataclass


def errno_name(number: int) -> str:
    """Return `EEXIST` for 17, `errno 4711` for a number without a name."""
    return errno_module.errorcode.get(number, f"errno {number}")


class NetlinkError(Exception):
    """Anything that went wrong in talking to the kernel."""


class ProtocolError(NetlinkError):
    """A reply is not valid netlink: it is truncated or has wrong lengths.

    The socket is not usable any more: close it.
    """


class ReplyTimeout(NetlinkError):
    """The kernel did not answer in time. It may have done the request."""


class ReplyLost(NetlinkError):
    """The kernel had no room for its answer (ENOBUFS), or the socket failed.

    It may have done the request.
    """


class DumpInterrupted(NetlinkError):
    """The objects changed during every attempt to list them."""


@dataclass(frozen=True)
class RequestError:
    """A request of a batch that the kernel refused.

    index: position in the batch; kind: the request's message type; what: the
    request in words, for people; errno: positive; text: the kernel's extended
    acknowledgement, or empty.
    """

    index: int
    kind: int
    what: str
    errno: int
    text: str = ""

    def __str__(self) -> str:
        reason = self.text or os.strerror(self.errno)
        return f"{self.what}: {errno_name(self.errno)} ({reason})"


class BatchError(NetlinkError):
    """The kernel refused some requests; it carried out all others."""

    def __init__(self, errors: Sequence[RequestError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(str(error) for error in self.errors))


class NotNetns(NetlinkError):
    """The path exists and is not a network namespace, or cannot be used."""


class NetnsMissing(NetlinkError):
    """There is no file at the path of the network namespace."""
