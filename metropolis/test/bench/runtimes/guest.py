# SPDX-License-Identifier: Apache-2.0
"""Runs in the guest, as root: measures, and prints the results as JSON.

    guest PLAN    a file with model.Plan as JSON

Subjects alternate at every pod, in another order each time, so that other work
of the machine affects all equally; before each turn the kernel has removed the
namespaces of the one before.
"""

import contextlib
import os
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc

from metropolis.node import allocs
from metropolis.node.core.network.workloads.spec import workload_pb2, workload_pb2_grpc
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.settling import settle
from metropolis.test.bench.runtimes import metrics, trace
from metropolis.test.bench.runtimes.config import Place
from metropolis.test.bench.runtimes.model import Measured, Plan, Programs, Runtime, Samples, Subject
from metropolis.test.bench.runtimes.pods import Containerd

RUN = "RunPodSandbox"
REMOVE = "Stop+RemovePodSandbox"

_SERVICE_S = 120.0
_POLL_S = 0.2
_TRACE = Path("/sys/kernel/tracing/instances/bench")
_TRACE_KIB = 4096  # for each CPU
# Tasks whose actions are not a pod's: this program, node core (starts none).
_IGNORED = frozenset({"python3"})


@dataclass(slots=True)
class Results:
    """Values of rounds."""

    round: int = 0
    found: dict[tuple[str, str, Subject, int], list[float]] = field(default_factory=dict)
    programs: list[Programs] = field(default_factory=list)

    def add(self, subject: Subject, figure: str, unit: str, value: float) -> None:
        self.found.setdefault((figure, unit, subject, self.round), []).append(value)

    def samples(self) -> Iterator[Samples]:
        for (figure, unit, subject, number), values in self.found.items():
            yield Samples(figure, unit, subject, number, tuple(values))


def timed[T](call: Callable[[], T]) -> tuple[float, T]:
    """Return milliseconds, and the call's result."""
    begin = time.monotonic_ns()
    value = call()
    return (time.monotonic_ns() - begin) / 1e6, value


class Bench:
    """The containerds, and the measurements with them."""

    def __init__(self, plan: Plan, containerds: dict[Runtime, Containerd]) -> None:
        self._plan = plan
        self._containerds = containerds
        self._order = random.Random(plan.seed)
        self._pool = ThreadPoolExecutor(max(plan.at_once))

    def _turns(self) -> list[Subject]:
        subjects = list(Subject)
        self._order.shuffle(subjects)
        return subjects

    def round(self, plan: Plan, results: Results) -> None:
        """One round."""
        for _ in range(plan.samples):
            for subject in self._turns():
                self._alone(subject, results)
        for at_once in plan.at_once:
            for _ in range(plan.repeats):
                for subject in self._turns():
                    self._at_once(subject, at_once, results)

    def _alone(self, subject: Subject, results: Results) -> None:
        containerd = self._containerds[subject.runtime]
        sandbox = containerd.sandbox_config(host_network=subject.host_network)
        settle()
        with self._network(subject, metrics.SET_UP, 1) as spent:
            took, ident = timed(partial(containerd.run, sandbox))
        results.add(subject, RUN, "ms", took)
        results.add(subject, f"{RUN}: network", "ms", spent[0])
        self._check(subject, containerd, ident)
        settle()
        with self._network(subject, metrics.TEAR_DOWN, 1) as spent:
            took, _ = timed(partial(containerd.remove, ident))
        results.add(subject, REMOVE, "ms", took)
        results.add(subject, f"{REMOVE}: network", "ms", spent[0])

    def _at_once(self, subject: Subject, count: int, results: Results) -> None:
        containerd = self._containerds[subject.runtime]
        sandboxes = [
            containerd.sandbox_config(host_network=subject.host_network) for _ in range(count)
        ]
        settle()
        with self._network(subject, metrics.SET_UP, count) as spent:
            took, idents = timed(lambda: list(self._pool.map(containerd.run, sandboxes)))
        results.add(subject, f"{RUN} at {count}", "1/s", count / took * 1000)
        results.add(subject, f"{RUN} at {count}: network", "ms", spent[0])
        settle()
        with self._network(subject, metrics.TEAR_DOWN, count) as spent:
            took, _ = timed(lambda: list(self._pool.map(containerd.remove, idents)))
        results.add(subject, f"{REMOVE} at {count}", "1/s", count / took * 1000)
        results.add(subject, f"{REMOVE} at {count}: network", "ms", spent[0])

    @contextlib.contextmanager
    def _network(self, subject: Subject, operation: str, count: int) -> Iterator[list[float]]:
        """Yield a list that then gets the plugin's milliseconds per pod.

        A pod's network may be torn down twice, by Stop- and RemovePodSandbox.
        """
        containerd = self._containerds[subject.runtime]
        spent: list[float] = []
        before = containerd.network(operation)
        yield spent
        done = containerd.network(operation).since(before)
        expected = 0 if subject.host_network else count
        if done.count < expected or (done.count and not expected) or done.errors:
            raise BenchError(
                f"{subject}: {operation} was done {done.count} times, {done.errors} times in "
                f"vain, for {expected} pods with a network"
            )
        spent.append(done.seconds * 1000 / count)

    @staticmethod
    def _check(subject: Subject, containerd: Containerd, ident: str) -> None:
        """Check that a pod has IPv4 and IPv6, or the host's network."""
        ips = containerd.addresses(ident)
        if len(ips) != (0 if subject.host_network else 2):
            raise BenchError(f"{subject}: a pod has the addresses {ips}")

    def count(self, results: Results) -> None:
        """Count processes and programs of pods, by the kernel's tracepoints."""
        for subject in Subject:
            containerd = self._containerds[subject.runtime]
            totals = {RUN: _nothing(), REMOVE: _nothing()}
            for _ in range(self._plan.counted):
                sandbox = containerd.sandbox_config(host_network=subject.host_network)
                settle()
                ident, text = _traced(partial(containerd.run, sandbox))
                _add(totals[RUN], text)
                _, text = _traced(partial(containerd.remove, ident))
                _add(totals[REMOVE], text)
            for figure, total in totals.items():
                for what, values in (
                    ("processes", total.processes),
                    ("programs executed", total.executed),
                ):
                    for value in values:
                        results.add(subject, f"{figure}: {what}", "1", value)
                programs = {
                    name: number / self._plan.counted for name, number in total.programs.items()
                }
                results.programs.append(Programs(figure, subject, programs))


