# SPDX-License-Identifier: Apache-2.0
"""The failures of each test, from the results of all runs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from build.results.events import PASSED, Result

# The status of a run without a result, which Bazel did not start; and the
# statuses of an interrupted run.
NOT_RUN = "NOT RUN"
_CUT_SHORT = ("INCOMPLETE", "NO_STATUS")


@dataclass(frozen=True)
class Tally:
    """A test's runs. bad: statuses of failed runs, by number. cases: failures
    by test case, from the reports.
    """

    label: str
    runs: int
    bad: Mapping[int, str]
    cases: Mapping[str, int]


def tally(
    labels: Iterable[str],
    runs: int,
    results: Iterable[Result],
    cases: Mapping[str, Sequence[str]],
    interrupted: bool = False,
) -> list[Tally]:
    """Count. A run passed when it has a result and all its shards passed.

    cases: by label, the names of failed cases, once for each failure.
    interrupted: a run without a result is not a failure, and does not count.
    """
    found: dict[str, dict[int, str]] = {label: {} for label in labels}
    for result in results:
        if interrupted and result.status in _CUT_SHORT:
            continue
        statuses = found.setdefault(result.label, {})
        if statuses.get(result.run, PASSED) == PASSED:
            statuses[result.run] = result.status
    return [
        Tally(
            label,
            runs,
            {
                run: statuses.get(run, NOT_RUN)
                for run in range(1, runs + 1)
                if statuses.get(run, PASSED if interrupted else NOT_RUN) != PASSED
            },
            Counter(cases.get(label, ())),
        )
        for label, statuses in sorted(found.items())
    ]


def to_json(tallies: Iterable[Tally], runs: int) -> dict[str, object]:
    """Return the output of --json."""
    failed = {one.label: len(one.bad) for one in tallies if one.bad}
    return {"ok": not failed, "runs": runs, "failed": failed}


def _ranges(numbers: Iterable[int]) -> str:
    """Format numbers: "1-3, 5" for 1, 2, 3, 5."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def counted(count: int, noun: str) -> str:
    """Format a count: "1 test", "2 tests"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def to_table(tallies: Sequence[Tally], runs: int) -> str:
    """Return the table: tests that failed, the worst first, and a sum."""
    bad = sorted((one for one in tallies if one.bad), key=lambda one: (-len(one.bad), one.label))
    width = max((len(one.label) for one in bad), default=0)
    lines: list[str] = []
    for one in bad:
        how = [
            f"{status} in {_ranges(run for run, its in one.bad.items() if its == status)}"
            for status in sorted(set(one.bad.values()))
        ]
        lines.append(f"{one.label:{width}}  {len(one.bad)} of {runs}  {'; '.join(how)}")
        for case, times in sorted(one.cases.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"{'':{width}}    {times} x {case}")
    total = f"{counted(len(tallies), 'test')}, {counted(runs, 'run')} each"
    lines.append(f"{total}: {len(tallies) - len(bad)} never failed")
    return "\n".join(lines)
