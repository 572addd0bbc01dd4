# SPDX-License-Identifier: Apache-2.0
"""The timed phases: the operations of the subjects, and their order.

A DEL of ours answers before its link is gone. A subject's turn ends when it is,
so that the rest of the work falls on nobody else; it counts as processor time.

Subjects alternate, in an order that is shuffled each time: so other work of the
machine, and unfinished work of the kernel for the last operation, affect all
equally. A subject that fails is reported, and left out from then on.
"""

import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from metropolis.test.bench.attach.model import Op, Pod
from metropolis.test.bench.attach.pods import Pods
from metropolis.test.bench.attach.processes import processor_ns, rss_bytes
from metropolis.test.bench.attach.results import Results
from metropolis.test.bench.attach.subjects import Subject
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.settling import settle

GONE = "DEL alone, link gone"
"""From the call until the driver sees that: it includes the driver's way."""
_MS = 1e-6  # per nanosecond
_DELETED_AT_ONCE = 16  # deletions that are not measured
_CYCLES = 8  # of each pod
_CYCLES_AT = (1, 16)
_PEERS_AT_ONCE = 16  # more are for what deletes many at once


def say(text: str) -> None:
    """Print progress on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """How much to measure. samples: operations per round and subject; burst:
    how many in a row before the next subject; slow: samples of subjects that
    take longer than a second; at_once: numbers of concurrent operations;
    attached: numbers of attached pods; ops and peer_ops: the least number of
    operations for a rate of ours and of a peer.
    """

    rounds: int
    samples: int
    burst: int
    slow: int
    at_once: tuple[int, ...]
    attached: tuple[int, ...]
    ops: int
    peer_ops: int


class Roster:
    """The subjects that still work, and the errors of the others."""

    def __init__(self, rng: random.Random) -> None:
        self.subjects: list[Subject] = []
        self._rng = rng
        self.failures: dict[str, str] = {}

    def __iter__(self) -> Iterator[Subject]:
        """Iterate in a new order each time."""
        shuffled = self.subjects[:]
        self._rng.shuffle(shuffled)
        return iter([one for one in shuffled if one.name not in self.failures])

    def attempt(self, subject: Subject, action: Callable[[], None]) -> None:
        """Run the action; if it fails, remove the subject."""
        if subject.name in self.failures:
            return
        try:
            action()
        except (BenchError, OSError) as error:
            self.failures[subject.name] = str(error)
            say(f"FAILED: {subject.name}: {error}")


class Phases:
    """The measurements of a roster, stored in the results."""

    def __init__(self, roster: Roster, results: Results, plan: Plan) -> None:
        self._roster = roster
        self._results = results
        self._plan = plan
        self._slow: set[str] = set()

    def warm_up(self) -> None:
        """Do two operations each, and check their results."""
        for subject in self._roster:
            self._roster.attempt(subject, partial(self._warm_up, subject))
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
                pods.await_gone([pod])

    def alone(self, round_: int) -> None:
        """Measure single operations: ADDs of all, then DELs of all."""
        made: dict[str, list[Pod]] = {}
        with Pods() as pods:
            for subject in self._turns():
                if (
                    subject.name in self._slow
                    and len(made.get(subject.name, ())) >= self._plan.slow
                ):
                    continue
                (pod,) = pods.make(subject)
                first = subject.name not in made
                made.setdefault(subject.name, []).append(pod)
                self._time(Op.ADD, subject, pods, pod, round_)
                if first and subject.name not in self._roster.failures:
                    check_attached(pods, pod, subject)
            for subject in self._turns():
                if left := made.get(subject.name):
                    self._time(Op.DEL, subject, pods, left.pop(), round_)
        settle()

    def _turns(self) -> Iterator[Subject]:
        """Yield the next operation's subject, until each has its samples."""
        left = self._plan.samples
        while left > 0:
            burst = min(left, self._plan.burst)
            left -= burst
            for subject in self._roster:
                for _ in range(burst):
                    if subject.name not in self._roster.failures:
                        yield subject

    def _time(self, op: Op, subject: Subject, pods: Pods, pod: Pod, round_: int) -> None:
        def action() -> None:
            began = time.perf_counter_ns()
            batch = subject.run(op, [pod], 1)
            values = [ns * _MS for ns in batch.each_ns]
            self._results.add(f"{op.upper()} alone", subject.name, "ms", round_, values)
            if op is Op.DEL:
                pods.await_gone([pod])
                gone = (time.perf_counter_ns() - began) * _MS
                self._results.add(GONE, subject.name, "ms", round_, [gone])

        self._roster.attempt(subject, action)

    def at_once(self, round_: int) -> None:
        """Measure concurrent operations: operations per second; and processor
        time, for sequential ones.
        """
        for level in self._plan.at_once:
            for subject in self._roster:
                if (
                    not subject.rated
                    or subject.name in self._slow
                    or (level > _PEERS_AT_ONCE and not subject.pid)
                ):
                    continue
                self._roster.attempt(subject, partial(self._at_once, subject, level, round_))
            settle()

    def _at_once(self, subject: Subject, level: int, round_: int) -> None:
        with Pods() as pods:
            least = self._plan.ops if subject.pid else self._plan.peer_ops
            made = pods.make(subject, max(least, 2 * level))
            self._rate(Op.ADD, subject, pods, made, level, round_)
            # Sequential ones of peers wait for the kernel: a few are enough.
            some = made[: max(16, 8 * level)]
            self._rate(Op.DEL, subject, pods, some, level, round_)
            if len(some) < len(made):
                subject.run(Op.DEL, made[len(some) :], _DELETED_AT_ONCE)
                pods.await_gone(made[len(some) :])
            if subject.cycles and level in _CYCLES_AT:
                # A pod comes again when its last link has long been gone.
                turns = [pod for _ in range(_CYCLES) for pod in made]
                batch = subject.run(Op.CYCLE, turns, level)
                rate = len(turns) / (batch.wall_ns * 1e-9)
                self._results.set(f"ADD and DEL at {level}", subject.name, "1/s", round_, rate)
                pods.await_gone(made)

    def _rate(
        self, op: Op, subject: Subject, pods: Pods, some: list[Pod], level: int, round_: int
    ) -> None:
        began, used_before = time.perf_counter_ns(), _processor_ns(subject)
        batch = subject.run(op, some, level)
        rate = len(some) / (batch.wall_ns * 1e-9)
        self._results.set(f"{op.upper()} at {level}", subject.name, "1/s", round_, rate)
        if op is Op.DEL:
            pods.await_gone(some)
            gone = len(some) / ((time.perf_counter_ns() - began) * 1e-9)
            self._results.set(f"DEL, links gone, at {level}", subject.name, "1/s", round_, gone)
        if level > 1:
            return
        cpu_ns = _processor_ns(subject) - used_before if subject.pid else batch.cpu_ns
        used = [(subject.name, cpu_ns)]
        if batch.client_cpu_ns:
            used.append((f"{subject.name}, client", batch.client_cpu_ns))
        for name, cpu_ns in used:
            seconds = cpu_ns * 1e-9 / len(some) * 1000
            self._results.set(f"CPU of 1,000 {op.upper()}", name, "s", round_, seconds)

    def attached(self, subject: Subject, round_: int) -> None:
        """Measure ADD beside more and more attached pods, and memory.

        Subjects do this one after the other: else thousands of namespaces of
        others would affect the result.
        """
        self._roster.attempt(subject, partial(self._attached, subject, round_))

    def _attached(self, subject: Subject, round_: int) -> None:
        with Pods() as crowd:
            there = 0
            for level in self._plan.attached:
                figure = f"ADD with {level} attached"
                if subject.most is not None and level + self._plan.samples > subject.most:
                    self._results.note(figure, subject.name, "ms", subject.why_most)
                    continue
                say(f"{subject.name} with {level:,} attached")
                subject.populate(crowd.make(subject, level - there))
                there = level
                self._beside(subject, level, round_)
                if subject.is_service and subject.pid is not None:
                    megabytes = rss_bytes(subject.pid) / 1e6
                    name = f"RSS with {level} attached"
                    self._results.set(name, subject.name, "MB", round_, megabytes)

    def _beside(self, subject: Subject, level: int, round_: int) -> None:
        with Pods() as pods:
            made = pods.make(subject, self._plan.samples)
            times = [ns * _MS for pod in made for ns in subject.run(Op.ADD, [pod], 1).each_ns]
            figure = f"ADD with {level} attached"
            self._results.add(figure, subject.name, "ms", round_, times)
            if subject.is_service:
                times = [ns * _MS for pod in made for ns in subject.run(Op.DEL, [pod], 1).each_ns]
                self._results.add(f"DEL with {level} attached", subject.name, "ms", round_, times)
            else:
                subject.run(Op.DEL, made, _DELETED_AT_ONCE)
            pods.await_gone(made)


def _processor_ns(subject: Subject) -> int:
    """Return what a subject's process has used; 0: it has none."""
    return processor_ns(subject.pid) if subject.pid else 0


def check_attached(pods: Pods, pod: Pod, subject: Subject) -> None:
    """Raises BenchError unless the pod has its interface."""
    names = pods.interfaces(pod)
    if "eth0" not in names:
        raise BenchError(f"{subject.name}: ADD succeeded, and the pod has only {names}")
