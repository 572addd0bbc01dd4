# SPDX-License-Identifier: Apache-2.0
"""No state of the engine grows with its history, on the fake datapath.

Counts the entries of every container that can be reached from the engine, after
a history and after ten more of it, with other ids each time.
"""

import contextlib
import gc
import types
from collections import deque
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from metropolis.node.core.network.workloads.engine import pool
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import KernelRefused, WorkloadError
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath

PREFIXES = [ip_network("10.0.0.0/16"), ip_network("fd00::/64")]
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType)


def entries(root: object) -> int:
    """Count the entries of all reachable containers, without code."""
    seen: set[int] = set()
    waiting, total = [root], 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, _CODE):
            continue
        seen.add(id(one))
        if isinstance(one, (dict, list, set, deque)):
            total += len(one)
        waiting += gc.get_referents(one)
    return total


class World:
    """An engine; each `next` is a new id and path."""

    def __init__(self) -> None:
        self.datapath = FakeDatapath()
        self.engine = Engine(self.datapath)
        self.engine.set_prefixes(PREFIXES)
        self.engine.start()
        self.count = 0

    def attach(self, **chosen: object) -> str:
        """Attach a new workload, refused or not; return the path and the id."""
        self.count += 1
        name = f"/w{self.count}"
        self.datapath.kernel.add_netns(name)
        with contextlib.suppress(WorkloadError):
            self.engine.attach(AttachIntent(name, name, "eth0", **chosen))  # type: ignore[arg-type]
        return name


def detached(world: World) -> None:
    name = world.attach()
    world.engine.detach(name)
    world.datapath.kernel.namespaces.pop(name)


def died(world: World) -> None:
    world.datapath.kill_netns(world.attach(owner=f"cni network-{world.count}"))


def died_unseen(world: World) -> None:
    world.datapath.kill_netns(world.attach(), reported=False)
    world.datapath.overrun()


def refused(world: World) -> None:
    def refuse(_: object) -> None:
        raise KernelRefused("attach: EPERM")

    world.datapath.on_create = refuse
    world.datapath.kernel.namespaces.pop(world.attach())
    world.datapath.on_create = lambda _: None


def asked_for_an_address(world: World) -> None:
    name = world.attach(requested_ips=(PREFIXES[1][world.count * 7919 + 1],))
    world.engine.detach(name)
    world.datapath.kernel.namespaces.pop(name)


def collected(world: World) -> None:
    name = world.attach()
    world.engine.collect(lambda *_: False, of_owner=lambda _: True)
    world.datapath.kernel.namespaces.pop(name)


def asked_in_vain(world: World) -> None:
    world.count += 1
    for call in (world.engine.detach, world.engine.check):
        with contextlib.suppress(WorkloadError):
            call(f"w{world.count}")
    world.engine.list(f"w{world.count}")
    with contextlib.suppress(WorkloadError):
        world.engine.attach(AttachIntent(f"w{world.count}", f"/gone/{world.count}", "eth0"))


def watched(world: World) -> None:
    with world.engine.watch(backlog=2):
        for _ in range(3):
            detached(world)


def prefixes_changed(world: World) -> None:
    name = world.attach()
    world.engine.set_prefixes([ip_network(f"10.{world.count % 200 + 1}.0.0/16")], draining=PREFIXES)
    world.engine.detach(name)
    world.engine.set_prefixes(PREFIXES)
    world.datapath.kernel.namespaces.pop(name)


HISTORIES = [
    *(detached, died, died_unseen, refused, asked_for_an_address),
    *(collected, asked_in_vain, watched, prefixes_changed),
]


@pytest.mark.parametrize("history", HISTORIES)
def test_nothing_grows(history: Callable[[World], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "REMEMBERED", 8)
    world = World()
    for _ in range(20):
        history(world)
    world.engine.settle()
    before = entries(world.engine)
    for _ in range(200):
        history(world)
    world.engine.settle()
    assert entries(world.engine) <= before
    assert world.engine.list() == []


def test_growth_is_noticed() -> None:
    """As in the pool when it remembered everything."""
    world = World()
    for _ in range(20):
        detached(world)
    before = entries(world.engine)
    for _ in range(200):
        detached(world)
    assert entries(world.engine) >= before + 200
