# SPDX-License-Identifier: Apache-2.0
"""Attach and detach, measured beside the kernel's floor and beside peers.

    ./bazelw run //metropolis/test/bench/attach -- --json --plot out.png

Everything runs in separate namespaces and ends with the program. Progress goes
to standard error. Exit status: 0, 1 when something is missing or a subject
failed (the other results are still printed), 2 for wrong arguments, 130 after
Ctrl-C.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metropolis.test.bench.attach import counting, peers, report, targets
from metropolis.test.bench.attach.catalogue import PEERS, SUBJECTS, Catalogue, catalogue, opened
from metropolis.test.bench.attach.measure import Phases, Plan, Roster, say
from metropolis.test.bench.attach.processes import adopt_orphans, end_children
from metropolis.test.bench.attach.results import OURS, Results
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.machine import describe
from metropolis.test.bench.common.settling import settle
from metropolis.test.world.namespaces import WorldError, enter_namespaces

FIGURES = {
    "alone": "p50, p95, p99 of one ADD and one DEL at a time",
    "rate": "operations a second, up to 16 (DEL of ours: 64) at once; CPU seconds",
    "counts": "processes and system calls of an operation, by strace",
    "attached": "ADD beside 0 to 2,000 that are attached; memory of the service",
}
_STATUS = "exit status: 0 measured, 1 something failed, 2 wrong arguments, 130 after Ctrl-C"
_AT_ONCE = (1, 2, 4, 8, 16, 64)
_ATTACHED = (0, 500, 1000, 2000)
BESIDE = (OURS, "grpc ipv4", "inner dual", "floor dual", "floor same work", "ptp")
_BESIDE_FULL = (
    *(*BESIDE, "inner ipv4", "floor ipv4", "ptp dual no-DAD"),
    *("ptp ipMasq", "bridge ipMasq", "netavark NAT"),
)
_COUNTED = 10  # operations


class _Ended(BaseException):
    """SIGTERM."""


@dataclass(frozen=True)
class Options:
    """The requested measurements. rate_rounds: how many of `rounds` also
    measure rates. attached_rounds: how often to measure beside many attached;
    peers once, unless `full`.
    """

    plan: Plan
    names: tuple[str, ...]
    figures: tuple[str, ...]
    beside: tuple[str, ...]
    rate_rounds: int
    attached_rounds: int
    full: bool
    json: bool
    plot: Path | None
    plugins: Path | None
    seed: int


def parse(arguments: Sequence[str], environment: dict[str, str]) -> Options:
    """Parse. Raises SystemExit for invalid arguments."""
    names = "\n".join(f"  {name:30}{what}" for name, what in SUBJECTS.items())
    figures = "\n".join(f"  {name:30}{what}" for name, what in FIGURES.items())
    parser = argparse.ArgumentParser(
        prog="attach",
        usage="%(prog)s [options]",
        description=__doc__.split("\n\n")[0],
        epilog=f"subjects:\n{names}\n\nfigures:\n{figures}\n\n{_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, help="rounds, of which figures are medians (default: 5)")
    add("--samples", type=int, help="operations a round and subject, alone (default: 20)")
    add("--burst", type=int, default=10, help="operations in a row per turn (default: 10; 1: cold)")
    add("--json", action="store_true", help="the result as the last line, in JSON")
    add("--plot", metavar="FILE.png", help="draw ADD, DEL and rates (default: no picture)")
    add("--quick", action="store_true", help="seconds: to see that it works, not how fast")
    add("--full", action="store_true", help="all rates in all rounds, all subjects beside 2,000")
    add("--only", metavar="SUBJECT,...", help="these subjects only")
    add("--figures", metavar="FIGURE,...", help="these figures only")
    add("--plugins", metavar="DIR", help="CNI plugins to use instead of the pinned ones")
    add("--seed", type=int, default=1, help="of the order of subjects (default: 1)")
    chosen = parser.parse_args(arguments)

    def listed(given: str | None, known: dict[str, str], what: str) -> tuple[str, ...]:
        wanted = [name.strip() for name in given.split(",")] if given is not None else list(known)
        for name in wanted:
            if name not in known:
                parser.error(f"{what} {name!r}: there is {', '.join(known)}")
        return tuple(name for name in known if name in wanted)

    def path(given: str | None) -> Path | None:
        # `bazel run` starts us elsewhere.
        return Path(environment.get("BUILD_WORKING_DIRECTORY", ""), given) if given else None

    quick, full = chosen.quick, chosen.full
    rounds = chosen.rounds or (2 if quick else 5)
    samples = chosen.samples or (2 if quick else 20)
    if rounds < 1 or samples < 1 or chosen.burst < 1:
        parser.error("--rounds, --samples, --burst: 1 or more")
    plot = path(chosen.plot)
    if plot is not None and not plot.parent.is_dir():
        parser.error(f"--plot: there is no directory {plot.parent}")
    plan = Plan(
        rounds=rounds,
        samples=samples,
        burst=chosen.burst,
        slow=1 if quick else min(samples, 3),
        at_once=(1, 4) if quick else _AT_ONCE,
        attached=(0, 20) if quick else _ATTACHED,
        ops=8 if quick else 128,
        peer_ops=4 if quick else 12,
    )
    return Options(
        plan=plan,
        names=listed(chosen.only, SUBJECTS, "--only"),
        figures=listed(chosen.figures, FIGURES, "--figures"),
        beside=_BESIDE_FULL if full else BESIDE,
        rate_rounds=rounds if full else min(rounds, 1 if quick else 3),
        attached_rounds=1 if quick else 3,
        full=full,
        json=chosen.json,
        plot=plot.absolute() if plot else None,
        plugins=path(chosen.plugins),
        seed=chosen.seed,
    )


class Run:
    """One run, in namespaces that it has entered."""

    def __init__(self, options: Options, made_by: Catalogue, run_dir: Path) -> None:
        self._options = options
        self._made_by = made_by
        self._run_dir = run_dir
        self.roster = Roster(random.Random(options.seed))
        self.results = Results()
        self._phases = Phases(self.roster, self.results, options.plan)
        self._began = time.monotonic()

    def run(self) -> None:
        """Measure everything that was requested. Raises BenchError."""
        figures = self._options.figures
        if {"alone", "rate", "counts"} & set(figures):
            self._say("starting the subjects")
            with opened(self._made_by, self._options.names, self._run_dir) as subjects:
                self._have(subjects)
                self._phases.warm_up()
                self._rounds()
                if "counts" in figures:
                    self._say("counting processes and system calls")
                    samples = min(_COUNTED, self._options.plan.samples)
                    counting.Counting(self.roster, self.results, self._run_dir, samples).run()
            settle()
        if "attached" in figures:
            for round_ in range(self._options.attached_rounds):
                self._say(f"round {round_ + 1} of {self._options.attached_rounds}: beside many")
                self._attached(round_)

    def _have(self, subjects: list[Any]) -> None:
        self.roster.subjects = subjects
        for subject in subjects:
            self.results.know(subject.name, ipv6=6 in subject.versions)

    def _rounds(self) -> None:
        options = self._options
        for round_ in range(options.plan.rounds):
            of = f"round {round_ + 1} of {options.plan.rounds}"
            if "alone" in options.figures:
                self._say(f"{of}: one at a time")
                self._phases.alone(round_)
            if "rate" in options.figures and round_ < options.rate_rounds:
                self._say(f"{of}: many at once")
                self._phases.at_once(round_)

    def _attached(self, round_: int) -> None:
        # In another order each time, like all other phases.
        names = self._options.names[:: -1 if round_ % 2 else 1]
        for name in names:
            if name in PEERS and round_ and not self._options.full:
                continue
            if name not in self._options.beside:
                for level in self._options.plan.attached:
                    figure = f"ADD with {level} attached"
                    self.results.note(figure, name, "ms", "takes long: with --full")
                continue
            if name in self.roster.failures:
                continue
            with opened(self._made_by, [name], self._run_dir) as subjects:
                self._have(subjects)
                self._phases.warm_up()
                for subject in subjects:
                    self._phases.attached(subject, round_)
            settle()

    def _say(self, text: str) -> None:
        seconds = int(time.monotonic() - self._began)
        say(f"{seconds // 60}:{seconds % 60:02} {text}")


def show(run: Run, options: Options, machine: dict[str, Any]) -> None:
    """Print the result, and draw it."""
    figures = run.results.figures()
    print(report.heading(machine, options.plan))
    print(report.tables(figures))
    peers_measured = [name for name in options.names if name in PEERS]
    print(targets.render(targets.targets(run.results, peers_measured)))
    for name, why in run.roster.failures.items():
        print(f"\nFAILED: {name}: {why}")
    if options.plot is not None:
        from metropolis.test.bench.attach import plot

        plot.draw(figures, machine, options.plot)
        print(f"\ndrawn: {options.plot}")
    if options.json:
        result: dict[str, Any] = {"machine": machine}
        result["figures"] = [one.as_json() for one in figures if one.p50 is not None]
        if run.roster.failures:
            result["failed"] = run.roster.failures
        print(json.dumps(result))


def bench(options: Options, environment: dict[str, str]) -> int:
    """Run everything; return the exit status. Raises BenchError, WorldError."""
    try:
        tars = [Path(tar).absolute() for tar in environment["BENCH_PEERS"].split()]
        shim = Path(environment["BENCH_SHIM"]).absolute()
        machine = describe(Path(environment["BENCH_LOCK"]))
    except KeyError as error:
        raise BenchError(
            f"{error.args[0]} is not set: run me as ./bazelw run //metropolis/test/bench/attach"
        ) from None
    if "counts" in options.figures:
        counting.program()
    enter_namespaces()
    run_dir = Path("/run/bench")
    run_dir.mkdir(mode=0o700)
    installed = None
    if any(name in PEERS for name in options.names):
        installed = peers.install(run_dir / "peers", tars, options.plugins)
    run = Run(options, catalogue(run_dir, shim, installed), run_dir)
    run.run()
    show(run, options, machine)
    return 1 if run.roster.failures else 0


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    options = parse(arguments, dict(os.environ))

    def ended(number: int, frame: object) -> None:
        raise _Ended

    signal.signal(signal.SIGTERM, ended)
    adopt_orphans()
    try:
        return bench(options, dict(os.environ))
    except (BenchError, WorldError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt, _Ended:
        end_children()
        say("interrupted; everything is cleaned up")
        return 130
    finally:
        end_children()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
