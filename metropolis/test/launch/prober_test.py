# SPDX-License-Identifier: Apache-2.0
"""Answers, counted."""

from hypothesis import given
from hypothesis import strategies as st

from metropolis.test.launch.prober import Answers


def answers(*numbers: int) -> Answers:
    """Return answers, one a second from 1."""
    made = Answers()
    for when, number in enumerate(numbers, 1):
        made.add(float(when), number)
    return made


def test_answers_since() -> None:
    found = answers(0, 1, 2)
    assert [found.since(when) for when in (0.0, 1.0, 1.5, 3.0, 9.0)] == [3, 2, 2, 0, 0]


def test_lost() -> None:
    assert answers().lost(0) == 0
    assert answers(0, 1, 2).lost(0) == 0
    assert answers(0, 1, 5, 6).lost(0) == 3
    # The first after it tells of those between.
    assert answers(0, 1, 5, 6).lost(2.5) == 3
    assert answers(0, 1, 5, 6).lost(3.0) == 0


def test_a_ping_that_began_anew_lost_nothing() -> None:
    assert answers(7, 8, 0, 1).lost(0) == 0


@given(st.lists(st.integers(0, 50)), st.floats(0, 60))
def test_never_negative(numbers: list[int], since: float) -> None:
    assert answers(*numbers).lost(since) >= 0
