# SPDX-License-Identifier: Apache-2.0
"""Percentiles of samples."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.test.bench.common.stats import percentile


def test_percentiles_lie_between_samples() -> None:
    samples = [4.0, 1.0, 3.0, 2.0, 5.0]
    assert percentile(samples, 0) == 1
    assert percentile(samples, 50) == 3
    assert percentile(samples, 95) == pytest.approx(4.8)
    assert percentile(samples, 100) == 5
    assert percentile([7.0], 99) == 7


def test_a_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="of nothing"):
        percentile([], 50)


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0, 100))
def test_a_percentile_is_within_the_samples(samples: list[float], percent: float) -> None:
    found = percentile(samples, percent)
    assert min(samples) <= found <= max(samples) or math.isclose(found, max(samples))


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_percentiles_are_in_order(samples: list[float]) -> None:
    found = [percentile(samples, percent) for percent in (50, 95, 99)]
    assert found == pytest.approx(sorted(found))
