# SPDX-License-Identifier: Apache-2.0
"""Calls that meet while links wait to be deleted, and deletions that fail.

The fake kernel deletes links when the test says so.
"""

import threading
from collections.abc import Sequence
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


def when_gone(held: Held, count: int = 1) -> threading.Event:
    """Return an event that is set when so many links are reported as gone."""
    gone, before, left = threading.Event(), held.datapath._on_removed, [count]
    assert before is not None

    def report(ifindex: int) -> None:
        before(ifindex)
        left[0] -= 1
        if not left[0]:
            gone.set()

    held.datapath._on_removed = report
    return gone


# ---- The thread -------------------------------------------------------------


def test_a_refused_link_does_not_delay_later_ones(held: Held) -> None:
    """Nobody waits for them."""
    held.go.set()
    held.refusing = {"w1"}
    detached(held)
    with pytest.raises(KernelRefused):
        held.engine.settle()
    held.engine.attach(intent("w2", "/b"))
    gone = when_gone(held)
    held.engine.detach("w2")
    assert gone.wait(removals._AGAIN_S[0] / 2)


def test_a_link_may_be_refused_for_ever(held: Held) -> None:
    held.go.set()
    held.refusing = {"w1"}
    detached(held)
    for _ in range(1100):
        with pytest.raises(KernelRefused, match="EPERM"):
            held.engine.settle()
    held.refusing = set()
    held.engine.settle()
    assert not held.kernel.links


def test_refused_links_do_not_divide_the_others(held: Held) -> None:
    """One that was refused is tried by itself; the rest is deleted together."""
    held.refusing = {"w1"}
    held.go.set()
    detached(held)
    with pytest.raises(KernelRefused):
        held.engine.settle()
    held.engine.set_prefixes(SEVERAL)
    for letter in "bcde":
        held.engine.attach(intent(letter, f"/{letter}"))

    tries: list[set[str]] = []

    def record(records: Sequence[Record]) -> None:
        tries.append({one.workload_id for one in records})
        held.remove(records)

    held.datapath.on_remove = record
    gone = when_gone(held, 4)
    held.engine.collect(lambda *_: False)
    with pytest.raises(KernelRefused):
        held.engine.settle()
    assert gone.wait(WAIT_S)
    assert {"w1"} in tries
    assert all(len(names) == 1 for names in tries if "w1" in names)
    assert sum("w1" not in names for names in tries) <= 2


def test_each_waiting_call_gets_the_error(held: Held) -> None:
    """Though others begin to wait meanwhile, and again."""
    held.refusing = {"w1"}
    detached(held)
    started = threading.Barrier(8)

    def wait() -> int:
        started.wait(WAIT_S)
        found = 0
        for _ in range(50):
            with pytest.raises(KernelRefused, match="EPERM"):
                held.engine.detach("w1", until_gone=True)
            found += 1
        return found

    held.go.set()
    calls = [held.pool.submit(wait) for _ in range(8)]
    assert [one.result(WAIT_S) for one in calls] == [50] * 8


# ---- Attach -----------------------------------------------------------------


def test_one_that_is_refused_is_no_reason_to_refuse(held: Held) -> None:
    """The other has an address, too, and is gone soon."""
    held.engine.set_prefixes(TWO)
    held.refusing = {"w1"}
    detached(held, "w2")
    first = held.waits(lambda: held.engine.attach(intent("w3", "/c")))
    held.go.set()
    first.result(WAIT_S)
    with pytest.raises(KernelRefused, match="EPERM"):
        held.engine.attach(intent("w4", "/d"))


def test_others_that_leave_do_not_delay_a_refusal(held: Held) -> None:
    """Their end does not free the address that was asked for."""
    held.engine.attach(AttachIntent("x", "/h", "eth0", (ip_address("10.0.0.5"),)))
    detached(held)
    with pytest.raises(AlreadyExists, match=r"10\.0\.0\.5"):
        held.engine.attach(AttachIntent("w2", "/b", "eth0", (ip_address("10.0.0.5"),)))


