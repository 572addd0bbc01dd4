# SPDX-License-Identifier: Apache-2.0
"""A key excludes only itself."""

import threading

import pytest

from metropolis.node.core.network.workloads.engine.locks import KeyedLocks
from metropolis.node.core.network.workloads.errors import GivenUp, Unavailable


def test_different_keys_do_not_wait() -> None:
    locks = KeyedLocks[str]("thing", timeout_s=0.01)
    with locks.hold("a"), locks.hold("b"):
        pass


def test_one_key_waits_and_gives_up() -> None:
    locks = KeyedLocks[str]("thing", timeout_s=0.01)
    with (
        locks.hold("a"),
        pytest.raises(Unavailable, match=r"call for this thing has taken over 0.01 s"),
        locks.hold("a"),
    ):
        pass
    with locks.hold("a"):
        pass


def test_too_many_do_not_even_wait() -> None:
    locks = KeyedLocks[str]("thing", waiters=0)
    with (
        locks.hold("a"),
        pytest.raises(Unavailable, match="1 other calls for this thing"),
        locks.hold("a"),
    ):
        pass


def test_a_caller_without_patience_does_not_wait() -> None:
    locks = KeyedLocks[str]("thing")
    for seconds in (0.0, -1.0, 0.01):
        with (
            locks.hold("a"),
            pytest.raises(GivenUp, match="another call for this thing was under way"),
            locks.hold("a", [seconds].pop),
        ):
            pass
    assert not locks._slots


def test_a_caller_who_left_gets_no_free_lock() -> None:
    locks = KeyedLocks[str]("thing")
    with pytest.raises(GivenUp, match="nothing was begun"), locks.hold("a", lambda: 0.0):
        pass
    assert not locks._slots


def test_trying_never_waits() -> None:
    locks = KeyedLocks[str]("thing")
    lock = locks.try_hold("a")
    assert lock is not None
    assert locks.try_hold("a") is None
    other = locks.try_hold("b")
    assert other is not None
    other.release()
    with pytest.raises(GivenUp), locks.hold("a", [0.01].pop):
        pass
    lock.release()
    with locks.hold("a"):
        assert locks.try_hold("a") is None
    assert not locks._slots


def test_nothing_is_kept_of_keys() -> None:
    locks = KeyedLocks[int]("thing")
    count = 0

    def work() -> None:
        nonlocal count
        for _ in range(200):
            with locks.hold(1):
                count += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 800
    assert not locks._slots
