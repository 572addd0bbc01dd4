# SPDX-License-Identifier: Apache-2.0
"""Every call is made once, by as many threads as said."""

import threading
from functools import partial

import pytest

from metropolis.test.bench.timing import timed


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_each_call_is_made_once(at_once: int) -> None:
    done: list[int] = []
    each, wall = timed([partial(done.append, n) for n in range(20)], at_once)
    assert sorted(done) == list(range(20))
    assert len(each) == 20
    assert all(0 < one <= wall for one in each)


def test_so_many_are_under_way_together() -> None:
    together = threading.Barrier(4, timeout=30)
    timed([together.wait] * 8, 4)  # breaks with fewer threads


def test_each_thread_begins_first() -> None:
    began: set[int] = set()

    def begin() -> None:
        began.add(threading.get_ident())

    def call() -> None:
        assert threading.get_ident() in began

    timed([call] * 9, 3, begin)
    assert len(began) == 3


@pytest.mark.parametrize("at_once", [1, 3])
def test_what_a_call_raises_is_raised(at_once: int) -> None:
    def refuse() -> None:
        raise OSError("refused")

    with pytest.raises(OSError, match="refused"):
        timed([refuse, lambda: None, lambda: None], at_once)


def test_nothing_to_do() -> None:
    assert timed([], 1)[0] == []
