# SPDX-License-Identifier: Apache-2.0
"""A failing part of the network service is a problem in Status.

`explained` separates errors of the node (a file, a port, the kernel) from those
of this program: the former are one line with what to do about them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import Final

from metropolis.node.core.network.overlay.device import OverlayError
from metropolis.node.core.network.sysctls import SysctlError
from metropolis.node.core.network.time_servers import TimeError
from metropolis.node.core.network.uplink.uplink import LinkGoneError
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.errors import WorkloadError
from osbase.conntrack.table import ConntrackError
from osbase.net.stack import StackError
from osbase.netlink.errors import BatchError, NetlinkError
from osbase.nftables import NftablesError
from osbase.supervisor import Backoff, Context, Runnable, in_thread

LIVES_AFTER_S: Final = 5.0
"""After a part has run again for so long, its failure is no problem."""

_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 5.0

# Their texts need no type name.
_EXPECTED: Final = (
    ConntrackError,
    NetlinkError,
    NftablesError,
    OverlayError,
    StackError,
    SysctlError,
    TimeError,
    WorkloadError,
)

# What people can do. An OSError with another number is one of this program.
_CURES: Final = {
    errno.EACCES: "node core must be root, with all capabilities",
    errno.EADDRINUSE: "another program has it: stop that (`ss -lnp` shows it)",
    errno.EADDRNOTAVAIL: "give the node this address",
    errno.EAFNOSUPPORT: "the kernel lacks this protocol: load its module, or boot one that has it",
    errno.EIO: "replace the disk",
    errno.EISDIR: "remove the directory",
    errno.EMFILE: "allow node core more open files (RLIMIT_NOFILE)",
    errno.ENFILE: "end programs with many open files",
    errno.ENODEV: "it appears with its driver",
    errno.ENOENT: "make the file, or name another in the configuration",
    errno.ENOMEM: "free memory",
    errno.ENOSPC: "make room on the file system",
    errno.ENOTDIR: "remove the file that is in the place of a directory",
    errno.EOPNOTSUPP: "the kernel lacks this: load its module, or boot one that has it",
    errno.EPERM: "node core must be root, with all capabilities",
    errno.EROFS: "mount the file system writable",
}

log = logging.getLogger(__name__)


class Failures:
    """Sets conditions, one for each failing part, by its name."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions

    async def until_done(self, key: str, step: Callable[[], None], what: str) -> None:
        """Repeat a step, in a thread, until it succeeds; Status has its error
        meanwhile. The part does not fail, since that would end other parts
        that do not need the step.
        """
        backoff = Backoff(_RETRY_FIRST_S, _RETRY_MAX_S, _RETRY_MAX_S)
        while True:
            try:
                await in_thread(step)
            except Exception as error:
                text = explained(error)
                problem = f"{what}: {text or _cause(error)}"
                if self._conditions.set(key, problem):
                    log.error("%s", problem, exc_info=not text)
                await asyncio.sleep(backoff.died(0.0))
            else:
                self._conditions.clear(key)
                return

    def reported(self, name: str, runnable: Runnable) -> Runnable:
        """Return the runnable such that its failure is a problem of the node,
        until it has run again for a while. A vanished link is no problem.
        """

        async def run(ctx: Context) -> None:
            loop = asyncio.get_running_loop()
            later = loop.call_later(LIVES_AFTER_S, self._conditions.clear, name)
            try:
                await runnable(ctx)
            except LinkGoneError:
                self._conditions.clear(name)
                raise
            except Exception as error:
                self._conditions.set(name, f"{name}: {explained(error) or _cause(error)}")
                raise
            else:
                self._conditions.clear(name)
            finally:
                later.cancel()

        return run


def explained(error: BaseException) -> str:
    """Return the error as one line, with the cure where there is one; "" for an
    error of this program, whose traceback matters.
    """
    if isinstance(error, BaseExceptionGroup):
        texts = [explained(one) for one in error.exceptions]
        return texts[0] if all(texts) else ""
    if isinstance(error, LinkGoneError):
        return str(error)
    # Made by our own code, with a text that says what to do.
    own_words = isinstance(error, OSError) and error.errno is None
    of_system = isinstance(error, OSError) and _number(error) in _CURES
    if not own_words and not of_system and not isinstance(error, _EXPECTED):
        return ""
    cure = "" if own_words else _CURES.get(_number(error), "")
    return "; ".join(filter(None, [_cause(error), cure]))


def _number(error: BaseException) -> int:
    """Return the errno of an error of the system; 0: it has none."""
    if isinstance(error, BatchError):
        return error.errors[0].errno
    if isinstance(error, OSError):
        return error.errno or 0
    cause = error.__cause__
    if cause is None or (isinstance(error, OverlayError) and isinstance(cause, BatchError)):
        return 0  # the overlay's own hints are better
    return _number(cause)


def _cause(error: BaseException) -> str:
    """Return the text of a group's first error, or of the error itself. Only
    its first line, since nft(8) appends the whole program.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"  # without the number
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return text.partition("\n")[0] or type(error).__name__
