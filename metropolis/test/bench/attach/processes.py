# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own programs as processes, and programs that are executed.

Nothing here forks: subprocess and posix_spawn use vfork, so the cost of a start
does not depend on the parent, and threads are safe.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metropolis.test.bench.attach.model import Batch, Op, Pod
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.world.namespaces import Netns

_START_S = 60.0
_END_S = 30.0
_PR_SET_CHILD_SUBREAPER = 36
_LOG_TAIL = 1500  # characters of a log in an error


class Program:
    """One of our programs in a namespace; the kernel ends it with us.

    The creating thread must live as long as the program. It starts at once, and
    serves when `ready` returns.
    """

    def __init__(
        self, module: str, netns: Netns | None, arguments: Sequence[str], log: Path
    ) -> None:
        self.name = module.rpartition(".")[2]
        self._log = log
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", module, *arguments]

        def spawn() -> subprocess.Popen[str]:
            with log.open("ab") as written:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=written,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the driver
                )

        self._process = netns.inside(spawn) if netns is not None else spawn()
        self._is_ready = False

    def ready(self) -> None:
        """Wait until it is. Raises BenchError."""
        if self._is_ready:
            return
        line = self._line(_START_S)
        if line != "ready\n":
            raise BenchError(f"{self.name} did not start: {self._tail()}")
        self._is_ready = True

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    def _line(self, limit_s: float) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit_s)[0]:
            raise BenchError(f"{self.name}: no answer in {limit_s:g} s: {self._tail()}")
        return self._process.stdout.readline()

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_TAIL:].strip() or "it said nothing"

    def ask(self, command: Mapping[str, Any], limit_s: float = 600.0) -> dict[str, Any]:
        """See commands. Raises BenchError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"{self.name} has ended: {self._tail()}") from None
        line = self._line(limit_s)
        if not line:
            raise BenchError(f"{self.name} has ended: {self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.name}: {answer['error']}")
        return answer

    def measure(self, op: Op, pods: Sequence[Pod], at_once: int, **extra: Any) -> Batch:
        """Let it do the operations. Raises BenchError."""
        listed = [[pod.number, pod.workload, pod.path] for pod in pods]
        answer = self.ask({"do": op, "pods": listed, "at_once": at_once} | extra)
        return Batch(tuple(answer["each_ns"]), answer["wall_ns"], answer["cpu_ns"])

    def close(self) -> None:
        """End it; twice does nothing more."""
        self._process.kill()
        self._process.wait(_END_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def adopt_orphans() -> None:
    """Make orphans of our children our children: see end_children.

    PR_SET_CHILD_SUBREAPER, prctl(2).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl PR_SET_CHILD_SUBREAPER")


def end_children() -> None:
    """End all running descendants.

    An interrupted run leaves plugins in the middle of their work. Call with
    one thread, since children are looked up by the thread that started them.
    """
    while True:
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def processor_ns(pid: int) -> int:
    """Processor time that a process has used, its ended threads included.

    The clock of clock_getcpuclockid(3), as glibc computes it.
    """
    return time.clock_gettime_ns(~pid << 3 | 2)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process, proc_pid_status(5)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid} has no memory: it has ended")


@dataclass(frozen=True, slots=True)
class Executed:
    """An ended program. cpu_ns: including the programs that it executed."""

    command: str
    status: int
    stdout: bytes
    stderr: bytes
    cpu_ns: int

    def check(self) -> None:
        """Raise BenchError with its output, unless it succeeded."""
        if self.status:
            said = b" ".join((self.stdout + b" " + self.stderr).split()).decode(errors="replace")
            raise BenchError(f"{self.command} ended with {self.status}: {said or 'nothing said'}")


def execute(command: Sequence[str], environment: Mapping[str, str], stdin: bytes) -> Executed:
    """Execute a program like a runtime executes a plugin: with an environment,
    and pipes for stdin, stdout, stderr. In the calling thread's namespaces.
    """
    pipes = [os.pipe() for _ in range(3)]
    (from_us, to_it), (out, its_out), (err, its_err) = pipes
    left = [end for pipe in pipes for end in pipe]

    def close(*ends: int) -> None:
        for end in ends:
            left.remove(end)
            os.close(end)

    try:
        if stdin:
            os.write(to_it, stdin)  # less than a pipe holds
        close(to_it)
        actions = [
            (os.POSIX_SPAWN_DUP2, end, to) for to, end in enumerate((from_us, its_out, its_err))
        ]
        try:
            pid = os.posix_spawn(
                command[0],
                list(command),
                environment,
                file_actions=actions,
                setsigdef=[signal.SIGPIPE],
            )
        except OSError as error:
            raise BenchError(f"cannot execute {command[0]}: {error.strerror}") from error
        close(from_us, its_out, its_err)
        stdout, stderr = _read(out), _read(err)
        _, status, usage = os.wait4(pid, 0)
    finally:
        close(*list(left))
    cpu_ns = int((usage.ru_utime + usage.ru_stime) * 1e9)
    code = os.waitstatus_to_exitcode(status)
    return Executed(" ".join(command[:2]), code, stdout, stderr, cpu_ns)


def _read(end: int) -> bytes:
    parts = []
    while part := os.read(end, 65536):
        parts.append(part)
    return b"".join(parts)
