# SPDX-License-Identifier: Apache-2.0
"""Try every case of network policy with real connections.

    ./bazelw run //metropolis/test/policy:matrix -- --list
    ./bazelw run //metropolis/test/policy:matrix -- --only endPort
    ./bazelw run //metropolis/test/policy:matrix -- --json --log FILE

It runs node core in namespaces of its own, with nine pods in three namespaces
and an outside, sets the policies of each case by the API, has everybody connect
to everybody by TCP, UDP and SCTP in both families, and compares with an oracle.
With --json the last line of stdout is {"ok", "cases", "cells", "wrong":
[{"cell", "expected", "got"}], "seconds"}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from metropolis.test.policy import cases
from metropolis.test.policy.scene import Case
from metropolis.test.world.namespaces import WorldError, enter_namespaces

_EPILOG: Final = """\
exit status: 0 every connection was as the oracle says; 1 some were not, or the
service does not start; 2 wrong arguments, or there can be no namespaces; 130
after Ctrl-C. In all cases nothing remains but the log.
"""
_SHOWN: Final = 60  # wrong cells in the text for people
_REPORT_S: Final = 5.0


class _Ended(BaseException):
    """SIGTERM or SIGHUP."""


@dataclass
class Outcome:
    """The results of a run."""

    cases: int = 0
    cells: int = 0
    wrong: list[Any] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Return for how long it has run."""
        return time.monotonic() - self.begun

    def fields(self) -> dict[str, Any]:
        """Return what --json prints."""
        return {
            "ok": not self.wrong,
            "cases": self.cases,
            "cells": self.cells,
            "wrong": [asdict(one) for one in self.wrong],
            "seconds": round(self.seconds, 1),
        }


def selected(only: Sequence[str], tags: Sequence[str], every: int) -> list[Case]:
    """Return the cases that have one of the texts in their names and all of the
    tags; of these each `every`th.
    """
    chosen = [
        one
        for one in cases.cases()
        if (not only or any(text in one.name for text in only)) and one.tags.issuperset(tags)
    ]
    return chosen[::every]


def work(chosen: Sequence[Case], outcome: Outcome, log: Path) -> None:
    """Play cases, in new namespaces. Raises WorldError."""
    # gRPC makes threads, and there may be none before the namespaces.
    import grpc

    from metropolis.test.policy.play import Play, Wrong

    with contextlib.closing(Play(log)) as play:
        play.build()
        reported = time.monotonic()
        for case in chosen:
            for step in case.steps:
                try:
                    play.enter(step)
                    cells, wrong = play.ask(case.name, step, step.probes())
                except grpc.RpcError as error:
                    cells, got = 1, f"{error.code().name}: {error.details()}"
                    wrong = [Wrong(f"{case.name}/{step.what}", "in force", got)]
                outcome.cells += cells
                outcome.wrong += wrong
                if wrong:
                    print(f"matrix: {case}: {step.what}: {len(wrong)} wrong", file=sys.stderr)
            outcome.cases += 1
            if time.monotonic() - reported > _REPORT_S:
                reported = time.monotonic()
                print(
                    f"matrix {outcome.seconds:5.1f} s: {outcome.cases} of {len(chosen)} cases, "
                    f"{outcome.cells} cells, {len(outcome.wrong)} wrong",
                    file=sys.stderr,
                    flush=True,
                )


def shown(outcome: Outcome) -> str:
    """Return the result for people."""
    lines = []
    for one in outcome.wrong[:_SHOWN]:
        lines += [f"WRONG {one.cell}: must be {one.expected}; {one.got}"]
    if len(outcome.wrong) > _SHOWN:
        lines.append(f"... {len(outcome.wrong) - _SHOWN} more; --json has all")
    verdict = f"{len(outcome.wrong)} wrong" if outcome.wrong else "ok"
    lines.append(
        f"{verdict}: {outcome.cases} cases, {outcome.cells} cells in {outcome.seconds:.0f} s"
    )
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="matrix",
        usage="%(prog)s [options]",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--only", metavar="TEXT", action="append", default=[],
        help="cases with this text in their name; repeatable; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--tag", metavar="TAG", action="append", default=[],
        help="cases with this tag, such as ingress, peers, ports, action or cluster; repeatable: "
        "all of them; default: all cases",
    )  # fmt: skip
    parser.add_argument(
        "--every", metavar="N", type=_count, default=1,
        help="only each Nth of the selected cases; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--list", action="store_true", help="print the selected cases and their tags; try none"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as one line of JSON, the last one"
    )
    parser.add_argument(
        "--log", metavar="FILE", type=Path,
        help="node core's log, kept (default: a new file in the directory for temporary files)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _count(argument: str) -> int:
    if not argument.isascii() or not argument.isdecimal() or not int(argument):
        raise argparse.ArgumentTypeError(f"{argument!a} is no number from 1")
    return int(argument)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise _Ended


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    given = parse(arguments)
    chosen = selected(given.only, given.tag, given.every)
    if not chosen:
        print("matrix: no case has such a name and such tags; see --list", file=sys.stderr)
        return 2
    if given.list:
        print("\n".join(f"{one}  [{', '.join(sorted(one.tags))}]" for one in chosen))
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    outcome = Outcome()
    log = (given.log or Path(tempfile.mkstemp(prefix="matrix-", suffix=".log")[1])).absolute()
    print(f"matrix: {len(chosen)} cases; node core's log {log}", file=sys.stderr)
    try:
        enter_namespaces()
    except WorldError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 2
    try:
        work(chosen, outcome, log)
    except WorldError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt, _Ended:
        print("matrix: stopped; nothing remains", file=sys.stderr)
        return 130
    print(json.dumps(outcome.fields()) if given.json else shown(outcome))
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
