# SPDX-License-Identifier: Apache-2.0
"""Count the test cases of one run of Bazel.

    ./bazelw test --build_event_json_file=EVENTS //...
    ./bazelw shell python3 -m build.results.count EVENTS

It prints the reason of each skipped test, then one line of totals. Bazel counts
targets, people count test cases. Status: 0 when there are some, none failed and
none lacks a report; else 1.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from build.results.cases import Outcome, cases
from build.results.events import PASSED, Result, results


def count(found: Iterable[Result]) -> tuple[Counter[Outcome], list[str]]:
    """Return the number of cases by outcome, and remarks about some.

    A failed result without a failed case, or without any, counts as a failure.
    """
    counts: Counter[Outcome] = Counter()
    notes: list[str] = []
    for result in sorted(found, key=lambda result: (result.label, result.shard, result.run)):
        report = b""
        if result.directory is not None:
            try:
                report = (result.directory / "test.xml").read_bytes()
            except OSError as error:
                notes.append(f"{result.label}: test.xml: {error.strerror}")
        ended = list(cases(report))
        counts.update(case.outcome for case in ended)
        failed = any(case.outcome is Outcome.FAILED for case in ended)
        if not failed and (result.status != PASSED or not ended):
            counts[Outcome.FAILED] += 1
            notes.append(f"failed: {result.label}: {result.status}, {len(ended)} cases")
        notes += [
            f"skipped: {result.label}: {case.name}: {case.why}"
            for case in ended
            if case.outcome is Outcome.SKIPPED
        ]
    return counts, notes


def main(given: list[str]) -> int:
    """Run the command; return the exit status."""
    try:
        [events] = given
        with Path(events).open(errors="replace") as lines:
            counts, notes = count(results(lines))
    except ValueError:
        print("usage: count EVENTS", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"count: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    for note in notes:
        print(note)
    print(", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome))
    return 1 if counts[Outcome.FAILED] or not counts[Outcome.PASSED] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
