# SPDX-License-Identifier: Apache-2.0
"""Counts of answers; errors of pings."""

import asyncio
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.test.launch.cluster import Cluster, Member
from metropolis.test.launch.cri import CriError, Pod
from metropolis.test.launch.lab import Port
from metropolis.test.launch.node import Node
from metropolis.test.launch.pings import Answers, Batch, parse
from metropolis.test.launch.prober import Pair, Prober
from metropolis.test.launch.reach import Place
from osbase.test.agent.client import AgentGoneError


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
    # The first answer after it shows the loss of those between.
    assert answers(0, 1, 5, 6).lost(2.5) == 3
    assert answers(0, 1, 5, 6).lost(3.0) == 0


def test_answers_in_another_order_lose_nothing() -> None:
    assert answers(0, 2, 1, 3).lost(0) == 0
    assert answers(0, 3, 1, 4).lost(0) == 1


def test_lines() -> None:
    lines = [b"10.0.0.1 7", b"late 1.500", b"fd00::1 8", b"10.0.0.2: [Errno 101] no", b"late 1.2"]
    answered = ((ip_address("10.0.0.1"), 7), (ip_address("fd00::1"), 8))
    assert parse(lines) == Batch(answered, 1.5, ("10.0.0.2: [Errno 101] no",))
    assert parse([]) == Batch()


@pytest.mark.parametrize(
    ("late", "counted"),
    [
        ({}, 3),
        ({"a": [(2.5, 3.5)]}, 0),
        ({"b": [(5.0, 9.0)]}, 0),
        # Another machine; or long before, or after.
        ({"c": [(2.5, 3.5)]}, 3),
        ({"a": [(0.0, 0.5)]}, 3),
        ({"b": [(40.0, 41.0)]}, 3),
    ],
)
def test_what_a_machine_without_a_cpu_excuses(
    late: dict[str, list[tuple[float, float]]], counted: int
) -> None:
    prober = Prober(cast(Cluster, None))
    pair = Pair("a", "b", 4)
    # Three are missing between the answers at 4 and at 5.
    prober.answers = {pair: Answers([3.0, 4.0, 5.0, 6.0], [0, 1, 5, 6])}
    prober._late = late
    assert prober.lost(0.0) == {pair: 3}
    assert prober.lost(0.0, excuse=True) == ({pair: counted} if counted else {})


@given(st.lists(st.integers(0, 50)), st.floats(0, 60))
def test_never_negative(numbers: list[int], since: float) -> None:
    assert answers(*numbers).lost(since) >= 0


class Failing:
    """A cluster of two nodes; the request to one fails when `released`."""

    def __init__(self, error: Exception) -> None:
        self.asked, self.released = asyncio.Event(), asyncio.Event()

        async def sandbox_process(ident: str) -> tuple[int, str]:
            self.asked.set()
            await self.released.wait()
            raise error

        node = cast(Node, SimpleNamespace(cri=SimpleNamespace(sandbox_process=sandbox_process)))
        self.members: dict[str, Member] = {}
        self.places: list[Place] = []
        for number in (1, 2):
            name, ip = f"node-{number}", IPv4Address(number)
            self.members[name] = Member(name, Port(number, -1), Path(), Path(), {}, node=node)
            self.places.append(Place(name, (ip,), Pod(f"pod-{number}", "", "", (ip,), 0.0)))


@pytest.mark.parametrize("error", [CriError("no"), ValueError("a fault in here")])
async def test_what_is_in_the_way_is_raised(error: Exception) -> None:
    cluster = Failing(error)
    cluster.released.set()
    async with Prober(cast(Cluster, cluster)) as prober:
        with pytest.raises(type(error), match=str(error)):
            await prober.whole(10)


@pytest.mark.parametrize("destroyed", [False, True])
async def test_a_node_that_is_switched_off_is_no_trouble(destroyed: bool) -> None:
    cluster = Failing(CriError("Socket closed"))
    async with Prober(cast(Cluster, cluster)) as prober:
        await cluster.asked.wait()
        for member in cluster.members.values():
            member.node = None
        if destroyed:
            cluster.members.clear()
        cluster.released.set()
        with pytest.raises(TimeoutError, match="not whole"):
            await prober.whole(0.2)


async def test_a_machine_that_ended_is_no_trouble() -> None:
    cluster = Failing(AgentGoneError("gone"))
    cluster.released.set()
    async with Prober(cast(Cluster, cluster)) as prober:
        with pytest.raises(TimeoutError, match="not whole"):
            await prober.whole(0.2)
