# SPDX-License-Identifier: Apache-2.0
"""The errors of the service's calls: one family, one code each."""

from typing import ClassVar

import grpc


class WorkloadError(Exception):
    """Base; its text is for the caller: operation, object, what to do."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class InvalidArgument(WorkloadError):
    """A field of the request is wrong; the text names it and its value.

    field: its path in the request, for code that must tell fields apart; "":
    no single one.
    """

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, text: str, *, field: str = "") -> None:
        super().__init__(text)
        self.field = field


class NotFound(WorkloadError):
    """There is no such network namespace, or it died during the call."""

    code = grpc.StatusCode.NOT_FOUND


class NotAttached(NotFound):
    """The workload has no such interface."""


class AlreadyExists(WorkloadError):
    """Something else has the name, the address or the interface."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(WorkloadError):
    """A process of the node has what was asked for; the text names both."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Exhausted(WorkloadError):
    """No address is left; the text names the prefixes and their sizes."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(WorkloadError):
    """Not now: no prefix yet, or busy with the same workload. Try again."""

    code = grpc.StatusCode.UNAVAILABLE


class Aborted(WorkloadError):
    """A watcher fell behind. Begin again."""

    code = grpc.StatusCode.ABORTED


class GivenUp(WorkloadError):
    """The caller does not wait any more; nothing was begun for it.

    A caller that has cancelled never sees it; the code is for others.
    """

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class KernelRefused(WorkloadError):
    """The kernel refused an operation; the text has operation and errno."""

    code = grpc.StatusCode.INTERNAL
