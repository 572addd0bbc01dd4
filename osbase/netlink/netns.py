# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: open a path safely, open sockets inside one.

setns(2) moves only the calling thread, so a socket of another namespace costs
three system calls and no process: enter, open, return. A socket stays in the
namespace in which it was opened, and threads of the host's namespace use it.

A thread that cannot return must never run anything else: all that it opens
would be in the workload's namespace, and so would the threads it starts.
Returning fails only when a privilege is taken away mid-call (memory shortage is
retried). Then `lost` is called, which ends the process: services built on this
keep their state in the kernel and are restarted. The alternative, a dedicated
thread that is discarded, was measured: the hand-over costs 67 us, five times
the whole visit.
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
_SIOCETHTOOL = 0x8946
_IFF_UP = 1
_ETHTOOL_GLINK = 0x0A
_IFREQ_DATA = struct.Struct("=16sQ16x")  # struct ifreq with a pointer
_IFREQ_LO = b"lo".ljust(40, b"\0")  # struct ifreq


def shorten(text: str, limit: int = 64) -> str:
    """Quote a text for an error message, and cut a long one."""
    if len(text) <= limit:
        return ascii(text)
    return f"{text[:limit]!a}... ({len(text)} characters)"


def open_path(path: str) -> int:
    """Open the network namespace at `path`; return a close-on-exec descriptor.

    Raises NetnsMissing when there is no such file and NotNetns for a file that
    cannot be a namespace. Opens regular files only, as namespaces are, so that
    a FIFO does not block and a device is not touched. Only entering it shows
    whether it is a network namespace: see open_socket.
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
    """Return a descriptor of the calling thread's network namespace."""
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

    Keep the block short and never start a thread or a process in it. Raises
    NotNetns when the file is not a network namespace (setns(2), EINVAL).
    """

    __slots__ = ("_lost", "_netns_fd", "_return_fd")

    def __init__(
        self, netns_fd: int, return_fd: int, *, lost: Callable[[OSError], None] = _end_process
    ) -> None:
        self._netns_fd = netns_fd
        self._return_fd = return_fd
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
        _return(self._return_fd, self._lost)


def _return(return_fd: int, lost: Callable[[OSError], None]) -> None:
    for attempt in range(5):
        try:
            os.setns(return_fd, CLONE_NEWNET)
            return
        except OSError as error:
            if error.errno != errno.ENOMEM or attempt == 4:
                lost(error)
                return
            time.sleep(0.01 * 2**attempt)


def open_socket(netns_fd: int, return_fd: int) -> socket.socket:
    """Open a route socket inside the namespace; see transport.open_raw. Raises
    NotNetns.
    """
    with Inside(netns_fd, return_fd):
        return open_raw()


def cookie(inner: socket.socket) -> int:
    """Return the identity of a socket's namespace: 64 bits, never reused before
    a reboot, unlike device and inode number of the namespace's file.
    """
    value: int = struct.unpack("=Q", inner.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
    return value


def loopback_is_up(inner: socket.socket) -> bool:
    """Return whether `lo` is up in a socket's namespace (netdevice(7))."""
    answer = fcntl.ioctl(inner.fileno(), _SIOCGIFFLAGS, _IFREQ_LO)
    return bool(struct.unpack_from("=H", answer, 16)[0] & _IFF_UP)


def look_at_carrier(inner: socket.socket, name: str) -> None:
    """Have the kernel look at a link's carrier at once, in a socket's
    namespace; else a worker of its does, later, and the link sends nothing
    until then. Raises OSError.

    It does so when it is asked for the carrier (linkwatch_sync_dev, since Linux
    6.6; ethtool_op_get_link).
    """
    import array  # not needed before an attach

    value = array.array("I", [_ETHTOOL_GLINK, 0])
    address, _ = value.buffer_info()
    fcntl.ioctl(inner.fileno(), _SIOCETHTOOL, _IFREQ_DATA.pack(name.encode(), address))
