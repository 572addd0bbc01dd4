# SPDX-License-Identifier: Apache-2.0
"""Calls that meet while links wait to be deleted, and deletions that fail.

The fake kernel deletes links when the test says so.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from ipaddress import ip_address, ip_network

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.engine import removals
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    GivenUp,
    KernelRefused,
    Unavailable,
)
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.world import (
    WAIT_S,
    Held,
    detached,
    ids,
    intent,
)

TWO = [ip_network("10.0.0.0/31")]
SEVERAL = [ip_network("10.1.0.0/24")]
BRIEF_S = 0.1  # for what must not come


@pytest.fixture
def world() -> Iterator[Held]:
    made = Held()
    yield made
    made.end()


def when_gone(world: Held, count: int = 1) -> threading.Event:
    """Return an event that is set when so many links are reported as gone."""
    gone, before, left = threading.Event(), world.datapath._on_removed, [count]
    assert before is not None

    def report(ifindex: int) -> None:
        before(ifindex)
        left[0] -= 1
        if not left[0]:
            gone.set()

    world.datapath._on_removed = report
    return gone


# ---- The thread -------------------------------------------------------------


def test_a_refused_link_does_not_delay_later_ones(world: Held) -> None:
    """Nobody waits for them."""
    world.go.set()
    world.refusing = {"w1"}
    detached(world)
    with pytest.raises(KernelRefused):
        world.engine.settle()
    world.engine.attach(intent("w2", "/b"))
    gone = when_gone(world)
    world.engine.detach("w2")
    assert gone.wait(removals._AGAIN_S[0] / 2)


def test_a_link_may_be_refused_for_ever(world: Held) -> None:
    world.go.set()
    world.refusing = {"w1"}
    detached(world)
    for _ in range(1100):
        with pytest.raises(KernelRefused, match="EPERM"):
            world.engine.settle()
    world.refusing = set()
    world.engine.settle()
    assert not world.kernel.links


def test_refused_links_do_not_divide_the_others(world: Held) -> None:
    """One that was refused is tried by itself; the rest is deleted together."""
    world.refusing = {"w1"}
    world.go.set()
    detached(world)
    with pytest.raises(KernelRefused):
        world.engine.settle()
    world.engine.set_prefixes(SEVERAL)
    for letter in "bcde":
        world.engine.attach(intent(letter, f"/{letter}"))

    tries: list[set[str]] = []

    def record(records: Sequence[Record]) -> None:
        tries.append({one.workload_id for one in records})
        world.remove(records)

    world.datapath.on_remove = record
    gone = when_gone(world, 4)
    world.engine.collect(lambda *_: False)
    with pytest.raises(KernelRefused):
        world.engine.settle()
    assert gone.wait(WAIT_S)
    assert {"w1"} in tries
    assert all(len(names) == 1 for names in tries if "w1" in names)
    assert sum("w1" not in names for names in tries) <= 2


def test_each_waiting_call_gets_the_error(world: Held) -> None:
    """Though others begin to wait meanwhile, and again."""
    world.refusing = {"w1"}
    detached(world)
    started = threading.Barrier(8)

    def wait() -> int:
        started.wait(WAIT_S)
        found = 0
        for _ in range(50):
            with pytest.raises(KernelRefused, match="EPERM"):
                world.engine.detach("w1", until_gone=True)
            found += 1
        return found

    world.go.set()
    calls = [world.pool.submit(wait) for _ in range(8)]
    assert [one.result(WAIT_S) for one in calls] == [50] * 8


# ---- Attach -----------------------------------------------------------------


def test_one_that_is_refused_is_no_reason_to_refuse(world: Held) -> None:
    """The other has an address, too, and is gone soon."""
    world.engine.set_prefixes(TWO)
    world.refusing = {"w1"}
    detached(world, "w2")
    first = world.waits(lambda: world.engine.attach(intent("w3", "/c")))
    world.go.set()
    first.result(WAIT_S)
    with pytest.raises(KernelRefused, match="EPERM"):
        world.engine.attach(intent("w4", "/d"))


def test_others_that_leave_do_not_delay_a_refusal(world: Held) -> None:
    """Their end does not free the address that was asked for."""
    world.engine.attach(AttachIntent("x", "/h", "eth0", (ip_address("10.0.0.5"),)))
    detached(world)
    with pytest.raises(AlreadyExists, match=r"10\.0\.0\.5"):
        world.engine.attach(AttachIntent("w2", "/b", "eth0", (ip_address("10.0.0.5"),)))


def test_nothing_is_attached_for_a_caller_that_has_gone(world: Held) -> None:
    detached(world)
    left = [WAIT_S]
    waiting = world.waits(
        lambda: world.engine.attach(intent("w1", "/b"), time_remaining=lambda: left[0])
    )
    left[0] = 0.0
    world.go.set()
    with pytest.raises(GivenUp):
        waiting.result(WAIT_S)
    assert not world.engine.list()


# ---- Collect ----------------------------------------------------------------


def test_a_detach_between_the_look_and_the_removal_of_a_collect(world: Held) -> None:
    detached(world)
    for letter in "bc":
        world.engine.attach(intent(letter, f"/{letter}"))

    def is_live(name: str, _: str) -> bool:
        if name == "b":
            world.engine.detach("b")
        return False

    collected = world.engine.collect(is_live)
    assert ids(collected.removed) == {("c", "eth0")}
    assert not collected.remaining
    assert not world.engine.list()
    world.go.set()
    world.engine.settle()
    assert world.engine.in_use(ip_network("10.0.0.0/29")) == 0


def test_a_collect_waits_for_room(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "MAX_WAITING", 2)
    detached(world, "w2")
    world.engine.attach(intent("w3", "/c"))
    waiting = world.waits(lambda: world.engine.collect(lambda *_: False))
    assert ids(world.engine.list()) == {("w3", "eth0")}
    world.go.set()
    waiting.result(WAIT_S)
    assert not world.engine.list()


def test_what_cannot_be_cut_off_is_removed_in_small_groups(world: Held) -> None:
    """Others wait for the kernel meanwhile."""

    def refuse(_: Sequence[Record]) -> None:
        raise KernelRefused("detach: EEXIST")

    world.datapath.on_cut_off = refuse
    world.go.set()
    world.engine.set_prefixes(SEVERAL)
    for number in range(30):
        world.kernel.add_netns(f"/{number}")
        world.engine.attach(intent(f"w{number}", f"/{number}"))
    assert len(world.engine.collect(lambda *_: False).removed) == 30
    assert not world.kernel.links
    assert max(map(len, world.groups)) <= world.datapath.at_once


# ---- Start and end ----------------------------------------------------------


def test_a_start_without_a_thread_can_be_repeated(
    world: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    detached(world)
    world.engine.attach(intent("w2", "/b"))
    engine = Engine(world.datapath)
    engine.set_prefixes(SEVERAL)

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(KernelRefused, match="thread"):
            engine.start()
        with pytest.raises(Unavailable):
            engine.list()
        with pytest.raises(KernelRefused):
            engine.detach("w2")
    engine.start()
    assert ids(engine.list()) == {("w2", "eth0")}
    world.go.set()
    engine.detach("w2", until_gone=True)
    engine.settle()
    assert not world.kernel.links
    assert engine.in_use(ip_network("10.0.0.0/29")) == 0
    engine.close()


def test_calls_during_a_start_know_what_is_leaving(
    world: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for it, whenever they come."""
    detached(world)
    engine = Engine(world.datapath)
    engine.set_prefixes(SEVERAL)
    early: list[Future[None]] = []

    def watch() -> None:
        early.append(world.pool.submit(lambda: engine.detach("w1", until_gone=True)))
        with pytest.raises(TimeoutError):
            early[0].result(BRIEF_S)

    monkeypatch.setattr(world.datapath, "watch", watch)
    engine.start()
    with pytest.raises(TimeoutError):
        early[0].result(BRIEF_S)
    world.go.set()
    early[0].result(WAIT_S)
    engine.close()


def test_a_wait_ends_with_the_service(world: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "_CLOSE_S", 0.05)
    detached(world)
    waiting = world.waits(lambda: world.engine.attach(intent("w1", "/b")))
    world.engine.close()
    with pytest.raises(Unavailable, match="stopped"):
        waiting.result(removals.PATIENCE_S / 2)
