# SPDX-License-Identifier: Apache-2.0
"""Limits, and what can happen at every point at which they are half made.

As parts_kill_test, with a part that has a second link: SIGKILL, the end of the
namespace, an answer that is lost.
"""

import contextlib
import itertools
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from metropolis.node.core.network.workloads.bandwidth import (
    LETTER,
    Bandwidth,
    Limit,
    changed,
    of_parts,
    part_of,
)
from metropolis.node.core.network.workloads.datapath import bandwidth
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import WorkloadError
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.lab import Pod, await_equal, objects
from metropolis.node.core.network.workloads.testing.parts_host import started
from metropolis.node.core.network.workloads.testing.points import do_at, killed_at
from osbase.netlink.errors import ReplyLost
from osbase.test.namespaces import sh

PREFIX = ip_network("10.0.0.0/28")
PARTS = (bandwidth.PART,)
LIMITS = part_of(Bandwidth(Limit(10**7), Limit(10**6)))


class World:
    """An engine, and a pod."""

    def __init__(self) -> None:
        self.pod = Pod()
        self.engine = started(KernelDatapath(PARTS))

    def act(self, engine: Engine, *, attaching: bool) -> None:
        """Attach, or detach."""
        if attaching:
            engine.attach(AttachIntent("w1", self.pod.path, "eth0", parts=LIMITS))
        else:
            engine.detach("w1", until_gone=True)

    def restart(self) -> None:
        """Another engine over what the last one left."""
        self.engine.close()
        self.engine = started(KernelDatapath(PARTS))

    def next_pod(self) -> None:
        """A pod in place of the last."""
        self.pod.close()
        self.pod = Pod()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.engine.collect(lambda _, __: False)
    made.engine.settle()
    made.engine.close()
    made.pod.close()
    assert await_equal(ifbs, 0) == 0


def ifbs() -> int:
    return len(sh("ip -br link show type ifb").splitlines())


@pytest.mark.parametrize("attaching", [True, False])
def test_killed_at_every_point(world: World, attaching: bool) -> None:
    """The start after it finds the limits whole, or nothing of them."""
    for point in itertools.count(1):
        world.act(world.engine, attaching=not attaching)
        world.engine.close()
        killed = killed_at(point, lambda engine: world.act(engine, attaching=attaching), PARTS)
        world.restart()
        found = world.engine.list()
        world.engine.settle()
        assert ifbs() == len(found)
        for checked in world.engine.check("w1") if found else ():
            assert checked.findings == ()
        world.act(world.engine, attaching=attaching)
        world.engine.settle()
        assert ifbs() == attaching
        if not killed:
            break
    assert point > 6


@pytest.mark.parametrize("attaching", [True, False])
@pytest.mark.parametrize("lose", [True, False])
def test_a_namespace_ends_or_an_answer_is_lost_at_every_point(
    world: World, attaching: bool, lose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = objects()
    done: list[type] = []

    def do(kind: type) -> None:
        done.append(kind)
        if lose:
            raise ReplyLost("lost")
        world.pod.close()

    for point in itertools.count(1):
        done.clear()
        if not attaching:
            world.act(world.engine, attaching=True)
        with monkeypatch.context() as patch, contextlib.suppress(WorkloadError):
            do_at(patch, point, do)
            world.act(world.engine, attaching=attaching)
        if lose:
            world.engine.detach("w1", until_gone=True)
        world.next_pod()
        assert await_equal(lambda: world.engine.in_use(PREFIX), 0) == 0
        assert await_equal(ifbs, 0) == 0
        assert await_equal(objects, nothing) == nothing
        if not done:
            break
    assert point > 2


CHANGES = (
    Bandwidth(),
    Bandwidth(Limit(10**7), Limit(10**6)),
    Bandwidth(ingress=Limit(10**6)),
    Bandwidth(egress=Limit(10**7)),
)


@pytest.mark.parametrize("before", CHANGES)
@pytest.mark.parametrize("now", CHANGES)
def test_killed_during_a_change(world: World, before: Bandwidth, now: Bandwidth) -> None:
    """The start after it finds the limits before, or after, and these whole."""
    for point in itertools.count(1):
        world.engine.attach(AttachIntent("w1", world.pod.path, "eth0", parts=part_of(before)))
        world.engine.close()
        killed = killed_at(
            point, lambda engine: engine.change("w1", "eth0", (LETTER, changed(now))), PARTS
        )
        world.restart()
        (found,) = world.engine.list()
        limits = of_parts(found.parts)
        assert limits in ((before, now) if killed else (now,))
        assert ifbs() == bool(limits.egress.rate)
        (checked,) = world.engine.check("w1")
        assert checked.findings == ()
        world.engine.change("w1", "eth0", (LETTER, changed(now)))
        assert ifbs() == bool(now.egress.rate)
        (checked,) = world.engine.check("w1")
        assert checked.findings == ()
        world.engine.detach("w1", until_gone=True)
        assert ifbs() == 0
        if not killed:
            break
    assert point > 1
