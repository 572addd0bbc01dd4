# SPDX-License-Identifier: Apache-2.0
"""Collect, with an engine on the fake datapath."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import (
    GivenUp,
    KernelRefused,
)
from metropolis.node.core.network.workloads.model import (
    Attachment,
    Collected,
)
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath
from metropolis.node.core.network.workloads.testing.world import (
    WAIT_S,
    World,
    ids,
    intent,
)


def test_collect_removes_what_is_not_live(world: World) -> None:
    for letter in "abcd":
        world.engine.attach(intent(letter, f"/{letter}"))
    world.engine.attach(intent("a", "/a", "net1"))
    live = {("a", "eth0"), ("c", "eth0"), ("x", "eth0")}
    collected = world.engine.collect(lambda *key: key in live)
    assert ids(collected.removed) == {("a", "net1"), ("b", "eth0"), ("d", "eth0")}
    assert collected.remaining == ()
    assert ids(world.engine.list()) == {("a", "eth0"), ("c", "eth0")}
    assert world.engine.collect(lambda *key: key in live) == Collected((), ())
    world.engine.set_prefixes([])
    late = Engine(FakeDatapath(world.kernel))  # before its start, and not ready
    assert ids(late.collect(lambda *_: False).removed) == {("a", "eth0"), ("c", "eth0")}
    late.settle()
    assert not world.kernel.links


def test_collect_takes_many_in_one_removal(world: World) -> None:
    world.engine.set_prefixes([ip_network("10.0.0.0/16")])
    for number in range(300):
        world.kernel.add_netns(f"/n{number}")
        world.engine.attach(intent(f"w{number}", f"/n{number}"))
    calls: list[int] = []
    world.datapath.on_cut_off = lambda records: calls.append(len(records))
    assert len(world.engine.collect(lambda *_: False).removed) == 300
    assert calls == [256, 44]
    assert world.engine.list() == []
    world.engine.settle()
    assert not world.kernel.links


def test_collect_tells_what_remains_and_can_be_repeated(world: World) -> None:
    for letter in "abc":
        world.engine.attach(intent(letter, f"/{letter}"))

    def fail(records: Sequence[Record]) -> None:
        if any(record.workload_id == "b" for record in records):
            raise KernelRefused("detach: EPERM")

    world.datapath.on_cut_off = world.datapath.on_remove = fail
    collected = world.engine.collect(lambda *_: False)
    assert ids(collected.removed) == {("a", "eth0"), ("c", "eth0")}
    assert [(one.workload_id, why) for one, why in collected.remaining] == [("b", "detach: EPERM")]
    world.datapath.on_cut_off = world.datapath.on_remove = lambda _: None
    assert ids(world.engine.collect(lambda *_: False).removed) == {("b", "eth0")}
    world.engine.settle()
    assert not world.kernel.links


def test_collect_never_touches_an_attach_in_flight(world: World) -> None:
    """Neither an attach that makes an attachment nor one that finds it, whether
    it began before the collection or begins while that runs.
    """
    world.engine.set_prefixes([ip_network("10.0.0.0/24")])
    for letter in "abcd":
        world.engine.attach(intent(letter, f"/{letter}"))
    inside, go_on = threading.Event(), threading.Event()

    def wait(record: Record) -> None:
        inside.set()
        assert go_on.wait(WAIT_S)

    world.datapath.on_create = wait
    asked: list[str] = []

    def is_live(workload_id: str, if_name: str) -> bool:
        asked.append(workload_id)
        if asked == ["a"]:  # while it looks through what it saw
            world.engine.attach(intent("c", "/c"))
        return False

    with ThreadPoolExecutor() as pool:
        second = pool.submit(world.engine.attach, intent("b", "/b", "net1"))
        new = pool.submit(world.engine.attach, intent("e", "/e"))
        assert inside.wait(WAIT_S)
        collected = pool.submit(world.engine.collect, is_live).result(WAIT_S)
        go_on.set()
        second.result(WAIT_S)
        new.result(WAIT_S)
    assert ids(collected.removed) == {("a", "eth0"), ("d", "eth0")}
    expected = {("b", "eth0"), ("b", "net1"), ("c", "eth0"), ("e", "eth0")}
    assert ids(world.engine.list()) == expected
    assert ids(world.engine.collect(lambda *_: False).removed) == expected


def test_collect_leaves_what_is_not_what_it_saw(world: World) -> None:
    world.engine.attach(intent())
    again: list[Attachment] = []

    def is_live(*_: str) -> bool:
        if not again:
            world.engine.detach("w1")
            # As another process would: this engine sees no attach.
            world.engine.attach(intent())
            with world.engine._ledger._mutex:
                world.engine._ledger._protected.begin_collection()
            again.extend(world.engine.list())
        return False

    assert world.engine.collect(is_live) == Collected((), ())
    assert world.engine.list() == again


def test_collect_waits_for_what_is_being_detached(world: World) -> None:
    for letter in "ab":
        world.engine.attach(intent(letter, f"/{letter}"))
    inside, go_on = threading.Event(), threading.Event()

    def wait(records: Sequence[Record]) -> None:
        if records[0].workload_id == "a":
            inside.set()
            assert go_on.wait(WAIT_S)

    with ThreadPoolExecutor() as pool:
        world.datapath.on_remove = wait
        slow = pool.submit(world.engine.detach, "a")
        assert inside.wait(WAIT_S)
        collect = pool.submit(world.engine.collect, lambda *_: False)
        while ids(world.engine.list()):
            pass
        go_on.set()
        assert ids(collect.result(WAIT_S).removed) == {("b", "eth0")}
        slow.result(WAIT_S)


def test_one_collection_at_a_time(world: World) -> None:
    world.engine.attach(intent())

    def is_live(*_: str) -> bool:
        with pytest.raises(GivenUp, match="garbage collection was under way"):
            world.engine.collect(lambda *_: False, time_remaining=lambda: 0.01)
        return True

    assert world.engine.collect(is_live) == Collected((), ())
    assert world.engine.collect(lambda *_: False).removed
