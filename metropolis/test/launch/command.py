# SPDX-License-Identifier: Apache-2.0
"""Common parts of the commands that launch something."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import NoReturn

from metropolis.test.launch import state
from metropolis.test.launch.checks import Check
from metropolis.test.launch.child import ChildError
from metropolis.test.launch.configuration import ConfigurationError
from metropolis.test.launch.cri import CriError
from metropolis.test.launch.images import ImagesError
from metropolis.test.launch.lab import LabError, enter_namespaces
from metropolis.test.launch.node import NodeError
from metropolis.test.launch.state import StateError
from metropolis.test.launch.verdict import Verdict
from osbase.test.agent.client import AgentError
from osbase.test.qemu import accel
from osbase.test.qemu.config import ConfigError
from osbase.test.qemu.vm import VmError

# The exit status when no check ran.
FAILED = 2

# Expected errors, which are printed without a traceback.
_EXPECTED = (
    AgentError, ChildError, ConfigError, ConfigurationError, CriError, ImagesError, LabError,
    NodeError, StateError, VmError,
)  # fmt: skip


def say(message: str) -> None:
    """Print progress."""
    print(message, file=sys.stderr, flush=True)


LOG_LEVELS = ("debug", "info", "warning", "error")


def typed(path: Path | None) -> Path | None:
    """Return a path of the command line as an absolute one: `bazel run` changes
    the directory.
    """
    return path and Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), path).absolute()


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the common arguments. doc: the module's."""
    made = argparse.ArgumentParser(
        prog=name,
        usage="%(prog)s [options]",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--exit", action="store_true", help="end after the table")
    made.add_argument("--json", action="store_true", help="print one line of JSON, no table")
    made.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="copy the logs of services, the consoles and captures there in the end, also after "
        "a failure or Ctrl-C; default: only those of a failure stay, until the next one",
    )
    made.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the node's configuration, a NodeConfig as protobuf text, checked before the boot; "
        "default: metropolis/node/image/etc/node.textproto",
    )
    made.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default="info",
        help="the least that node core logs, default: %(default)s",
    )
    return made


def keep_directory(path: Path | None) -> Path | None:
    """Make the directory of --keep; return its absolute path.

    Raises StateError.
    """
    target = typed(path)
    if target is not None:
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"--keep {target}: {error.strerror}") from error
        if not os.access(target, os.W_OK | os.X_OK):
            raise StateError(f"--keep {target}: this user may not write there")
    return target


type Work = Callable[[Verdict], Coroutine[None, None, None]]


async def _until_signalled(work: Work, verdict: Verdict) -> int | None:
    loop = asyncio.get_running_loop()
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
    verdict = Verdict()
    try:
        enter_namespaces()
        return asyncio.run(_until_signalled(work, verdict))
    except _EXPECTED as error:
        say(f"{name}: {error}")
    except Exception:
        traceback.print_exc()
    finally:
        if verdict.kept:
            say(f"{name}: {verdict.kept}")
    return None


def launched[Own](
    name: str,
    options: argparse.Namespace,
    configured: Callable[[Path | None], Own],
    work: Callable[[Path, Own, Verdict], Coroutine[None, None, None]],
    no_report: Callable[[Check], str],
) -> int:
    """Do the work of a launcher; return its exit status. What can be wrong with
    the common options is found before anything is made.

    configured: returns the work's configuration, from the file of --config.
    work: gets the user's directory of launches first. no_report: returns the
    JSON of a launch in which no check ran.
    """
    # Namespaces change the user.
    base = state.root()
    status = None
    try:
        accel.overridden()
        options.keep = keep_directory(options.keep)
        own = configured(typed(options.config))
    except (ConfigurationError, StateError, VmError) as error:
        say(f"{name}: {error}")
    else:
        status = run(name, lambda verdict: work(base, own, verdict))
    if status is None and options.json:
        print(no_report(Check(name, False, "see stderr")), flush=True)
    return FAILED if status is None else status


def exit_with(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a main with the arguments of the process, and end the process."""
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