def test_nothing_is_attached_for_a_caller_that_has_gone(held: Held) -> None:
    detached(held)
    left = [WAIT_S]
    waiting = held.waits(
        lambda: held.engine.attach(intent("w1", "/b"), time_remaining=lambda: left[0])
    )
    left[0] = 0.0
    held.go.set()
    with pytest.raises(GivenUp):
        waiting.result(WAIT_S)
    assert not held.engine.list()


# ---- Collect ----------------------------------------------------------------


def test_a_detach_between_the_look_and_the_removal_of_a_collect(held: Held) -> None:
    detached(held)
    for letter in "bc":
        held.engine.attach(intent(letter, f"/{letter}"))

    def is_live(name: str, _: str) -> bool:
        if name == "b":
            held.engine.detach("b")
        return False

    collected = held.engine.collect(is_live)
    assert ids(collected.removed) == {("c", "eth0")}
    assert not collected.remaining
    assert not held.engine.list()
    held.go.set()
    held.engine.settle()
    assert held.engine.in_use(ip_network("10.0.0.0/29")) == 0


def test_a_collect_waits_for_room(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "MAX_WAITING", 2)
    detached(held, "w2")
    held.engine.attach(intent("w3", "/c"))
    waiting = held.waits(lambda: held.engine.collect(lambda *_: False))
    assert ids(held.engine.list()) == {("w3", "eth0")}
    held.go.set()
    waiting.result(WAIT_S)
    assert not held.engine.list()


def test_what_cannot_be_cut_off_is_removed_in_small_groups(held: Held) -> None:
    """Others wait for the kernel meanwhile."""

    def refuse(_: Sequence[Record]) -> None:
        raise KernelRefused("detach: EEXIST")

    held.datapath.on_cut_off = refuse
    held.go.set()
    held.engine.set_prefixes(SEVERAL)
    for number in range(30):
        held.kernel.add_netns(f"/{number}")
        held.engine.attach(intent(f"w{number}", f"/{number}"))
    assert len(held.engine.collect(lambda *_: False).removed) == 30
    assert not held.kernel.links
    assert max(map(len, held.groups)) <= held.datapath.at_once


# ---- Start and end ----------------------------------------------------------


def test_a_start_without_a_thread_can_be_repeated(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    detached(held)
    held.engine.attach(intent("w2", "/b"))
    engine = Engine(held.datapath)
    engine.set_prefixes(SEVERAL)

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(KernelRefused, match="start removals: can't start new thread"):
            engine.start()
        with pytest.raises(Unavailable):
            engine.list()
        with pytest.raises(KernelRefused):
            engine.detach("w2")
    engine.start()
    assert ids(engine.list()) == {("w2", "eth0")}
    held.go.set()
    engine.detach("w2", until_gone=True)
    engine.settle()
    assert not held.kernel.links
    assert engine.in_use(ip_network("10.0.0.0/29")) == 0
    engine.close()


def test_calls_during_a_start_know_what_is_leaving(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for it, whenever they come."""
    detached(held)
    engine = Engine(held.datapath)
    engine.set_prefixes(SEVERAL)
    early: list[Future[None]] = []

    def watch() -> None:
        early.append(held.pool.submit(lambda: engine.detach("w1", until_gone=True)))
        with pytest.raises(TimeoutError):
            early[0].result(BRIEF_S)

    monkeypatch.setattr(held.datapath, "watch", watch)
    engine.start()
    with pytest.raises(TimeoutError):
        early[0].result(BRIEF_S)
    held.go.set()
    early[0].result(WAIT_S)
    engine.close()


def test_a_wait_ends_with_the_service(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "_CLOSE_S", 0.05)
    detached(held)
    waiting = held.waits(lambda: held.engine.attach(intent("w1", "/b")))
    held.engine.close()
    with pytest.raises(Unavailable, match="stopped"):
        waiting.result(removals.PATIENCE_S / 2)
