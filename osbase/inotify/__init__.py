# SPDX-License-Identifier: Apache-2.0
"""Files that others replace: to be told when to look again (inotify(7)).

    async for _ in changes(["/run/pki/ca.pem", "/run/pki/cert.pem"]):
        ...  # now, and after each burst of changes: read them

What has happened is not told, since whoever is told has to read all of it
anyhow. A file may be written in place, replaced by a rename, reached by links
that are replaced (as Kubernetes does with mounted secrets), removed, or not be
there yet, nor its directory: all directories are watched that the way to it
goes through, those of links to links included, and the file itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Final

# linux/inotify.h
_ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_MASK: Final = (
    _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO
    | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
)  # fmt: skip

QUIET_S: Final = 0.5
"""After the last event: who replaces several files takes a moment."""

EVERY_S: Final = 600.0
"""Not every file system tells of what others do (NFS)."""

_BURST: Final = 10  # times as long as it has to be quiet, at most
_READ: Final = 1 << 16
_LINKS_MAX: Final = 40  # on the way to a file, as the kernel's MAXSYMLINKS
_libc = ctypes.CDLL(None, use_errno=True)


async def changes(
    paths: Iterable[str], *, quiet_s: float = QUIET_S, every_s: float = EVERY_S
) -> AsyncGenerator[None]:
    """At once, after each burst of changes, and every so often, without end.

    Raises OSError when the kernel gives no inotify instance (EMFILE) or no more
    watches (ENOSPC), see inotify(7) for the limits.
    """
    wanted = tuple(paths)
    descriptor = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, _drain, descriptor, came)
    try:
        while True:
            # Before the files are read: what changes from then on is told.
            await asyncio.to_thread(_watch, descriptor, wanted)
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await came.wait()
            # Where something changes all the time, there is no end to wait for.
            end = loop.time() + _BURST * quiet_s
            while came.is_set():
                came.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(min(loop.time() + quiet_s, end)):
                        await came.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def places(path: str) -> set[Path]:
    """Return where something changes when another file is found at `path`, or
    another content: each directory in which a part of the way is looked up,
    also of the ways that links on it lead, as far as it is there; and the
    file, which may have another name to be written by. Blocks.
    """
    found: set[Path] = set()
    here = Path("/")
    parts, links = [*Path.cwd().parts, *Path(path).parts], 0
    while parts:
        part = parts.pop(0)
        if part in ("/", ".."):
            here = here.parent if part == ".." else Path("/")
            continue
        found.add(here)
        try:
            if stat.S_ISLNK((here / part).lstat().st_mode):
                # One that leads to itself is as good as a missing file.
                links += 1
                if links > _LINKS_MAX:
                    return found
                parts = [*(here / part).readlink().parts, *parts]
            else:
                here /= part
        except OSError:
            return found
    return found | {here}


def _watch(descriptor: int, paths: tuple[str, ...]) -> None:
    """Watching twice is watching once; what is gone is not watched."""
    for place in set().union(*map(places, paths)):
        try:
            _call("inotify_add_watch", descriptor, os.fsencode(place), _MASK)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise


def _drain(descriptor: int, came: asyncio.Event) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, _READ):
            came.set()


def _call(name: str, *arguments: int | bytes) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
