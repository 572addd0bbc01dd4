# SPDX-License-Identifier: Apache-2.0
"""Processes and system calls of an operation, counted by strace.

This is a separate phase, since tracing slows everything down. A long-lived
process is traced while it serves some operations, and while it is idle, which
is subtracted; an executed program is traced from its start.
"""

import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metropolis.test.bench.attach.measure import Roster
from metropolis.test.bench.attach.model import Op, Pod
from metropolis.test.bench.attach.plugins import Executes
from metropolis.test.bench.attach.pods import Pods
from metropolis.test.bench.attach.results import Results
from metropolis.test.bench.attach.subjects import Subject
from metropolis.test.bench.common.errors import BenchError

_CALL = re.compile(r"^\d+ +(?:\d+\.\d+ )?(\w+)\(")
_FORKS = {"fork", "vfork", "clone", "clone3"}
_EXECS = {"execve", "execveat"}


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a trace. processes: new processes, without threads."""

    syscalls: int
    processes: int
    execs: int

    def less(self, other: Counts) -> Counts:
        """Return the difference to the other."""
        return Counts(
            max(0, self.syscalls - other.syscalls),
            max(0, self.processes - other.processes),
            max(0, self.execs - other.execs),
        )

    def plus(self, other: Counts) -> Counts:
        """Return the sum of both."""
        return Counts(
            self.syscalls + other.syscalls,
            self.processes + other.processes,
            self.execs + other.execs,
        )


NOTHING = Counts(0, 0, 0)


def count(lines: Iterable[str]) -> Counts:
    """Count lines of strace -f. An interrupted call counts, too."""
    syscalls = processes = execs = 0
    for line in lines:
        found = _CALL.match(line)
        if found is None:
            continue  # the end of a call, a signal, an exit
        syscalls += 1
        processes += found[1] in _FORKS and "CLONE_THREAD" not in line
        execs += found[1] in _EXECS and "= -1" not in line
    return Counts(syscalls, processes, execs)


def program() -> str:
    """The path of strace. Raises BenchError."""
    found = shutil.which("strace")
    if found is None:
        raise BenchError("strace is missing: install it, or leave out the figures `counts`")
    return found


@contextlib.contextmanager
def traced(pid: int, output: Path) -> Iterator[None]:
    """Trace a process and its threads while in the block."""
    command = [program(), "-f", "-o", str(output), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            line = strace.stderr.readline()
            if "attached" not in line:
                raise BenchError(f"strace of process {pid}: {line.strip()}")
            yield
        finally:
            strace.send_signal(signal.SIGINT)  # it lets go
            strace.stderr.read()


class Counting:
    """Counts `samples` operations of each subject."""

    def __init__(self, roster: Roster, results: Results, run_dir: Path, samples: int) -> None:
        self._roster = roster
        self._results = results
        self._output = run_dir / "strace"
        self._executed = run_dir / "strace-executed"
        self._samples = samples

    def run(self) -> None:
        """All subjects."""
        for subject in self._roster:
            self._roster.attempt(subject, partial(self._subject, subject))

    def _subject(self, subject: Subject) -> None:
        with Pods() as pods:
            made = pods.make(subject, self._samples)
            for op in (Op.ADD, Op.DEL):
                counts = self._during(subject, partial(_do, subject, op, pods, made))
                nothing = self._during(subject, partial(_do, subject, op, pods, []))
                self._note(op, subject, counts.less(nothing), len(made))

    def _during(self, subject: Subject, action: Callable[[], None]) -> Counts:
        self._executed.write_bytes(b"")
        with contextlib.ExitStack() as stack:
            if isinstance(subject, Executes):
                subject.executed = 0
                subject.wrapper = (program(), "-f", "-A", "-o", str(self._executed))
                stack.callback(setattr, subject, "wrapper", ())
            if subject.pid is not None:
                stack.enter_context(traced(subject.pid, self._output))
            action()
        found = NOTHING
        for path in (self._output, self._executed):
            if path.exists():
                with path.open(errors="replace") as lines:
                    found = found.plus(count(lines))
                path.unlink()
        if isinstance(subject, Executes):
            # The parent makes the process of a program.
            found = found.plus(Counts(0, subject.executed, 0))
        return found

    def _note(self, op: Op, subject: Subject, counts: Counts, operations: int) -> None:
        for what, value in (
            ("syscalls", counts.syscalls),
            ("processes", counts.processes),
            ("execs", counts.execs),
        ):
            figure = f"{what} of one {op.upper()}"
            self._results.set(figure, subject.name, "1", 0, value / operations)


def _do(subject: Subject, op: Op, pods: Pods, some: list[Pod]) -> None:
    """Run it, and what a DEL leaves for later."""
    subject.run(op, some, 1)
    if op is Op.DEL:
        pods.await_gone(some)
