# SPDX-License-Identifier: Apache-2.0
"""Ask every host port from everywhere, and compare with what must answer.

    ./bazelw run //metropolis/test/ports:matrix -- --list
    ./bazelw run //metropolis/test/ports:matrix -- --only outside/any --list
    ./bazelw run //metropolis/test/ports:matrix -- --json --log FILE

It runs node core in namespaces of its own, with an uplink, pods, a host outside
and another node, and asks each cell of the truth table with real sockets. With
--json the last line of stdout is {"ok", "cells", "wrong": [{"cell", "expected",
"got", "why"}], "skipped": [{"what", "why"}], "seconds"}.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from metropolis.test.ports import oracle
from metropolis.test.ports.oracle import By, Client, Setting
from metropolis.test.world.namespaces import WorldError, enter_namespaces

_EPILOG: Final = """\
exit status: 0 every cell was as it must be; 1 some were not, or the service does
not start; 2 wrong arguments, or there can be no namespaces; 130 after Ctrl-C. In
all cases nothing remains but the log.
"""
SETTINGS: Final = tuple(
    Setting(access, listening, versions, further)
    for access, listening, versions, further in (
        (False, False, (4, 6), False),
        (False, False, (4, 6), True),
        (False, True, (4, 6), False),
        (True, False, (4, 6), False),
        (True, True, (4, 6), False),
        (True, True, (4, 6), True),
        (True, True, (4,), False),
        (True, True, (6,), False),
    )
)
_SHOWN: Final = 60  # wrong cells in the text for people


class _Ended(BaseException):
    """SIGTERM or SIGHUP."""


@dataclass(frozen=True)
class Skipped:
    """Something that is not tried here, and why."""

    what: str
    why: str


SKIPPED: Final = (
    Skipped("case/host-listens/sctp", "listeners of SCTP are the kernel's, which may lack them"),
    Skipped("other-node/pod", "a pod of another node needs WireGuard, which a kernel may lack"),
    Skipped("case/bad-input/a range upside down", "a request has no ranges: proxies expand them"),
)


@dataclass
class Outcome:
    """The results of a run, by group."""

    results: list[Any] = field(default_factory=list)
    groups: dict[str, list[Any]] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def add(self, group: str, results: Sequence[Any]) -> None:
        """Add results; report them to people who wait."""
        self.results += results
        self.groups.setdefault(group, []).extend(results)
        wrong = sum(not one.ok for one in results)
        seconds = time.monotonic() - self.begun
        print(
            f"matrix {seconds:5.1f} s: {group}: {len(results)} cells, {wrong} wrong",
            file=sys.stderr,
            flush=True,
        )

    def fields(self) -> dict[str, Any]:
        """Return what --json prints."""
        wrong = [
            {name: value for name, value in asdict(one).items() if name != "ok"}
            for one in self.results
            if not one.ok
        ]
        return {
            "ok": not wrong,
            "cells": len(self.results),
            "wrong": wrong,
            "skipped": [asdict(one) for one in SKIPPED],
            "seconds": round(time.monotonic() - self.begun, 1),
        }


class Selection:
    """The cells that --only chooses, by patterns as in a shell, or by parts."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [one if "*" in one else f"*{one}*" for one in patterns]

    def __contains__(self, cell: str) -> bool:
        return not self._patterns or any(
            fnmatch.fnmatchcase(cell, pattern) for pattern in self._patterns
        )


def cases_of(setting: Setting) -> dict[str, Any]:
    """Return the cases that run with a setting."""
    from metropolis.test.ports import cases, faults

    if setting == SETTINGS[0]:
        return cases.CASES | faults.CASES
    return faults.ONE_FAMILY if len(setting.versions) == 1 else {}


def case_name(setting: Setting, name: str) -> str:
    """Return the name of a case in a setting."""
    return name if len(setting.versions) == 2 else f"{name}-ipv{setting.versions[0]}"


def work(selection: Selection, outcome: Outcome, log: Path) -> None:
    """Run all that is selected, in new namespaces. Raises WorldError."""
    # gRPC makes threads, and there may be none before the namespaces.
    from metropolis.test.ports import checks
    from metropolis.test.ports.table import Table
    from metropolis.test.ports.world import World

    with contextlib.closing(World(log)) as world:
        world.build()
        running: tuple[bool, tuple[int, ...]] | None = None
        for setting in SETTINGS:
            chosen = [one for one in oracle.cells(setting) if str(one) in selection]
            cases = {
                case_name(setting, name): case
                for name, case in cases_of(setting).items()
                if f"case/{case_name(setting, name)}/" in selection
            }
            if not chosen and not cases:
                continue
            if running != (setting.access, setting.versions):
                world.core.stop()
                world.start(access=setting.access, versions=setting.versions)
                running = (setting.access, setting.versions)
            if chosen:
                outcome.add(str(setting), list(_table(Table(world, setting), chosen)))
            for name, case in cases.items():
                outcome.add(f"case/{name}", checks.run(name, case, world, setting))


