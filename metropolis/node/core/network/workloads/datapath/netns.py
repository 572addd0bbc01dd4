# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: that of the host, and those of workloads."""

import os
import socket
from types import TracebackType
from typing import Self

from metropolis.node.core.network.workloads.errors import (
    InvalidArgument,
    KernelRefused,
    NotFound,
)
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink import netns as namespaces
from osbase.netlink.errors import NetnsMissing, NotNetns, errno_name
from osbase.netlink.transport import open_raw


class KernelNetns:
    """A workload's open namespace: its file, and a route socket inside. Leave
    it by `with`.
    """

    __slots__ = ("cookie", "fd", "inner")

    def __init__(self, fd: int, inner: socket.socket, cookie: int) -> None:
        self.fd = fd
        self.inner = inner
        self.cookie = cookie

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.inner.close()
        os.close(self.fd)


class HostNetns:
    """The file of the host's namespace, open while anything refers to this, so
    that `close` takes it from no thread that has entered another namespace: a
    thread that cannot return ends the process.
    """

    __slots__ = ("cookie", "fd")

    def __init__(self) -> None:
        self.fd = namespaces.open_current()
        with open_raw() as raw:
            self.cookie = namespaces.cookie(raw)

    def __del__(self) -> None:
        os.close(self.fd)


def open_netns(path: str, host: HostNetns) -> KernelNetns:
    """Open the namespace at a path.

    Raises InvalidArgument, NotFound or KernelRefused.
    """
    try:
        fd = namespaces.open_path(path)
    except NetnsMissing as error:
        raise NotFound(f"netns.netns_path {error}") from error
    except NotNetns as error:
        raise InvalidArgument(f"netns.netns_path {error}") from error
    except OSError as error:
        raise KernelRefused(
            f"open network namespace {show(path)}: {errno_name(error.errno or 0)}"
        ) from error
    try:
        inner = namespaces.open_socket(fd, host.fd)
        try:
            return KernelNetns(fd, inner, namespaces.cookie(inner))
        except BaseException:
            inner.close()
            raise
    except BaseException as error:
        os.close(fd)
        if isinstance(error, NotNetns):
            raise InvalidArgument(f"netns.netns_path {show(path)} {error}") from error
        if isinstance(error, OSError):
            raise KernelRefused(
                f"enter network namespace {show(path)}: {errno_name(error.errno or 0)}"
            ) from error
        raise
