# SPDX-License-Identifier: Apache-2.0
"""The programs of the benchmark: commands on stdin, answers on stdout.

    {"do": "add", "pods": [[number, workload, path], ...], "at_once": 1}
    {"each_ns": [...], "wall_ns": ..., "cpu_ns": ...}   or   {"error": "..."}

Each is a line of JSON; the first line is `ready`. The program that does the
work has the clock, so that the cost of a command is not measured.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from metropolis.test.bench.attach.model import Op, Pod
from metropolis.test.bench.attach.timing import Call, timed


class Work(Protocol):
    """The work of a program."""

    def prepare(self, op: Op, pods: Sequence[Pod], extra: dict[str, Any]) -> list[Call]:
        """Return a call per pod, after all untimed work. extra: the rest of
        the command.
        """

    def done(self, op: Op, pods: Sequence[Pod]) -> None:
        """Check the results of the calls, and clean up."""


def answer_commands(work: Work, more: dict[str, Callable[[], None]] | None = None) -> int:
    """Serve until the end of stdin; return the exit status. more: further
    commands, without arguments.
    """
    print("ready", flush=True)
    for command in _commands():
        try:
            if command["do"] in (more or {}):
                (more or {})[command["do"]]()
                answer: dict[str, Any] = {}
            else:
                answer = _measure(work, command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    return 0


def _commands() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _measure(work: Work, command: dict[str, Any]) -> dict[str, Any]:
    op = Op(command["do"])
    pods = [Pod(*pod) for pod in command["pods"]]
    calls = work.prepare(op, pods, command)
    cpu = time.process_time_ns()
    each, wall = timed(calls, command["at_once"])
    cpu = time.process_time_ns() - cpu
    work.done(op, pods)
    return {"each_ns": each, "wall_ns": wall, "cpu_ns": cpu}
