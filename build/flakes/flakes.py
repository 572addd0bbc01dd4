# SPDX-License-Identifier: Apache-2.0
"""Run tests many times beside a busy loop on each core; print the failures.

    ./bazelw run //build:flakes -- [TARGETS] --runs N [--vm] [--json]

TARGETS are Bazel's target patterns; without any, all tests. A pattern that
stands for several (//x/..., //x:all) means the tests that boot no virtual
machine, with --vm those that do; a test that is named is run in any case.

Progress is on stderr. Stdout has the table of the failed tests, how often and
in which runs, or with --json one line:
{"ok": bool, "runs": N, "failed": {"//target": count}}.
Logs and reports of the runs that failed, and the table, are kept in the
directory of --output. Run 1 has the examples of any ordinary test run. Run K,
from 2 on, draws those of property tests with the seed K. This repeats run 4:

    ./bazelw test //x:y --nocache_test_results --test_env=TEST_RANDOM_SEED=4

Status: 0 when every run passed; 1 when some failed; 2 for wrong arguments,
targets that are not there or do not build, or when Bazel itself fails; 128 and
the signal's number when a signal ended it (Bazel is interrupted then, and the
table of what has run is on stderr).
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from build.flakes.bazel import Bazel, busy_loops
from build.flakes.tally import Tally, counted, tally, to_json, to_table
from build.results.cases import Outcome, cases
from build.results.events import PASSED, Result, results

_ALL = "//..."
_MAX_RUNS = 1000
# Exit statuses of Bazel (its guide, "What exit code will I get").
_OK, _BUILD_FAILED, _TESTS_FAILED = 0, 1, 3


class FlakesError(Exception):
    """Some runs could not start; the text has the reason."""


def say(message: str) -> None:
    """Print progress."""
    print(f"flakes: {message}", file=sys.stderr, flush=True)


def stands_for_several(pattern: str) -> bool:
    """Return whether a pattern is a wildcard, not the name of a target."""
    return pattern.endswith(("...", ":all", ":*", ":all-targets"))


def query(patterns: Sequence[str], machines: bool) -> str:
    """Return a Bazel query for the tests to run; see the module."""

    def tests(chosen: Iterable[str]) -> str:
        return f"tests(set({' '.join(f'"{pattern}"' for pattern in chosen)}))"

    def tagged(tag: str) -> str:
        return f'attr("tags", "[\\[ ]{tag}[,\\]]", $several)'

    named = [pattern for pattern in patterns if not stands_for_several(pattern)]
    several = [pattern for pattern in patterns if stands_for_several(pattern)]
    parts: list[str] = []
    if several:
        join = "intersect" if machines else "except"
        found = f"($several {join} {tagged('vm')}) except {tagged('manual')}"
        parts.append(f"let several = {tests(several)} in ({found})")
    if named:
        parts.append(tests(named))
    return " union ".join(f"({part})" for part in parts)


async def find(bazel: Bazel, patterns: Sequence[str], machines: bool) -> list[str]:
    """Return the labels of the tests to run. FlakesError."""
    command = ["query", "--noshow_progress", "--output=label", query(patterns, machines)]
    status, out = await bazel.run(*command, capture=True)
    given = " ".join(patterns)
    if status != _OK:
        raise FlakesError(f"{given}: not targets, see above (bazel query: status {status})")
    if labels := out.split():
        return labels
    kind = "that boots a virtual machine" if machines else "without a virtual machine; see --vm"
    raise FlakesError(f"{given}: there is no test {kind}")


def keep(found: Sequence[Result], output: Path) -> dict[str, list[str]]:
    """Copy the files of failed runs; return the failed cases."""
    failed: dict[str, list[str]] = defaultdict(list)
    for result in found:
        if result.status == PASSED or result.directory is None:
            continue
        name = f"run_{result.run}" + (f"_shard_{result.shard}" if result.shard > 1 else "")
        kept = output / result.label.strip("@/").replace(":", "/") / name
        shutil.rmtree(kept, ignore_errors=True)
        try:
            shutil.copytree(result.directory, kept)
        except (OSError, shutil.Error) as error:
            say(f"{result.label}: the logs of run {result.run} are not kept: {error}")
            continue
        with contextlib.suppress(OSError):
            failed[result.label] += [
                case.name
                for case in cases((kept / "test.xml").read_bytes())
                if case.outcome is Outcome.FAILED
            ]
    return failed


class Flakes:
    """The work of one command. ended: results, known with result()."""

    def __init__(self, bazel: Bazel, runs: int, output: Path) -> None:
        self._bazel = bazel
        self._runs = runs
        self._output = output
        self._labels: list[str] = []
        self._events = output / "events.json"
        self.ended = 0

    async def run(self, patterns: Sequence[str], machines: bool) -> None:
        """Find, build and run the tests. FlakesError."""
        self._labels = await find(self._bazel, patterns, machines)
        listed = self._output / "targets"
        listed.write_text("\n".join(self._labels) + "\n")
        options = [
            f"--target_pattern_file={listed}",
            f"--runs_per_test={self._runs}",
            "--nocache_test_results",
            "--flaky_test_attempts=1",
            "--keep_going",
            "--test_output=summary",
            "--test_summary=none",
        ]
        if not sys.stderr.isatty():
            options.append("--config=ci")
        tests = counted(len(self._labels), "test")
        say(f"{tests}: building")
        status, _ = await self._bazel.run("build", *options)
        if status != _OK:
            raise FlakesError(f"the tests do not build, see above (bazel build: status {status})")
        cores = len(os.sched_getaffinity(0))
        beside = counted(cores, "busy loop")
        say(f"{tests}: {counted(self._runs, 'run')} each beside {beside}")
        async with busy_loops(cores):
            status, _ = await self._bazel.run(
                "test", *options, f"--build_event_json_file={self._events}"
            )
        if status not in (_OK, _BUILD_FAILED, _TESTS_FAILED):
            raise FlakesError(f"bazel test: status {status}, see above")

    def result(self, interrupted: bool) -> list[Tally]:
        """Return the results so far, and keep the files of failed runs."""
        found: list[Result] = []
        with contextlib.suppress(FileNotFoundError), self._events.open(errors="replace") as lines:
            found += results(lines)
        self.ended = len(found)
        failed = keep(found, self._output)
        tallies = tally(self._labels, self._runs, found, failed, interrupted)
        (self._output / "table").write_text(to_table(tallies, self._runs) + "\n")
        return tallies


async def _until_signalled(work: asyncio.Task[None]) -> int | None:
    """Wait for the work; return the number of the signal that ended it."""
    loop = asyncio.get_running_loop()
    caught: list[int] = []

    def stop(number: int) -> None:
        if not caught:
            say("stopping, which takes Bazel a moment")
        caught.append(number)
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        await work
    except asyncio.CancelledError:
        if not caught:
            raise
        return caught[0]
    return None


async def work(options: argparse.Namespace, bazel: Bazel, output: Path) -> int:
    """Run the command; return the exit status. Raises FlakesError."""
    flakes = Flakes(bazel, options.runs, output)
    task = asyncio.create_task(flakes.run(options.targets, options.vm))
    number = await _until_signalled(task)
    tallies = flakes.result(interrupted=number is not None)
    table = to_table(tallies, options.runs)
    answer = to_json(tallies, options.runs)
    if any(one.bad for one in tallies):
        say(f"logs, reports and the table are in {output}")
    if number is not None:
        print(table, file=sys.stderr)
        planned = len(tallies) * options.runs
        say(f"ended by a signal; no verdict: {flakes.ended} of {planned} runs had ended")
        return 128 + number
    if options.json:
        print(table, file=sys.stderr, flush=True)
    print(json.dumps(answer) if options.json else table, flush=True)
    return 0 if answer["ok"] else 1


def runs(text: str) -> int:
    """Parse a number of runs, for argparse."""
    number = int(text)
    if not 1 <= number <= _MAX_RUNS:
        raise argparse.ArgumentTypeError(f"{number}: want 1 to {_MAX_RUNS}")
    return number


def target(text: str) -> str:
    """Parse a target pattern, for argparse."""
    if not text or any(char in text for char in "\"'$ \n"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a target pattern")
    return text


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="flakes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("targets", nargs="*", type=target, metavar="TARGETS", help="what to run (default: //...)")
    add("--runs", type=runs, default=10, metavar="N", help="of each test (default: %(default)s)")
    add("--vm", action="store_true", help="the tests that boot virtual machines, not the others")
    add("--json", action="store_true", help="print one line of JSON, no table")
    add(
        "--output", type=Path, metavar="DIR",
        help="keep there what failing runs leave (default: a new directory in /tmp, which is "
        "named at the end; removed when nothing failed)",
    )  # fmt: skip
    # Targets may stand between options and after them.
    options = parser.parse_intermixed_args(given)
    options.targets = options.targets or [_ALL]
    return options


def make_directory(path: Path) -> None:
    """Make the directory if needed, and check that it is writable."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise FlakesError(f"--output {path}: {error.strerror}") from error


def main(given: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = arguments(given)
    try:
        workspace = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
        if workspace is None:
            raise FlakesError("run it by ./bazelw run //build:flakes")
        directory = Path(os.environ.get("BUILD_WORKING_DIRECTORY", workspace))
        if options.output is None:
            output = Path(tempfile.mkdtemp(prefix="flakes-", dir="/tmp"))
        else:
            output = (directory / options.output).absolute()
            make_directory(output)
        try:
            return asyncio.run(work(options, Bazel(Path(workspace), directory), output))
        finally:
            for name in ("events.json", "targets"):
                (output / name).unlink(missing_ok=True)
            if options.output is None and [path.name for path in output.iterdir()] in (
                [],
                ["table"],
            ):
                shutil.rmtree(output)
    except FlakesError as error:
        say(str(error))
        return 2


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
