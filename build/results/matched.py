# SPDX-License-Identifier: Apache-2.0
"""Fail when the --test_filter of a run matched no case of any test.

bazelw calls it after such a run of several tests, with the file that Bazel's
--build_event_json_file wrote: a test alone cannot know, as others may have a
match (build/python/pytest_main.py).
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from build.results.cases import cases
from build.results.events import Result, results

# Bazel's own status for a run without tests.
NO_TESTS = 4


def matched(found: Iterable[Result]) -> bool:
    """Return whether some result has a case. Raises OSError: no report."""
    return any(
        any(cases((result.directory / "test.xml").read_bytes()))
        for result in found
        if result.directory is not None
    )


def main(given: list[str]) -> int:
    """Return the exit status: 0, or NO_TESTS after a message."""
    [events] = given
    with Path(events).open(errors="replace") as lines:
        if matched(results(lines)):
            return 0
    print(
        "bazelw: --test_filter matches no case of these tests. Give a part of a name, an"
        " expression such as 'one or two', or y_test.py::test_z; with one test as the only"
        " target, its cases are listed",
        file=sys.stderr,
    )
    return NO_TESTS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
