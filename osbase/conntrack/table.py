# SPDX-License-Identifier: Apache-2.0
"""The table of the calling thread's network namespace."""

import errno
import os
import socket
from typing import Final

from osbase.conntrack import sources
from osbase.conntrack.ctnetlink import NETLINK_NETFILTER
from osbase.conntrack.sources import Census
from osbase.netlink.errors import errno_name
from osbase.netlink.transport import NetlinkSocket, open_raw

_COUNT: Final = "/proc/sys/net/netfilter/nf_conntrack_count"
_LIMIT: Final = "/proc/sys/net/netfilter/nf_conntrack_max"
_BUCKETS: Final = "/sys/module/nf_conntrack/parameters/hashsize"


class ConntrackError(Exception):
    """Something could not be read or set; the message has the errno."""


def count() -> int:
    """Return the number of entries. Raises ConntrackError."""
    return _read(_COUNT)


def limit() -> int:
    """Return the entries allowed in each namespace. Raises ConntrackError."""
    return _read(_LIMIT)


def raise_limit(wanted: int) -> bool:
    """Raise the machine's limit of flows to `wanted`, never lower it. Set as
    many buckets, so that a look-up stays one step.

    Return False when this is not the machine's first network namespace, or its
    kernel settings are not writable. Raises ConntrackError.
    """
    return _at_least(_LIMIT, wanted) and _at_least(_BUCKETS, wanted)


def census() -> Census:
    """Dump the table and count its entries. Blocks; memory is bounded.

    Raises NetlinkError.
    """
    with NetlinkSocket(_open()) as sock:
        return sources.take(sock.stream(sources.dump()))


def flush() -> None:
    """Delete all flows, for tests and benches. Raises NetlinkError."""
    with NetlinkSocket(_open()) as sock:
        sock.batch([sources.delete_all()])


def _open() -> socket.socket:
    return open_raw(NETLINK_NETFILTER)


def _read(path: str) -> int:
    try:
        return _number(path)
    except OSError as error:
        raise ConntrackError(f"read {path}: {errno_name(error.errno or 0)}") from error


def _number(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 64)
    finally:
        os.close(fd)
    try:
        return int(text)
    except ValueError as error:
        raise ConntrackError(f"read {path}: {text!r} is no number") from error


def _at_least(path: str, wanted: int) -> bool:
    try:
        if _number(path) >= wanted:
            return True
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(wanted).encode())
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EOPNOTSUPP):
            return False
        name = errno_name(error.errno or 0)
        raise ConntrackError(f"set {path} to {wanted}: {name}") from error
    return True
