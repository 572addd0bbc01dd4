# SPDX-License-Identifier: Apache-2.0
"""Keys exclude themselves and nobody else."""

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
    for left_s in (0.0, -1.0, 0.01):
        with (
            locks.hold("a", left_s=0.0),
            pytest.raises(GivenUp, match="another call for this thing was under way"),
            locks.hold("a", left_s=left_s),
        ):
            pass
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
