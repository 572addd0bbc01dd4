# SPDX-License-Identifier: Apache-2.0
"""The timed phases: what is done to the subjects, and in which order.

Operations go round the subjects one by one, in an order that is shuffled each
time: whatever else the machine does, and whatever the kernel still has to do
for the operation before, hits all alike. A subject that fails is told of, and
left out from then on.
"""

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metropolis.test.bench.model import BenchError, Op, Pod
from metropolis.test.bench.pods import Pods, settle
from metropolis.test.bench.stats import Results
from metropolis.test.bench.subjects import Subject

_MS = 1e-6  # per nanosecond


def say(text: str) -> None:
    """Progress, to standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """How much. samples: operations a round and subject; slow: the same for
    subjects that take longer than a second; at_once: how many at a time.
    """

    rounds: int
    samples: int
    slow: int
    at_once: tuple[int, ...]
    attached: tuple[int, ...]


class Roster:
    """The subjects that still work, and why the others do not."""

    def __init__(self, subjects: Sequence[Subject], rng: random.Random) -> None:
        self._subjects = list(subjects)
        self._rng = rng
        self.failures: dict[str, str] = {}

    def __iter__(self):  # type: ignore[no-untyped-def]
        """In a new order each time."""
        shuffled = self._subjects[:]
        self._rng.shuffle(shuffled)
        return iter([one for one in shuffled if one.name not in self.failures])

    def attempt(self, subject: Subject, action: Callable[[], None]) -> None:
        """Do it; if it fails, the subject is out."""
        if subject.name in self.failures:
            return
        try:
            action()
        except (BenchError, OSError) as error:
            self.failures[subject.name] = str(error)
            say(f"FAILED: {subject.name}: {error}")


class Phases:
    """What is measured of a roster, into the results."""

    def __init__(self, roster: Roster, results: Results, plan: Plan) -> None:
        self._roster = roster
        self._results = results
        self._plan = plan
        self._slow: set[str] = set()

    def warm_up(self) -> None:
        """Two operations each, in which it is looked whether they work."""
        for subject in self._roster:
            self._roster.attempt(subject, lambda subject=subject: self._warm_up(subject))  # type: ignore[misc]
        settle()

    def _warm_up(self, subject: Subject) -> None:
        with Pods() as pods:
            for _ in range(2):
                (pod,) = pods.make(subject)
                begun = time.monotonic()
                subject.run(Op.ADD, [pod], 1)
                if time.monotonic() - begun > 1:
                    self._slow.add(subject.name)
                check_attached(pods, pod, subject)
                subject.run(Op.DEL, [pod], 1)
                if "eth0" in pods.interfaces(pod):
                    raise BenchError(f"{subject.name}: eth0 is still there after DEL")

    def alone(self, round_: int) -> None:
        """One operation at a time: ADDs of all, then DELs of all."""
        made: dict[str, list[Pod]] = {}
        with Pods() as pods:
            for turn in range(self._plan.samples):
                for subject in self._roster:
                    if subject.name in self._slow and turn >= self._plan.slow:
                        continue
                    (pod,) = pods.make(subject)
                    made.setdefault(subject.name, []).append(pod)
                    self._time(Op.ADD, subject, pod, round_)
                    if turn == 0 and subject.name not in self._roster.failures:
                        check_attached(pods, pod, subject)
            for _ in range(self._plan.samples):
                for subject in self._roster:
                    if left := made.get(subject.name):
                        self._time(Op.DEL, subject, left.pop(), round_)
        settle()

    def _time(self, op: Op, subject: Subject, pod: Pod, round_: int) -> None:
        def action() -> None:
            batch = subject.run(op, [pod], 1)
            values = [ns * _MS for ns in batch.each_ns]
            self._results.add(f"{op.upper()} alone", subject.name, "ms", round_, values)

        self._roster.attempt(subject, action)

    def at_once(self, round_: int) -> None:
        """So many at a time: operations a second, and processor time of those
        that are done one after the other.
        """
        for level in self._plan.at_once:
            for subject in self._roster:
                if subject.name in self._slow:
                    continue
                self._roster.attempt(
                    subject,
                    lambda subject=subject, level=level: self._at_once(subject, level, round_),  # type: ignore[misc]
                )
            settle()

    def _at_once(self, subject: Subject, level: int, round_: int) -> None:
        with Pods() as pods:
            made = pods.make(subject, batch_size(subject, level))
            for op in Op:
                batch = subject.run(op, made, level)
                rate = len(made) / (batch.wall_ns * 1e-9)
                self._results.set(f"{op.upper()} at {level}", subject.name, "1/s", round_, rate)
                if level == 1:
                    self._note_cpu(op, subject, round_, batch.cpu_ns, len(made))
                    if batch.client_cpu_ns:
                        name = f"{subject.name}, client"
                        self._note_cpu(op, subject, round_, batch.client_cpu_ns, len(made), name)

    def _note_cpu(
        self, op: Op, subject: Subject, round_: int, cpu_ns: int, count: int, name: str = ""
    ) -> None:
        seconds = cpu_ns * 1e-9 / count * 1000
        figure = f"CPU of 1,000 {op.upper()}"
        self._results.set(figure, name or subject.name, "s", round_, seconds)


def batch_size(subject: Subject, level: int) -> int:
    """How many operations show a rate: ours are quick, and so many that no
    thread waits for work that another has done.
    """
    return max(48, 4 * level) if subject.pid else max(12, 2 * level)


def check_attached(pods: Pods, pod: Pod, subject: Subject) -> None:
    """Raises BenchError unless the pod has its interface."""
    names = pods.interfaces(pod)
    if "eth0" not in names:
        raise BenchError(f"{subject.name}: ADD succeeded, and the pod has only {names}")
