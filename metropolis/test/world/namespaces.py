# SPDX-License-Identifier: Apache-2.0
"""New namespaces for the program, and network namespaces within them."""

import ctypes
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_OWN_NETNS = "/proc/thread-self/ns/net"


class WorldError(Exception):
    """The namespaces cannot be made; the text has the reason."""


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


def enter_namespaces() -> None:
    """Enter new user, mount and network namespaces, as root, with one thread.

    /run is then empty. It works for root and for any user who may make user
    namespaces. Raises WorldError.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        _mount("", "/", "", _MS_REC | _MS_PRIVATE)
        _mount("tmpfs", "/run", "tmpfs", 0)
    except OSError as error:
        raise WorldError(
            f"user, mount and network namespaces are needed: {error}; check "
            "/proc/sys/kernel/unprivileged_userns_clone and user.max_user_namespaces"
        ) from error


class Netns:
    """A network namespace with a name in the file system, like runtimes make.

    It exists until `close`; this process keeps no other reference.
    """

    _numbers: Iterator[int] = itertools.count()

    def __init__(self) -> None:
        self.path = f"/run/netns-{os.getpid()}-{next(self._numbers)}"
        Path(self.path).touch()
        home = os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.unshare(os.CLONE_NEWNET)
            try:
                _mount(_OWN_NETNS, self.path, "", _MS_BIND)
            finally:
                os.setns(home, os.CLONE_NEWNET)
        except BaseException:
            os.unlink(self.path)
            raise
        finally:
            os.close(home)

    def inside[T](self, make: Callable[[], T]) -> T:
        """Call `make` in the namespace, on this thread; return its result."""
        home = os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.setns(there, os.CLONE_NEWNET)
            try:
                return make()
            finally:
                os.setns(home, os.CLONE_NEWNET)
        finally:
            os.close(there)
            os.close(home)

    def enter(self) -> None:
        """Move the calling thread into the namespace, for good."""
        there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.setns(there, os.CLONE_NEWNET)
        finally:
            os.close(there)

    def close(self) -> None:
        """Remove the name, and with it the namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(self.path.encode(), _MNT_DETACH):
            error = ctypes.get_errno()
            raise OSError(error, f"unmount {self.path}: {os.strerror(error)}")
        os.unlink(self.path)
