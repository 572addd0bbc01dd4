# SPDX-License-Identifier: Apache-2.0
"""The events that watchers of an engine on the fake datapath get."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.engine.watchers import Event, Kind, Watcher
from metropolis.node.core.network.workloads.errors import (
    Aborted,
    KernelRefused,
    NotFound,
    Unavailable,
)
from metropolis.node.core.network.workloads.model import (
    IPAddress,
)
from metropolis.node.core.network.workloads.testing.world import (
    WAIT_S,
    World,
    intent,
)


def reported(watcher: Watcher, count: int) -> list[tuple[str, str]]:
    """Return the next events: kind and workload."""
    events = [next(watcher) for _ in range(count)]
    return [(e.kind.name, e.attachment.workload_id if e.attachment else "") for e in events]


def test_watch_tells_the_set_and_every_change(world: World) -> None:
    kept = world.engine.attach(intent("kept", "/h"))
    world.restart()
    with world.engine.watch() as watcher:
        assert next(watcher) == Event(Kind.PRESENT, kept)
        assert next(watcher) == Event(Kind.COMPLETE)
        made = world.engine.attach(intent())
        assert world.engine.attach(intent()) == made  # nothing changes
        assert next(watcher) == Event(Kind.ATTACHED, made)
        world.engine.detach("w1")
        world.engine.detach("w1")
        assert next(watcher) == Event(Kind.DETACHED, made)
        lost = world.engine.attach(intent("w2", "/b"))
        world.datapath.kill_netns("/b")
        assert [next(watcher), next(watcher)] == [
            Event(Kind.ATTACHED, lost),
            Event(Kind.LOST, lost),
        ]
        world.engine.collect(lambda *_: False)
        assert next(watcher) == Event(Kind.DETACHED, kept)


def test_watch_is_told_what_was_lost_in_a_flood(world: World) -> None:
    for letter in "abc":
        world.engine.attach(intent(letter, f"/{letter}"))
    with world.engine.watch() as watcher:
        reported(watcher, 4)
        for letter in "ac":
            world.datapath.kill_netns(f"/{letter}", reported=False)
        world.datapath.overrun()
        assert sorted(reported(watcher, 2)) == [("LOST", "a"), ("LOST", "c")]


def test_an_attach_that_fails_is_not_told(world: World) -> None:
    def fail(_: Record) -> None:
        raise KernelRefused("add route: ENOMEM")

    with world.engine.watch() as watcher:
        world.datapath.on_create = fail
        with pytest.raises(KernelRefused):
            world.engine.attach(intent())
        world.datapath.on_create = lambda record: world.datapath.take_link(record.host_ifindex)
        with pytest.raises(NotFound):
            world.engine.attach(intent())
        world.datapath.on_create = lambda _: None
        world.engine.attach(intent("w2", "/b"))
        assert reported(watcher, 2) == [("COMPLETE", ""), ("ATTACHED", "w2")]


def test_what_cannot_be_removed_stays_in_the_set_until_it_is_gone(world: World) -> None:
    def fail(_: Sequence[Record]) -> None:
        raise KernelRefused("detach: EPERM")

    made = world.engine.attach(intent())
    world.datapath.on_cut_off = world.datapath.on_remove = fail
    with pytest.raises(KernelRefused):
        world.engine.detach("w1")
    with world.engine.watch() as watcher:
        assert reported(watcher, 2) == [("PRESENT", "w1"), ("COMPLETE", "")]
        world.datapath.take_link(made.host_ifindex)
        assert reported(watcher, 1) == [("LOST", "w1")]


def test_a_watcher_that_does_not_read_is_dropped_and_holds_nobody_up(world: World) -> None:
    slow, fast = world.engine.watch(backlog=3), world.engine.watch(backlog=100)
    with slow, fast:
        for _ in range(2):
            world.engine.attach(intent())
            world.engine.detach("w1")
        with pytest.raises(Aborted, match="3 changes were not read"):
            next(slow)
        assert reported(fast, 5) == [
            ("COMPLETE", ""),
            *[("ATTACHED", "w1"), ("DETACHED", "w1")] * 2,
        ]
    with world.engine.watch() as again:
        assert reported(again, 1) == [("COMPLETE", "")]


def test_a_watch_sees_no_gap_however_much_happens(world: World) -> None:
    """Sets built by watchers that begin at any time are those of `list`."""
    world.engine.set_prefixes([ip_network("10.0.0.0/16")])
    for number in range(8):
        world.kernel.add_netns(f"/n{number}")
    done = threading.Event()

    def churn(number: int) -> None:
        while not done.is_set():
            world.engine.attach(intent(f"w{number}", f"/n{number}"))
            world.engine.detach(f"w{number}")

    def follow(watcher: Watcher) -> set[tuple[str, IPAddress]]:
        there: set[tuple[str, IPAddress]] = set()
        for event in watcher:
            if event.attachment is not None:
                one = (event.attachment.workload_id, event.attachment.ips[0])
                if event.kind in (Kind.PRESENT, Kind.ATTACHED):
                    assert one not in there
                    there.add(one)
                else:
                    there.remove(one)
        return there

    with ThreadPoolExecutor() as pool:
        churning = [pool.submit(churn, number) for number in range(4)]
        with ThreadPoolExecutor() as followers:
            watchers = [world.engine.watch(backlog=1 << 20) for _ in range(4)]
            following = [followers.submit(follow, watcher) for watcher in watchers]
            world.engine.attach(intent("last", "/n7"))
            done.set()
            for churned in churning:
                churned.result()
            final = world.engine.attach(intent("w6", "/n6"))
            expected = {(one.workload_id, one.ips[0]) for one in world.engine.list()}
            for watcher in watchers:
                while not _drained(watcher):
                    pass
                watcher.close()
            for future in following:
                assert future.result() == expected
    assert ("w6", final.ips[0]) in expected


def _drained(watcher: Watcher) -> bool:
    return not watcher._first and not watcher._changes


def test_watches_end_with_the_service(world: World) -> None:
    with world.engine.watch() as watcher, ThreadPoolExecutor() as pool:
        reported(watcher, 1)
        waiting = pool.submit(next, watcher)
        world.engine.close()
        with pytest.raises(Unavailable, match="has stopped"):
            waiting.result(WAIT_S)
    with pytest.raises(Unavailable):
        world.engine.watch()
