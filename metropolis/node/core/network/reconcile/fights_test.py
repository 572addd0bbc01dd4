# SPDX-License-Identifier: Apache-2.0
"""Five repairs in a minute, and what comes after them."""

from __future__ import annotations

import pytest

from metropolis.node.core.network.reconcile.fights import REPAIRS, TRY_AGAIN_S, WITHIN_S, Fights
from metropolis.node.core.network.reconcile.ward import Repair

KEY = "route 10.192.0.7/32"


class Clock:
    """Time that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fights(clock: Clock) -> Fights:
    return Fights(clock)


def changed(fights: Fights, key: str = KEY, *, error: str = "") -> bool:
    """Let a look find it wrong; return whether it is restored (or tried)."""
    if not fights.allow(key):
        fights.looked([Repair(key, "wrong", left=True)])
        return False
    fights.looked([Repair(key, "wrong", error=error)])
    return True


def fight(fights: Fights) -> None:
    """Break it until it is left."""
    for _ in range(REPAIRS):
        assert changed(fights)
        fights.looked([])  # a look in between finds it restored
    assert not changed(fights)


def test_the_sixth_in_a_minute_is_left(fights: Fights) -> None:
    fight(fights)
    assert list(fights.left) == [KEY]


def test_other_things_go_on_being_put_back(fights: Fights) -> None:
    fight(fights)
    assert changed(fights, "sysctl net.ipv4.ip_forward")


@pytest.mark.parametrize(("pause_s", "left"), [(WITHIN_S / 5 - 0.1, True), (WITHIN_S / 5, False)])
def test_only_a_minute_counts(fights: Fights, clock: Clock, pause_s: float, left: bool) -> None:
    """Five in exactly a minute leave room for the sixth."""
    for _ in range(20):
        if not changed(fights):
            break
        clock.now += pause_s
    assert bool(fights.left) is left


def test_it_is_forgiven_when_it_is_right_by_itself(fights: Fights, clock: Clock) -> None:
    """And all five are forgotten."""
    fight(fights)
    clock.now += 1
    assert not changed(fights)
    fights.looked([])
    assert list(fights.left) == []
    fight(fights)


def test_after_ten_minutes_it_is_tried_again(fights: Fights, clock: Clock) -> None:
    fight(fights)
    clock.now += TRY_AGAIN_S - 1
    assert not changed(fights)
    clock.now += 1
    assert changed(fights)
    assert list(fights.left) == []


def test_whoever_goes_on_is_left_again(fights: Fights, clock: Clock) -> None:
    """The time counts from when it was left, not from the last look."""
    for _ in range(3):
        fight(fights)
        for _ in range(9):
            clock.now += TRY_AGAIN_S / 10
            assert not changed(fights)
        clock.now += TRY_AGAIN_S / 10


def test_what_cannot_be_put_back_is_tried_each_time(fights: Fights) -> None:
    """An error counts as no repair."""
    for _ in range(50):
        assert changed(fights, error="EPERM")
    fight(fights)


def test_nothing_is_kept_of_what_is_right(fights: Fights, clock: Clock) -> None:
    for number in range(1000):
        changed(fights, f"route {number}")
    clock.now += WITHIN_S
    fights.looked([])
    assert fights._things == {}
