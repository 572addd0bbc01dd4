# SPDX-License-Identifier: Apache-2.0
"""Common parts of the commands that launch something."""

import argparse
import asyncio
import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from typing import NoReturn

from metropolis.test.launch.child import ChildError
from metropolis.test.launch.cri import CriError
from metropolis.test.launch.images import ImagesError
from metropolis.test.launch.lab import LabError, enter_namespaces
from metropolis.test.launch.node import NodeError
from metropolis.test.launch.state import StateError
from osbase.test.agent.client import AgentError
from osbase.test.qemu.config import ConfigError
from osbase.test.qemu.vm import VmError

# The exit status when no check ran.
FAILED = 2

# Expected errors, which are printed without a traceback.
_EXPECTED = (
    AgentError, ChildError, ConfigError, CriError, ImagesError, LabError, NodeError, StateError,
    VmError,
)  # fmt: skip


def say(message: str) -> None:
    """Print progress."""
    print(message, file=sys.stderr, flush=True)


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the common arguments. doc: the module's."""
    made = argparse.ArgumentParser(
        prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--exit", action="store_true", help="end after the table")
    made.add_argument("--json", action="store_true", help="print one line of JSON, no table")
    return made


class Verdict:
    """The result of the printed table: from then on it is the exit status, also
    when a signal ends the command.
    """

    def __init__(self) -> None:
        self.status: int | None = None

    def shown(self, ok: bool) -> None:
        """Set the result. ok: whether every check was ok."""
        self.status = 0 if ok else 1


type Work = Callable[[Verdict], Coroutine[None, None, None]]


async def _until_signalled(work: Work) -> int | None:
    loop = asyncio.get_running_loop()
    verdict = Verdict()
    task = asyncio.create_task(work(verdict))
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        say("\nstopping")
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not caught:
            raise
        if verdict.status is None:
            return 128 + caught[0]
    return verdict.status


def run(name: str, work: Work) -> int | None:
    """Do the work in new namespaces; return its exit status, or None after an
    error, which is printed. SIGINT, SIGTERM and SIGHUP end it in good order;
    the status is 128 plus their number before the verdict, else the verdict's.
    """
    try:
        enter_namespaces()
        return asyncio.run(_until_signalled(work))
    except _EXPECTED as error:
        say(f"{name}: {error}")
    except Exception:
        traceback.print_exc()
    return None


def exit_with(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a main with the arguments of the process, and end the process."""
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
