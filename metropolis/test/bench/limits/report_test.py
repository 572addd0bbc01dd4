# SPDX-License-Identifier: Apache-2.0
"""Figures from samples."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from metropolis.test.bench.limits.report import Cell, Line, Sample, line, rate_text, table, worst

CELL = Cell(10**7, "to", 4)
SAMPLES = [
    Sample(0.99, 0.9, 1.1, [1.0, 2.0], [20.0, 30.0]),
    Sample(1.01, 0.95, 1.2, [3.0], [40.0]),
    Sample(1.0, 0.91, 1.3, [2.0], [30.0]),
]


def test_medians() -> None:
    made = line(CELL, SAMPLES)
    assert made.loaded_p95_ms == pytest.approx(38.5)
    assert made == Line(CELL, 1.0, 0.99, 1.01, 0.91, 1.2, 2.0, 30.0, made.loaded_p95_ms)
    assert made.as_json()["rate"] == 10**7
    assert "cell" not in made.as_json()


@given(some.lists(some.tuples(some.integers(1, 9), some.integers(0, 9)), max_size=20))
def test_the_worst_window(steps: list[tuple[int, int]]) -> None:
    """As if each count were compared with each other one."""
    counts = [(0.0, 0)]
    for after, size in steps:
        counts.append((counts[-1][0] + after, counts[-1][1] + size))
    rates = []
    for number, (begin, passed) in enumerate(counts):
        later = [one for one in counts[number:] if one[0] - begin >= 5]
        rates += [(total - passed) / (then - begin) for then, total in later[:1]]
    assert worst(counts, 5) == max(rates, default=0.0)


@pytest.mark.parametrize(
    ("rate", "text"), [(10**6, "1M"), (5 * 10**9, "5G"), (8000, "8k"), (1500, "1500")]
)
def test_rates(rate: int, text: str) -> None:
    assert rate_text(rate) == text


def test_a_table() -> None:
    head, row = table([line(CELL, SAMPLES)]).splitlines()
    assert head.split()[:3] == ["rate", "way", "IP"]
    assert row.split() == [
        "10M", "to", "IPv4", "100.0", "99.0", "101.0", "91.0", "120.0", "2.00", "30.0", "38.5",
    ]  # fmt: skip
