# SPDX-License-Identifier: Apache-2.0
"""Which removals are done together, and which wait for others.

The work is a double that stops when the test says so: its arguments are the
groups.
"""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from metropolis.node.core.network.workloads.datapath import removal
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.removal import Removals
from metropolis.node.core.network.workloads.errors import KernelRefused, WorkloadError

WAIT_S = 20.0


def record(index: int) -> Record:
    ips = (ip_address("10.0.0.1"),)
    return Record(f"w{index}", "eth0", 1, "wl", index, 2, bytes(6), 1500, ips, bytes(8))


class Work:
    """Groups that are being removed, until the test lets each go."""

    def __init__(self) -> None:
        self.groups: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self.go = threading.Semaphore(0)
        self.failing: set[int] = set()
        self.removals = Removals(self.remove, lanes=2)
        self.lanes: set[int] = set()
        self.pool = ThreadPoolExecutor(64)

    def remove(self, records: list[Record], lane: int) -> dict[int, WorkloadError]:
        assert lane not in self.lanes
        self.lanes.add(lane)
        self.groups.put([one.host_ifindex for one in records])
        assert self.go.acquire(timeout=WAIT_S)
        self.lanes.remove(lane)
        return {index: KernelRefused(f"no {index}") for index in self.failing}

    def call(self, *indexes: int) -> Future[None]:
        """Return when the call is in the queue, or is at work."""
        with self.removals._mutex:
            before = len(self.removals._waiting)
        done = self.pool.submit(self.removals.remove, [record(index) for index in indexes])
        while True:
            with self.removals._mutex:
                if len(self.removals._waiting) > before or not self.groups.empty() or done.done():
                    return done


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    for _ in range(100):
        made.go.release()
    made.pool.shutdown()


def test_a_call_by_itself_is_done_at_once(work: Work) -> None:
    for index in range(3):
        work.go.release()
        work.call(index).result(WAIT_S)
        assert work.groups.get(timeout=WAIT_S) == [index]


def test_those_who_come_meanwhile_are_done_together(work: Work) -> None:
    first = work.call(1)
    assert work.groups.get(timeout=WAIT_S) == [1]
    others = [work.call(index, index + 100) for index in range(2, 9)]
    work.go.release()
    first.result(WAIT_S)  # and is not kept to lead the others
    group = work.groups.get(timeout=WAIT_S)
    assert sorted(group) == [*range(2, 9), *range(102, 109)]
    assert not any(other.done() for other in others)
    work.go.release()
    for other in others:
        other.result(WAIT_S)


def test_where_many_wait_two_removals_are_under_way(work: Work) -> None:
    first = work.call(0)
    assert work.groups.get(timeout=WAIT_S) == [0]
    some = [work.call(index) for index in range(1, 8)]
    assert work.groups.empty()  # one less than is worth it
    some.append(work.call(8))
    assert sorted(work.groups.get(timeout=WAIT_S)) == list(range(1, 9))
    more = [work.call(index) for index in range(10, 30)]
    assert work.groups.empty()  # and never three
    work.go.release()
    assert sorted(work.groups.get(timeout=WAIT_S)) == list(range(10, 30))
    work.go.release(2)
    for call in (first, *some, *more):
        call.result(WAIT_S)


def test_each_is_told_its_own_error(work: Work) -> None:
    first = work.call(1)
    assert work.groups.get(timeout=WAIT_S) == [1]
    calls = [work.call(2), work.call(3, 4), work.call(5)]
    work.failing = {4, 5}
    work.go.release(2)
    first.result(WAIT_S)
    calls[0].result(WAIT_S)
    for call, reported in ((calls[1], "no 4"), (calls[2], "no 5")):
        with pytest.raises(KernelRefused, match=reported):
            call.result(WAIT_S)


def test_a_group_has_a_bound_that_one_call_may_exceed(work: Work) -> None:
    first = work.call(1)
    assert work.groups.get(timeout=WAIT_S) == [1]
    many = range(1000, 1000 + removal.AT_ONCE + 1)
    calls = [work.call(*many), work.call(2), work.call(3)]
    work.go.release(3)
    assert work.groups.get(timeout=WAIT_S) == list(many)
    assert work.groups.get(timeout=WAIT_S) == [2, 3]
    for call in (first, *calls):
        call.result(WAIT_S)


def test_those_who_come_back_are_waited_for(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader takes as many as there were before, if they come."""
    for name in ("_GAP_S", "_LATELY_S"):
        monkeypatch.setattr(removal, name, WAIT_S)
    monkeypatch.setattr(removal, "_SHARE", 1e9)
    first = work.call(0)
    assert work.groups.get(timeout=WAIT_S) == [0]
    others = [work.call(index) for index in range(1, 4)]
    work.go.release()
    first.result(WAIT_S)
    back = work.call(10)
    assert sorted(work.groups.get(timeout=WAIT_S)) == [1, 2, 3, 10]
    work.go.release()
    for call in (*others, back):
        call.result(WAIT_S)


def test_nobody_is_waited_for_in_vain(work: Work) -> None:
    first = work.call(0)
    assert work.groups.get(timeout=WAIT_S) == [0]
    others = [work.call(index) for index in range(1, 4)]
    work.go.release()
    first.result(WAIT_S)
    assert sorted(work.groups.get(timeout=WAIT_S)) == [1, 2, 3]
    work.go.release(2)
    for call in (*others, work.call(10)):
        call.result(WAIT_S)
    assert work.groups.get(timeout=WAIT_S) == [10]


def test_nothing_is_lost_among_many(work: Work) -> None:
    work.go = threading.Semaphore(100000)

    def use(thread: int) -> None:
        for step in range(100):
            work.removals.remove([record(thread * 1000 + step)])

    list(work.pool.map(use, range(32)))
    groups = [work.groups.get() for _ in range(work.groups.qsize())]
    removed = [index for group in groups for index in group]
    assert sorted(removed) == [t * 1000 + s for t in range(32) for s in range(100)]
