# SPDX-License-Identifier: Apache-2.0
"""Processes and programs, from the kernel's tracepoints as text. Pure.

- task:task_newtask: a process or a thread begins
- sched:sched_process_exec: a program is executed
"""

import re
from collections import Counter
from dataclasses import dataclass

EVENTS = ("task/task_newtask", "sched/sched_process_exec")

_CLONE_THREAD = 0x10000  # linux/sched.h
# The task, and the event: `  runc-42 [001] .....  1.5: name: ...`
_EVENT = re.compile(r"\s*(?P<task>.+)-\d+\s+\[\d+\]\s.*?:\s(?P<event>\w+): (?P<rest>.*)")
_FLAGS = re.compile(r"clone_flags=([0-9a-f]+)")
_FILE = re.compile(r"filename=(\S+)")
# The kernel's own threads do not count as processes.
_KERNEL = "kthreadd"


class TraceError(ValueError):
    """Events were lost, or cannot be parsed."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The numbers of new processes and threads, and of executed programs."""

    processes: int
    threads: int
    executed: Counter[str]


def count(text: str, ignored: frozenset[str] = frozenset()) -> Counted:
    """Count events. ignored: names of tasks (comm). Raises TraceError."""
    processes = threads = 0
    executed: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("CPU:") and "LOST" in line:
            raise TraceError(f"the trace has a gap: {line}")
        found = _EVENT.fullmatch(line)
        if line.startswith("#") or found is None:
            continue
        if found["task"] in ignored:
            continue
        if found["event"] == "task_newtask":
            flags = _FLAGS.search(found["rest"])
            if flags is None:
                raise TraceError(f"no clone_flags in {line!r}")
            if int(flags[1], 16) & _CLONE_THREAD:
                threads += 1
            elif found["task"] != _KERNEL:
                processes += 1
        elif found["event"] == "sched_process_exec":
            file = _FILE.search(found["rest"])
            if file is None:
                raise TraceError(f"no filename in {line!r}")
            executed[program(file[1])] += 1
    return Counted(processes, threads, executed)


def program(file: str) -> str:
    """Return a program's name: runc executes itself by descriptor."""
    if re.fullmatch(r"(/proc/self|/dev)(/fd)?(/exe|/\d+)?", file):
        return "itself"
    return file.rpartition("/")[2]
