# SPDX-License-Identifier: Apache-2.0
"""Programs that run beside the nodes, and never longer than the launcher."""

import asyncio
import contextlib
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

# Seconds within which a program has to report that it serves.
_READY_S = 60.0


class ChildError(Exception):
    """A program is missing or did not start; the text ends with its output."""


@contextlib.asynccontextmanager
async def child(name: str, *arguments: str, log: Path, ready: bytes) -> AsyncIterator[None]:
    """Run a program until the block is left, then end it by SIGTERM.

    log: gets its stderr, as far as it can be written. ready: a regular
    expression for the line with which the program reports that it serves; the
    block begins then.

    The program ends with this process in any case, and is in a session that
    Ctrl-C on the terminal does not reach.
    """
    binary = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        raise ChildError(f"{name} not found; run inside the devroot (./bazelw)")
    process = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", binary, *arguments,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        start_new_session=True,
    )  # fmt: skip
    up = asyncio.Event()
    said: list[bytes] = []

    async def follow() -> None:
        with log.open("wb", buffering=0) as file:
            while process.stderr is not None and (line := await _line(process.stderr)):
                # The program goes on without a log, but not with a full pipe.
                with contextlib.suppress(OSError):
                    file.write(line)
                if not up.is_set():
                    said.append(line)
                if re.search(ready, line):
                    up.set()

    following = asyncio.create_task(follow())
    started = asyncio.create_task(up.wait())
    try:
        await asyncio.wait(
            {started, following}, timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not up.is_set():
            text = b"".join(said).decode(errors="replace").strip()
            how = "ended" if following.done() else f"not ready after {_READY_S:g} s"
            raise ChildError(f"{name}: {how}: {text or 'without a word'}")
        yield
    finally:
        started.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        await following


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return a line, or a part of a very long one; b"" at the end."""
    try:
        return await reader.readuntil()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await reader.readexactly(error.consumed)
