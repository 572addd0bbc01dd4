# SPDX-License-Identifier: Apache-2.0
"""Callers that stop waiting, with an engine on the fake datapath."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import (
    GivenUp,
)
from metropolis.node.core.network.workloads.testing.world import (
    WAIT_S,
    World,
    ids,
    intent,
)


def test_nothing_is_begun_for_a_caller_that_has_gone(world: World) -> None:
    made = world.engine.attach(intent())

    def gone() -> float:
        return 0.0

    for call in (
        lambda: world.engine.attach(intent("w2", "/b"), time_remaining=gone),
        lambda: world.engine.detach("w1", time_remaining=gone),
        lambda: world.engine.check("w1", time_remaining=gone),
        lambda: world.engine.collect(lambda *_: False, time_remaining=gone),
    ):
        with pytest.raises(GivenUp):
            call()
    assert world.engine.list() == [made]


def test_a_caller_that_leaves_in_the_queue_gets_nothing(world: World) -> None:
    """A call for the same workload, and one for the same namespace."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(_: Record) -> None:
        inside.set()
        assert go_on.wait(WAIT_S)

    world.datapath.on_create = wait
    times = {"same": 0, "other": 0}

    def leaves(name: str, at: int) -> Callable[[], float]:
        def time_remaining() -> float:
            times[name] += 1
            return WAIT_S if times[name] < at else 0.0

        return time_remaining

    with ThreadPoolExecutor() as pool:
        first = pool.submit(world.engine.attach, intent())
        assert inside.wait(WAIT_S)
        same = pool.submit(
            world.engine.attach, intent(if_name="net1"), time_remaining=leaves("same", 2)
        )
        other = pool.submit(
            world.engine.attach, intent("w2", "/a", "net2"), time_remaining=leaves("other", 3)
        )
        while times != {"same": 1, "other": 2}:
            pass
        go_on.set()
        first.result(WAIT_S)
        for call in (same, other):
            with pytest.raises(GivenUp, match="nothing was begun"):
                call.result(WAIT_S)
    assert ids(world.engine.list()) == {("w1", "eth0")}
    assert len(world.kernel.links) == 1


def test_a_call_whose_time_ends_while_it_is_served_is_finished(world: World) -> None:
    over = False

    def time_remaining() -> float:
        return 0.0 if over else WAIT_S

    def end(_: Record) -> None:
        nonlocal over
        over = True

    world.datapath.on_create = end
    made = world.engine.attach(intent(), time_remaining=time_remaining)
    assert world.engine.attach(intent()) == made
