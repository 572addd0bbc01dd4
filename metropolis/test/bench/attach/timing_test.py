# SPDX-License-Identifier: Apache-2.0
"""Every call is made once, by the requested number of threads."""

import signal
import threading
from functools import partial

import pytest

from metropolis.test.bench.attach.timing import timed


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


def test_an_interruption_waits_for_what_is_under_way() -> None:
    begun = threading.Semaphore(0)
    finished: list[int] = []

    def call() -> None:
        begun.release()
        proceed.wait(30)
        finished.append(1)

    def interrupt() -> None:
        for _ in range(2):
            begun.acquire()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def interrupted(number: int, frame: object) -> None:
        proceed.set()
        raise KeyboardInterrupt

    proceed = threading.Event()
    before = signal.signal(signal.SIGUSR1, interrupted)
    other = threading.Thread(target=interrupt)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            timed([call] * 1000, 2)
    finally:
        other.join()
        signal.signal(signal.SIGUSR1, before)
    assert 2 <= len(finished) < 1000


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_thread_that_cannot_begin_calls_nothing(at_once: int) -> None:
    """It may be in the wrong namespace."""
    done: list[int] = []

    def refuse() -> None:
        raise OSError("no such namespace")

    with pytest.raises(OSError, match="no such namespace"):
        timed([partial(done.append, 1)] * 5, at_once, refuse)
    assert not done


def test_nothing_to_do() -> None:
    assert timed([], 1)[0] == []
