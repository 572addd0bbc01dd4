# SPDX-License-Identifier: Apache-2.0
"""Children of the command: bazelw, and loops that keep cores busy.

Each is in a session of its own, so Ctrl-C on the terminal reaches the command
alone, which ends them by their process ids. When the command dies some other
way, the kernel signals them (prctl(2), PR_SET_PDEATHSIG).
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

_STDERR = 2

# Variables that `bazel run` and Python's launcher set for the command only.
_OURS = ("BUILD_", "PYTHON", "RUNFILES_", "JAVA_RUNFILES", "TEST_")


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Return roughly the environment in which the user called `bazelw run`."""
    return {name: value for name, value in ours.items() if not name.startswith(_OURS)}


async def _start(dies_by: str, command: Sequence[str], **options: object) -> Process:
    return await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", dies_by, *command,
        stdin=DEVNULL,
        start_new_session=True,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


@contextlib.asynccontextmanager
async def busy_loops(count: int) -> AsyncIterator[list[int]]:
    """Keep `count` cores busy until the block is left; yield process ids."""
    loops: list[Process] = []
    try:
        for _ in range(count):
            loops.append(await _start("KILL", [sys.executable, "-c", "while True: pass"]))
        yield [loop.pid for loop in loops]
    finally:
        for loop in loops:
            with contextlib.suppress(ProcessLookupError):
                loop.kill()
        for loop in loops:
            await loop.wait()


class Bazel:
    """bazelw of a workspace, called in `directory`, which is in it."""

    def __init__(self, workspace: Path, directory: Path) -> None:
        self._bazelw = str(workspace / "bazelw")
        self._directory = directory

    async def run(self, *arguments: str, capture: bool = False) -> tuple[int, str]:
        """Return the exit status and, if captured, stdout; else that is on
        stderr with the rest.

        A cancellation interrupts Bazel and waits for its end. A second one
        interrupts it again, like a second Ctrl-C.
        """
        process = await _start(
            "INT",
            [self._bazelw, *arguments],
            cwd=self._directory,
            env=environment(os.environ),
            stdout=PIPE if capture else _STDERR,
        )
        communicating = asyncio.create_task(process.communicate())
        interrupted = False
        while not communicating.done():
            try:
                await asyncio.wait({communicating})
            except asyncio.CancelledError:
                interrupted = True
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
        if interrupted:
            raise asyncio.CancelledError
        out, _ = communicating.result()
        return process.returncode or 0, (out or b"").decode()
