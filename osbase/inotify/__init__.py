# SPDX-License-Identifier: Apache-2.0
"""Watch files that other programs replace (inotify(7)).

    async for _ in changes(["/run/pki/ca.pem", "/run/pki/cert.pem"]):
        ...  # now, and after each burst of changes: read them

The kind of a change is not reported, since the caller has to read the files
anyhow. A file may be written in place, replaced by a rename, reached through
links that are replaced (as Kubernetes does with mounted secrets), or removed.
The file or its directory may not exist yet. So the file is watched, and all
directories on the way to it, those of links to links included.
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

from osbase.supervisor import in_thread

# linux/inotify.h
_ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_MASK: Final = (
    _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO
    | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
)  # fmt: skip

QUIET_S: Final = 0.5
"""Wait after the last event: replacing several files takes a moment."""

EVERY_S: Final = 600.0
"""Not every file system reports changes by other hosts (NFS)."""

_BURST: Final = 10  # a burst ends at this multiple of the quiet time
_READ: Final = 1 << 16
_LINKS_MAX: Final = 40  # links on the way to a file; the kernel's MAXSYMLINKS
_libc = ctypes.CDLL(None, use_errno=True)


async def changes(
    paths: Iterable[str], *, quiet_s: float = QUIET_S, every_s: float = EVERY_S
) -> AsyncGenerator[None]:
    """Yield at once, after each burst of changes, and periodically, forever.

    Raises OSError when the kernel gives no inotify instance (EMFILE) or no more
    watches (ENOSPC), see inotify(7) for the limits.
    """
    wanted = tuple(paths)
    descriptor = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, _drain, descriptor, came)
    try:
        while True:
            # Watch before the caller reads: later changes are then reported.
            await in_thread(_watch, descriptor, wanted)
            yield
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await came.wait()
            # If something changes all the time, a burst has no end.
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
    """Return the places that change when `path` gets another file or other
    content: each existing directory in which a component of the path is looked
    up, also on the paths of links; and the file itself, which may be written by
    another name. Blocks.
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
                # A link that leads to itself counts as a missing file.
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
    """Add watches. Repeated ones have no effect; missing paths are skipped."""
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
