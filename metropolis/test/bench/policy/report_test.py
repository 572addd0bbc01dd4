# SPDX-License-Identifier: Apache-2.0
"""Figures from samples."""

import pytest

from metropolis.test.bench.policy.report import Figure, by_round, figure, table


def test_a_figure_is_compared_with_its_base() -> None:
    base = figure("connection", "no table", "us", [1.0, 2.0, 3.0])
    assert (base.p50, base.base, base.ratio) == (2.0, "", None)
    made = figure("connection", "policies", "us", [3.0], base)
    assert made == Figure("connection", "policies", "us", 1, 3.0, 3.0, "no table", 1.5, 1.0)
    assert made.as_json()["ratio"] == 1.5


def test_a_base_of_nothing() -> None:
    base = figure("connection", "no table", "us", [0.0])
    assert figure("connection", "policies", "us", [3.0], base).ratio is None


def test_ratios_of_rounds() -> None:
    """A round in which all is slow changes no ratio."""
    rounds = {"without": [[1.0, 2.0, 3.0], [20.0], [2.0]], "with": [[4.0], [40.0], [4.0]]}
    without, with_ = by_round("connection", "us", rounds, "without")
    assert (without.ratio, without.added, without.samples) == (1.0, 0.0, 5)
    assert (with_.ratio, with_.added, with_.base) == (2.0, 2.0, "without")


def test_a_median_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="percentile of nothing"):
        figure("connection", "policies", "us", [])


def test_a_table() -> None:
    base = figure("connection", "no table", "us", [2.0])
    head, first, second = table([base, figure("connection", "all", "us", [3.0], base)]).splitlines()
    assert head.split()[:2] == ["part", "subject"]
    assert first.split() == ["connection", "no", "table", "2.00", "2.00", "us"]
    assert second.split()[-4:] == ["1.50", "+1.000", "no", "table"]
