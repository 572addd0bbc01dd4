# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: open a path safely, open sockets inside one.

setns(2) moves only the calling thread, so a socket of another namespace costs
three system calls and no process: enter, open, return. A socket stays in the
namespace in which it was opened; work is done over it from home.

A thread that cannot return home must never run anything else: what it opened
next would silently land in a workload's namespace, as would the threads it
starts. Returning fails only when a privilege is taken away mid-call (memory
shortage is retried). Then `lost` is called, which ends the process: services
built on this keep their state in the kernel and are restarted. A dedicated
thread that is thrown away instead was measured: the hand-over costs 67 us,
five times what the whole visit does.
"""

import errno
import fcntl
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from types import TracebackType

from osbase.netlink.errors import NetnsMissing, NotNetns, errno_name
from osbase.netlink.transport import SO_NETNS_COOKIE, open_raw

CLONE_NEWNET = 0x40000000
PATH_MAX = 4096  # with the final NUL
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
_IFREQ_LO = b"lo".ljust(40, b"\0")  # struct ifreq


def shorten(text: str, limit: int = 64) -> str:
    """The text quoted for an error message, cut when long."""
    if len(text) <= limit:
        return ascii(text)
    return f"{text[:limit]!a}... ({len(text)} characters)"


def open_path(path: str) -> int:
    """A file descriptor of the network namespace at `path`, close-on-exec.

    Raises NetnsMissing when there is no such file and NotNetns for what cannot
    be a namespace. Opens nothing but regular files, which namespaces are, so
    that a FIFO does not block and a device is not touched. That it is one of a
    network is found by entering it: see open_socket.
    """
    if not path.startswith("/"):
        raise NotNetns(f"{shorten(path)} is not an absolute path")
    if "\0" in path or len(os.fsencode(path)) >= PATH_MAX:
        raise NotNetns(f"{shorten(path)} cannot be a path: NUL, or over {PATH_MAX - 1} bytes")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NotNetns(f"{shorten(path)} is not a network namespace")
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        name = errno_name(error.errno or 0)
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH):
            raise NetnsMissing(f"{shorten(path)} does not exist ({name})") from error
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO):
            raise
        raise NotNetns(f"{shorten(path)} cannot be opened: {name}") from error


def open_current() -> int:
    """A file descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _end_process(error: OSError) -> None:
    sys.stderr.write(
        f"fatal: a thread cannot return to its network namespace: {error}; "
        "ending the process, since all it did would land in another one\n"
    )
    sys.stderr.flush()
    os._exit(70)


class Inside:
    """Runs a `with` block in the namespace, on the calling thread.

    Keep the block short and never start a thread or a process in it. NotNetns
    when the file is not of a network namespace: setns(2), EINVAL.
    """

    __slots__ = ("_home_fd", "_lost", "_netns_fd")

    def __init__(
        self, netns_fd: int, home_fd: int, *, lost: Callable[[OSError], None] = _end_process
    ) -> None:
        self._netns_fd = netns_fd
        self._home_fd = home_fd
        self._lost = lost

    def __enter__(self) -> None:
        try:
            os.setns(self._netns_fd, CLONE_NEWNET)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise NotNetns("is not a network namespace") from error
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _return(self._home_fd, self._lost)


def _return(home_fd: int, lost: Callable[[OSError], None]) -> None:
    for attempt in range(5):
        try:
            os.setns(home_fd, CLONE_NEWNET)
            return
        except OSError as error:
            if error.errno != errno.ENOMEM or attempt == 4:
                lost(error)
                return
            time.sleep(0.01 * 2**attempt)


def open_socket(netns_fd: int, home_fd: int) -> socket.socket:
    """A route socket inside the namespace; see transport.open_raw. Raises
    NotNetns.
    """
    with Inside(netns_fd, home_fd):
        return open_raw()


def cookie(inner: socket.socket) -> int:
    """The identity of a socket's namespace, 64 bits, not reused until reboot.

    Unlike device and inode number of the namespace's file, which are.
    """
    value: int = struct.unpack("=Q", inner.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
    return value


def loopback_is_up(inner: socket.socket) -> bool:
    """Whether `lo` is up in a socket's namespace (netdevice(7))."""
    answer = fcntl.ioctl(inner.fileno(), _SIOCGIFFLAGS, _IFREQ_LO)
    return bool(struct.unpack_from("=H", answer, 16)[0] & _IFF_UP)
