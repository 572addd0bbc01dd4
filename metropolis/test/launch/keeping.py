# SPDX-License-Identifier: Apache-2.0
"""Keep what a launch leaves: logs, consoles, captures.

A launch's directory is removed at its end. With --keep DIR its logs are copied
there, whatever ended the launch; without, those of a launch that failed are
copied to the user's directory of launches, in place of the last failure's.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from metropolis.test.launch.verdict import Verdict

_FAILED = "failed"
_SUFFIXES = (".log",)
_CAPTURE = "underlay.pcap"


def copy(directory: Path, target: Path) -> int:
    """Copy logs and captures, in their directories; return how many."""
    count = 0
    for path in directory.rglob("*"):
        if path.suffix in _SUFFIXES or path.name.startswith(_CAPTURE):
            to = target / path.relative_to(directory)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
            count += 1
    return count


@contextlib.contextmanager
def keeping(directory: Path, target: Path | None, base: Path, verdict: Verdict) -> Iterator[None]:
    """Copy the logs when the block is left; the verdict gets where they are.

    target: of --keep. base: the user's directory of launches.
    """
    failed = False
    try:
        yield
    except asyncio.CancelledError:
        raise
    except BaseException:
        failed = True
        raise
    finally:
        failed = failed or verdict.status == 1
        to = target
        if to is None and failed:
            to = base / _FAILED
            shutil.rmtree(to, ignore_errors=True)
        if to is not None:
            try:
                found = copy(directory, to)
            except OSError as error:
                verdict.kept = f"the logs could not be copied to {to}: {error.strerror or error}"
            else:
                if found:
                    until = "" if target else ", until the next failure; --keep DIR keeps them"
                    verdict.kept = f"logs: {to}{until}"