def _table(table: Any, chosen: Sequence[oracle.Cell]) -> Iterator[Any]:
    import grpc

    from metropolis.test.ports.table import Result

    try:
        table.prepare()
        yield from table.run(chosen)
        yield table.elements()
    except grpc.RpcError as error:
        got = f"{error.code().name}: {error.details()}"
        for cell in chosen:
            yield Result(str(cell), "an attachment", got, "the pod is attached", False)
    finally:
        table.finish()


def _clients(results: Sequence[Any]) -> Iterator[str]:
    """Yield the table of clients: how many cells must have which answer."""
    answers = ("pod-a", *(one.value for one in (By.NODE, By.REFUSED, By.SILENT)))
    yield f"{'client':12}" + "".join(f"{one:>9}" for one in (*answers, "wrong"))
    for client in Client:
        mine = [one for one in results if f"/{client}/" in one.cell]
        counts = Counter(one.expected.split()[0] for one in mine)
        numbers = [*(counts[one] for one in answers), sum(not one.ok for one in mine)]
        yield f"{client:12}" + "".join(f"{one:9}" for one in numbers)


def shown(outcome: Outcome) -> str:
    """Return the result for people."""
    width = max(len(group) for group in outcome.groups)
    lines = [f"{'setting, or case':{width}}  cells  wrong"]
    for group, results in outcome.groups.items():
        bad = sum(not one.ok for one in results)
        lines.append(f"{group:{width}}  {len(results):5}  {bad:5}")
    cells = [one for one in outcome.results if not one.cell.startswith("case/")]
    if cells:
        lines += ["", *_clients(cells), ""]
    wrong = [one for one in outcome.results if not one.ok]
    for one in wrong[:_SHOWN]:
        lines += [
            f"WRONG {one.cell}",
            f"    expected {one.expected} ({one.why})",
            f"    got      {one.got}",
        ]
    if len(wrong) > _SHOWN:
        lines.append(f"... {len(wrong) - _SHOWN} more; --json has all")
    lines += [f"not tried: {one.what}: {one.why}" for one in SKIPPED]
    verdict = f"{len(wrong)} of {len(outcome.results)} cells wrong" if wrong else "ok"
    seconds = time.monotonic() - outcome.begun
    return "\n".join([*lines, f"{verdict}: {len(outcome.results)} cells in {seconds:.0f} s"])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="matrix",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--only", metavar="TEXT", action="append", default=[],
        help="cells with this text in their name, such as outside/any, udp or case/replaced; "
        "with a * it is a pattern for the whole name; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the selected cells and what must answer; ask none",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as one line of JSON, the last one"
    )
    parser.add_argument(
        "--log", metavar="FILE", type=Path,
        help="node core's log, kept (default: a new file in the directory for temporary files)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def listed(selection: Selection) -> list[str]:
    """Return the selected cells, each with its claim, and the cases."""
    lines = []
    for setting in SETTINGS:
        for cell in oracle.cells(setting):
            if str(cell) in selection:
                one = oracle.expected(cell)
                lines.append(f"{cell}: {one.by}, source {one.source}: {one.why}")
        for name in cases_of(setting):
            if f"case/{case_name(setting, name)}/" in selection:
                lines.append(f"case/{case_name(setting, name)}")
    return lines


def _terminated(number: int, frame: FrameType | None) -> None:
    raise _Ended


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    given = parse(arguments)
    selection = Selection(given.only)
    if not (cells := listed(selection)):
        print(f"matrix: --only {' '.join(given.only)}: no cell has such a name", file=sys.stderr)
        return 2
    if given.list:
        print("\n".join(cells))
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    outcome = Outcome()
    log = (given.log or Path(tempfile.mkstemp(prefix="matrix-", suffix=".log")[1])).absolute()
    print(f"matrix: node core's log {log}", file=sys.stderr)
    try:
        enter_namespaces()
    except WorldError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 2
    try:
        work(selection, outcome, log)
    except WorldError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt, _Ended:
        print("matrix: stopped; nothing remains", file=sys.stderr)
        return 130
    print(json.dumps(outcome.fields()) if given.json else shown(outcome))
    return 1 if outcome.fields()["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
