# SPDX-License-Identifier: Apache-2.0
"""The choice of the port: with numbers as clock, and with real links."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase import event
from osbase.net import ports
from osbase.net.links import LinkState
from osbase.net.ports import HOLD_S, SETTLE_S, Choice

LIMIT_S = 60


def port(index: int, *, carrier: bool) -> LinkState:
    return LinkState(index, f"eth{index}", bytes([2, 0, 0, 0, 0, index]), 1500, True, carrier)


UP = {index: port(index, carrier=True) for index in range(1, 5)}
DOWN = {index: port(index, carrier=False) for index in range(1, 5)}


def test_a_carrier_before_none_and_the_first_of_equals() -> None:
    assert Choice().update(0, [DOWN[1], UP[2], UP[3]]) == (UP[2], None)
    assert Choice().update(0, [DOWN[2], DOWN[1]]) == (DOWN[1], None)
    assert Choice().update(0, []) == (None, None)


def test_a_restart_begins_with_the_port_of_the_run_before() -> None:
    assert Choice([3]).update(0, [UP[1], UP[2], UP[3]])[0] == UP[3]
    assert Choice([3]).update(0, [UP[1], DOWN[3]])[0] == UP[1]


def test_a_port_that_worked_is_held_for_half_a_minute() -> None:
    """And longer, until another has had a carrier for a while."""
    choice = Choice()
    assert choice.update(0, [UP[1], UP[2]])[0] == UP[1]
    assert choice.update(100, [UP[1], UP[2]])[0] == UP[1]
    assert choice.update(101, [DOWN[1], UP[2]]) == (DOWN[1], 100 + HOLD_S)
    assert choice.update(100 + HOLD_S, [DOWN[1], UP[2]]) == (UP[2], None)
    # Nothing goes back by itself.
    assert choice.update(200, [UP[1], UP[2]]) == (UP[2], None)


def test_a_port_that_never_worked_gives_way_soon() -> None:
    """A node boots with its cable in the second port."""
    choice = Choice()
    assert choice.update(0, [DOWN[1], DOWN[2]]) == (DOWN[1], None)
    assert choice.update(3, [DOWN[1], UP[2]]) == (DOWN[1], 3 + SETTLE_S)
    assert choice.update(3 + SETTLE_S, [DOWN[1], UP[2]]) == (UP[2], None)


def test_a_port_that_flaps_is_not_switched_to() -> None:
    choice = Choice()
    choice.update(0, [UP[1], DOWN[2]])
    for now in range(1, 400, 4):
        assert choice.update(now, [DOWN[1], UP[2]])[0] == DOWN[1]
        assert choice.update(now + 2, [DOWN[1], DOWN[2]]) == (DOWN[1], None)


def test_a_short_loss_changes_nothing() -> None:
    choice = Choice()
    choice.update(0, [UP[1], UP[2]])
    for now in range(1, 400, 20):
        assert choice.update(now, [DOWN[1], UP[2]])[0] == DOWN[1]
        assert choice.update(now + 10, [UP[1], UP[2]]) == (UP[1], None)


def test_a_port_that_is_gone_is_replaced_at_once() -> None:
    choice = Choice()
    choice.update(0, [UP[1], UP[2]])
    assert choice.update(1, [UP[2], DOWN[3]])[0] == UP[2]
    assert choice.update(2, [DOWN[3]])[0] == DOWN[3]
    assert choice.update(3, [])[0] is None
    # Late, or back with another index.
    assert choice.update(9000, [DOWN[4]])[0] == DOWN[4]


@given(st.lists(st.tuples(st.floats(0, 60), st.sets(st.sampled_from([1, 2, 3]))), max_size=40))
def test_it_never_flaps(history: list[tuple[float, set[int]]]) -> None:
    """For any history, a port with a carrier stays, and a port that has lost it
    stays for its time.
    """
    choice, now = Choice(), 0.0
    last: LinkState | None = None
    worked = 0.0
    for after, carriers in history:
        now += after
        seen = [UP[index] if index in carriers else DOWN[index] for index in (1, 2, 3)]
        chosen, again = choice.update(now, seen)
        assert chosen is not None
        assert again is None or again > now
        if last is not None and chosen.ifindex != last.ifindex:
            assert last.ifindex not in carriers
            assert chosen.carrier
            if last.carrier:
                assert now - worked >= HOLD_S
        if chosen.carrier:
            worked = now
        last = chosen


def sh(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, timeout=LIMIT_S)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    for name in ("up0", "up1", "up2", "noise0"):
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)


@contextlib.asynccontextmanager
async def following() -> AsyncIterator[event.Watcher[LinkState | None]]:
    """Yield a watcher of the choice among links called up..., in place of
    hardware.
    """
    value = event.Value[LinkState | None]("port")
    task = asyncio.create_task(
        ports.follow(value, eligible=lambda link: link.name.startswith("up"))
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            yield value.watch()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_real_ports() -> None:
    """The second port is set up, found to have the cable, and used."""
    async with following() as watcher:
        assert await watcher.get() is None
        sh("ip link add up0 type veth peer name far0")
        state = await watcher.get()
        assert state is not None
        assert (state.name, state.up) == ("up0", False)  # the only one: the uplink's to set up
        sh("ip link add up1 type veth peer name far1")
        await watcher.get(lambda now: now is not None and now.name == "up0" and now.up)
        sh("ip link set far1 up")
        state = await watcher.get(lambda now: now is not None and now.name == "up1")
        assert state is not None
        assert state.carrier
        sh("ip link set far0 up")
        sh("ip link set up1 mtu 1400")
        state = await watcher.get(lambda now: now is not None and now.mtu == 1400)
        assert state is not None
        assert state.name == "up1"
        # Gone, and renamed.
        sh("ip link del up1")
        await watcher.get(lambda now: now is not None and now.name == "up0" and now.carrier)
        sh("ip link set up0 name up2")
        await watcher.get(lambda now: now is not None and now.name == "up2")
