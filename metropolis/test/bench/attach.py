# SPDX-License-Identifier: Apache-2.0
"""Attach and detach, measured beside the kernel's floor and beside peers."""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from metropolis.test.bench import peers, report
from metropolis.test.bench.machine import describe
from metropolis.test.bench.measure import Phases, Plan, Roster, say
from metropolis.test.bench.model import BenchError
from metropolis.test.bench.plugins import Shim
from metropolis.test.bench.stats import OURS, Results
from metropolis.test.bench.subjects import Grpc, Subject, connect, floor, inner
from metropolis.test.world.namespaces import WorldError, enter_namespaces

_BOTH = (4, 6)


class _Ended(BaseException):
    """SIGTERM."""


def ours(run_dir: Path, shim: Path) -> dict[str, Callable[[], Subject]]:
    """Ours and the floor, by name."""
    return {
        OURS: lambda: Grpc(OURS, _BOTH, run_dir),
        "grpc ipv4": lambda: Grpc("grpc ipv4", (4,), run_dir),
        "shim dual": lambda: Shim("shim dual", _BOTH, shim, run_dir),
        "inner dual": lambda: inner("inner dual", _BOTH, run_dir),
        "inner ipv4": lambda: inner("inner ipv4", (4,), run_dir),
        "floor dual": lambda: floor("floor dual", _BOTH, run_dir, "dual"),
        "floor ipv4": lambda: floor("floor ipv4", (4,), run_dir, "ipv4"),
        "floor same work": lambda: floor("floor same work", _BOTH, run_dir, "same"),
    }


@contextlib.contextmanager
def opened(
    catalogue: dict[str, Callable[[], Subject]], names: Sequence[str], run_dir: Path
) -> Iterator[list[Subject]]:
    """The subjects of these names, with hosts of their own, until the end."""
    with contextlib.ExitStack() as stack:
        subjects = []
        for name in names:
            subject = catalogue[name]()
            stack.callback(subject.close)
            subjects.append(subject)
        served = [one for one in subjects if isinstance(one, Grpc)]
        if served:
            stack.callback(connect(served, run_dir).close)
        yield subjects


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="attach", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--figures", default="")
    return parser.parse_args(arguments)


def _tars() -> list[Path]:
    return [Path(tar).absolute() for tar in os.environ["BENCH_PEERS"].split()]


def main(arguments: list[str]) -> int:
    chosen = _arguments(arguments)
    tars = _tars()
    shim = Path(os.environ["BENCH_SHIM"]).absolute()
    machine = describe(Path(os.environ["BENCH_LOCK"]))
    enter_namespaces()
    run_dir = Path("/run/bench")
    run_dir.mkdir(mode=0o700)
    installed = peers.install(run_dir / "peers", tars, None)
    catalogue = ours(run_dir, shim) | peers.catalogue(installed)
    names = [name for name in catalogue if not chosen.only or name in chosen.only.split(",")]
    results = Results({})
    plan = Plan(chosen.rounds, chosen.samples, 3, (1, 2, 4, 8, 16), ())
    with opened(catalogue, names, run_dir) as subjects:
        results = Results({one.name: 6 in one.versions for one in subjects})
        roster = Roster(subjects, random.Random(1))
        phases = Phases(roster, results, plan)
        phases.warm_up()
        for round_ in range(plan.rounds):
            say(f"round {round_}")
            if "alone" in (chosen.figures or "alone"):
                phases.alone(round_)
            if "rate" in (chosen.figures or "rate"):
                phases.at_once(round_)
    print(report.heading(machine))
    print(report.tables(results.figures()))
    if chosen.json:
        print(json.dumps({"machine": machine, "figures": [f.as_json() for f in results.figures()]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
