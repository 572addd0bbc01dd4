# SPDX-License-Identifier: Apache-2.0
"""Medians and ratios of rounds."""

import pytest

from metropolis.test.bench.packets.report import (
    BASELINE,
    NONE,
    SUBJECTS,
    TREE,
    Figure,
    Results,
    ratio,
    table,
)

FIGURE = Figure("TCP_RR", "pod to pod", 4, 10)


def results() -> Results:
    """The machine was half as fast in the last round."""
    made = Results()
    for factor in (1.0, 1.0, 2.0):
        for subject, us in ((NONE, 20.0), (BASELINE, 24.0), (TREE, 30.0)):
            made.add(FIGURE, subject, us * factor)
    return made


def test_ratios_are_of_rounds() -> None:
    (line,) = results().lines()
    assert line.us == {NONE: 20.0, BASELINE: 24.0, TREE: 30.0}
    assert (line.to_baseline, line.to_none) == (1.25, 1.5)
    # The ratio of the medians would be 10 / 20.
    assert ratio([10, 10, 40], [10, 20, 40]) == 1


def test_rounds_that_lack_a_subject_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio([1, 2], [1])


def test_what_is_printed() -> None:
    lines = results().lines()
    printed = table(lines)
    assert all(subject in printed.splitlines()[0] for subject in SUBJECTS)
    assert "pod to pod v4" in printed
    assert "1.250" in printed
    assert lines[0].as_json() == {
        "kind": "TCP_RR", "way": "pod to pod", "version": 4, "workloads": 10, "flows": 0,
        "us": {NONE: 20, BASELINE: 24, TREE: 30}, "to_baseline": 1.25, "to_none": 1.5,
    }  # fmt: skip
