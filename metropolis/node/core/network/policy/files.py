# SPDX-License-Identifier: Apache-2.0
"""Policies from the files of a directory, which is watched.

All files DIRECTORY/*.yaml, *.yml and *.json, in the order of their names, are
one set: the source `files`. What is in a file: NetworkPolicy and
ClusterNetworkPolicy, and Namespace for its labels; see kubernetes.

A policy that cannot be converted isolates its subjects. If a whole file cannot
be read, or is no YAML, nobody can say what it is about: all stays as it was.
Either is a note of Status, and in the log, until it is mended. What the kernel
refuses is a problem of the node's network.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.errors import WorkloadError
from osbase.inotify import EVERY_S, changes
from osbase.supervisor import Context, in_thread

log = logging.getLogger(__name__)

SOURCE: Final = "files"
CONDITION: Final = "policy-files"
"""The key of the problem, and of the note about files."""

_SUFFIXES: Final = (".yaml", ".yml", ".json")  # as `kubectl apply -f DIRECTORY`
_SHOWN: Final = 5  # problems in a status
_BYTES_MAX: Final = 4 << 20  # kubernetes.documents refuses what is larger
_QUIET_S: Final = 0.1  # several files may be written at once
_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a directory has. source None: it cannot be said. warnings: what is
    in force, but perhaps not meant so. rest: if it cannot be said, what the
    other documents have.
    """

    source: Source | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    rest: Source | None = None


def load(directory: str | Path) -> Loaded:
    """Read the files of a directory; one that is missing has none."""
    try:
        paths = sorted(one for one in Path(directory).iterdir() if one.suffix in _SUFFIXES)
    except FileNotFoundError:
        paths = []
    except OSError as error:
        return Loaded(None, (f"{_printable(Path(directory))}: {error.strerror}",))
    texts: list[tuple[str, bytes]] = []
    problems: list[str] = []
    for path in paths:
        name = _printable(path)
        try:
            texts.append((name, _read(path)))
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
    if not paths:
        return Loaded(Source(SOURCE))
    # Most nodes have none, and need no YAML in memory.
    from metropolis.node.core.network.policy.kubernetes import convert

    found = convert.read_all(texts)
    problems += [str(one) for one in found.problems if not one.warning]
    warnings = tuple(str(one) for one in found.problems if one.warning)
    source = Source(SOURCE, policies=found.policies, namespaces=found.namespaces)
    if found.unreadable or len(texts) < len(paths):
        return Loaded(None, tuple(problems), warnings, source)
    return Loaded(source, tuple(problems), warnings)


def _read(path: Path) -> bytes:
    """Read a file; of one that is too large, so much that it shows. A FIFO is
    not waited for, and no device is read. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        return file.read(_BYTES_MAX + 1)


def _printable(path: Path) -> str:
    """Return a path for messages: a name may have any bytes, a message is
    UTF-8.
    """
    return str(path).encode(errors="backslashreplace").decode()


class Files:
    """`run` is the runnable."""

    def __init__(self, directory: str, manager: Manager, conditions: Conditions) -> None:
        """directory: may come later."""
        self._directory = directory
        self._manager = manager
        self._conditions = conditions
        self._last: Source | None = None
        self._warnings: tuple[str, ...] = ()
        self._noted = ""
        self._partial = False  # what is in force is the rest of a first load

    async def run(self, ctx: Context) -> None:
        """Follow the files until cancelled."""
        refused = await self._look()
        ctx.signal_healthy()
        # The tables may not be there yet: they come with the node's rules.
        await self._insist(refused)
        try:
            async with contextlib.aclosing(changes([self._directory], quiet_s=_QUIET_S)) as looks:
                async for _ in looks:
                    await self._insist(await self._look())
        except OSError as error:
            log.warning(
                "changes of %s are noticed every %.0f s: %s",
                self._directory, EVERY_S, error.strerror,
            )  # fmt: skip
        while True:
            await asyncio.sleep(EVERY_S)
            await self._look()

    async def _insist(self, refused: bool) -> None:
        """Look again until the kernel takes them."""
        for wait_s in itertools.repeat(_AGAIN_S):
            if not refused:
                return
            await asyncio.sleep(wait_s)
            refused = await self._look()

    async def _look(self) -> bool:
        """Read the files; return whether their policies were refused."""
        loaded = await in_thread(load, self._directory)
        refusal, source = "", loaded.source
        known = not self._partial and await in_thread(self._manager.has_source, SOURCE)
        if source is None and not known:
            # The node has just begun, so nothing of before can stay: what can
            # be read is better than nothing, and no pod comes before the rest.
            source = loaded.rest
            refusal = f"{self._directory}: the first policies are not whole: {loaded.problems[0]}"
        if loaded.warnings != self._warnings:
            self._warnings = loaded.warnings
            for one in loaded.warnings:
                log.warning("%s", one)
        if source is not None and source != self._last:
            try:
                await in_thread(self._manager.replace_policies, source)
                self._last = source
                self._partial = loaded.source is None
                log.info("%s: %d policies are in force", self._directory, len(source.policies))
            except WorkloadError as error:
                refusal = f"{self._directory}: not in force: {error}"
        self._report(loaded.problems, refusal)
        return bool(refusal) and loaded.source is not None

    def _report(self, problems: Sequence[str], refusal: str) -> None:
        """problems: of files, a note: the node takes pods all the same, and a
        misspelt policy isolates its subjects only. refusal: the kernel's.
        """
        if refusal:
            if self._conditions.set(CONDITION, refusal):
                log.error("%s", refusal)
        elif self._conditions.clear(CONDITION):
            log.info("%s: policies are in force again", self._directory)
        text = "; ".join(problems[:_SHOWN])
        if len(problems) > _SHOWN:
            text += f"; and {len(problems) - _SHOWN} more, see the log"
        if text == self._noted:
            return
        self._noted = text
        self._conditions.note(CONDITION, text)
        for one in problems:
            log.error("%s", one)
        if not problems:
            log.info("%s: all policies can be read again", self._directory)