@dataclass(slots=True)
class _Totals:
    processes: list[int]
    executed: list[int]
    programs: Counter[str]


def _nothing() -> _Totals:
    return _Totals([], [], Counter())


def _add(totals: _Totals, text: str) -> None:
    counted = trace.count(text, _IGNORED)
    totals.processes.append(counted.processes)
    totals.executed.append(counted.executed.total())
    totals.programs += counted.executed


def _traced[T](call: Callable[[], T]) -> tuple[T, str]:
    """Return the call's result, and the kernel's events meanwhile."""
    if not _TRACE.is_dir():
        _TRACE.mkdir()
        (_TRACE / "tracing_on").write_text("0")
        (_TRACE / "buffer_size_kb").write_text(str(_TRACE_KIB))
        for event in trace.EVENTS:
            (_TRACE / "events" / event / "enable").write_text("1")
    (_TRACE / "trace").write_text("")
    (_TRACE / "tracing_on").write_text("1")
    try:
        value = call()
    finally:
        (_TRACE / "tracing_on").write_text("0")
    return value, (_TRACE / "trace").read_text(errors="replace")


def wait_for_service() -> None:
    """Wait until the node's workload network service answers."""
    end = time.monotonic() + _SERVICE_S
    with grpc.insecure_channel(f"unix:{allocs.WORKLOAD_SOCKET}") as channel:
        stub = workload_pb2_grpc.WorkloadNetworkingStub(channel)
        while True:
            try:
                stub.Status(workload_pb2.StatusRequest(), timeout=10)
            except grpc.RpcError as error:
                if time.monotonic() > end:
                    raise BenchError(f"the network service: {error.details()}") from error
                time.sleep(_POLL_S)
            else:
                return


def versions(containerds: dict[Runtime, Containerd]) -> dict[str, str]:
    """Return the versions of the measured programs."""

    def said(*command: str) -> str:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return (done.stdout + done.stderr).strip().partition("\n")[0]

    return {
        "guest_kernel": platform.release(),
        "guest_cpus": str(os.cpu_count()),
        "guest_python": platform.python_version(),
        "containerd_ours": containerds[Runtime.OURS].version(),
        "containerd_stock": containerds[Runtime.CNI].version(),
        "runc": said("/usr/sbin/runc", "--version").removeprefix("runc version "),
        "iptables": said("/usr/sbin/iptables", "--version").removeprefix("iptables "),
    }


def run(plan: Plan) -> Measured:
    """Run the whole plan."""
    say("waiting for the network service")
    wait_for_service()
    say("starting the containerds")
    with contextlib.ExitStack() as stack:
        containerds = {}
        for number, runtime in enumerate(Runtime):
            containerds[runtime] = Containerd(Place(runtime, number))
            stack.callback(containerds[runtime].stop)
        for containerd in containerds.values():
            containerd.wait()
        bench = Bench(plan, containerds)
        if plan.warm_up:
            say("warming up")
            bench.round(Plan(1, 1, (), 0, 0, 0), Results())
        results = Results()
        for number in range(plan.rounds):
            say(f"round {number + 1} of {plan.rounds}")
            results.round = number
            bench.round(plan, results)
        say("counting processes and programs")
        results.round = 0
        bench.count(results)
        found = versions(containerds)
    return Measured(found, tuple(results.samples()), tuple(results.programs))


def say(message: str) -> None:
    """Print progress."""
    print(f"guest {time.monotonic():.0f} s: {message}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    try:
        print(run(Plan.from_json(Path(arguments[0]).read_text())).to_json())
    except BenchError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
