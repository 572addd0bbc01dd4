# SPDX-License-Identifier: Apache-2.0
"""The reconciler in its supervisor, with wards of the test and real events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import pytest

from metropolis.node.core.network.reconcile.fights import REPAIRS
from metropolis.node.core.network.reconcile.reconciler import Reconciler
from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.reconcile.watch import Kind
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.errors import KernelRefused
from osbase.netlink.errors import DumpInterrupted
from osbase.supervisor import Backoff, Context, Supervisor

LIMIT_S = 20.0
NEVER_S = 3600.0
RULE = "rule add pref 100 lookup 77", "rule del pref 100"


class Thing:
    """A ward of one thing. wrong: until it is restored; stubborn: also then.
    refused: why it cannot be restored. fails: errors of the next looks.
    """

    def __init__(self, name: str = "thing", key: str = "thing") -> None:
        self.name = name
        self.key = key
        self.wrong = False
        self.stubborn = False
        self.refused = ""
        self.fails: list[Exception] = []
        self.looks = 0
        self.overlapped = False
        self.hold: threading.Event | None = None
        self._looking = threading.Lock()

    def look(self, allow: Allow) -> Sequence[Repair]:
        if not self._looking.acquire(blocking=False):
            self.overlapped = True
            return ()
        try:
            return self._look(allow)
        finally:
            self.looks += 1
            self._looking.release()

    def _look(self, allow: Allow) -> Sequence[Repair]:
        if self.hold is not None:
            self.hold.wait(LIMIT_S)
        if self.fails:
            raise self.fails.pop()
        if not self.wrong:
            return ()
        if not allow(self.key):
            return [Repair(self.key, f"{self.key} was wrong", left=True)]
        if self.refused:
            return [Repair(self.key, f"{self.key} was wrong", error=self.refused)]
        self.wrong = self.stubborn
        return [Repair(self.key, f"{self.key} was wrong")]


class Bench:
    """A reconciler and its conditions."""

    def __init__(self) -> None:
        self.conditions = Conditions()
        self.reconciler = Reconciler(self.conditions, settle_s=0.01)

    @contextlib.asynccontextmanager
    async def running(
        self, *wards: Thing, kinds: Iterable[Kind] = (Kind.POLICY,), every_s: float = NEVER_S
    ) -> AsyncIterator[Supervisor]:
        async def root(ctx: Context) -> None:
            for ward in wards:
                guard = self.reconciler.guard(ward, kinds=kinds, every_s=every_s)
                ctx.run(ward.name, guard)
            # Last, so that the subscription wakes them all: see `settled`.
            ctx.run("reconcile", self.reconciler.run)
            ctx.signal_healthy()
            ctx.signal_done()

        supervisor = Supervisor(root, make_backoff=lambda: Backoff(first_s=0.01))
        running = asyncio.create_task(supervisor.run(LIMIT_S))
        try:
            yield supervisor
        finally:
            supervisor.request_stop()
            assert await running == []


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not what():  # noqa: ASYNC110 - threads and the kernel
            await asyncio.sleep(0.005)


async def event() -> None:
    """Cause an event of kind POLICY."""
    for command in RULE:
        await asyncio.to_thread(subprocess.run, ["ip", *command.split()], check=True)


async def settled(thing: Thing) -> None:
    """Wait for the first looks: its own and the subscription's."""
    await until(lambda: thing.looks >= 2)


async def test_an_event_of_its_kind_makes_a_ward_look(bench: Bench) -> None:
    thing, other = Thing(), Thing("other")
    async with bench.running(thing):
        await settled(thing)
        thing.wrong = True
        await event()
        await until(lambda: not thing.wrong)
    assert other.looks == 0
    assert bench.conditions.notes() == {"repairs": "1: thing 1"}
    assert bench.conditions.problems() == {}


async def test_an_event_of_another_kind_does_not(bench: Bench) -> None:
    thing, witness = Thing(), Thing("witness")
    async with bench.running(thing, kinds=[Kind.RULES]):
        await settled(thing)
        await event()
        nft = ["nft", "add table inet t; delete table inet t"]
        await asyncio.to_thread(subprocess.run, nft, check=True)
        await until(lambda: thing.looks >= 3)
        assert thing.looks == 3
    assert witness.looks == 0


async def test_the_clock_makes_a_ward_look(bench: Bench) -> None:
    thing = Thing()
    async with bench.running(thing, kinds=(), every_s=0.01):
        await until(lambda: thing.looks >= 3)
        thing.wrong = True
        await until(lambda: not thing.wrong)


async def test_a_burst_of_events_is_few_looks(bench: Bench) -> None:
    thing = Thing()
    async with bench.running(thing):
        await settled(thing)
        commands = "\n".join(RULE) + "\n"
        await asyncio.to_thread(
            subprocess.run,
            ["ip", "-batch", "-"],
            input=commands * 2000,
            text=True,
            check=True,
        )
        thing.wrong = True
        await event()
        await until(lambda: not thing.wrong)
        assert thing.looks < 50


async def test_an_event_during_a_look_makes_another(bench: Bench) -> None:
    """The change may have been seen before the event."""
    thing = Thing()
    async with bench.running(thing):
        await settled(thing)
        thing.hold = threading.Event()
        await event()
        await until(thing._looking.locked)
        thing.wrong = True
        held, thing.hold = thing.hold, None
        await event()
        held.set()
        await until(lambda: not thing.wrong)
    assert not thing.overlapped


@pytest.mark.parametrize("links", [20, 100])
async def test_removed_links_wake_nobody(bench: Bench, links: int) -> None:
    """Their routes and addresses vanish, too. By one list, or one by one."""
    thing = Thing()
    async with bench.running(thing, kinds=list(Kind)):
        await settled(thing)
        names = range(1, links)
        make = "".join(
            f"link add v{n} group 7 type veth peer name w{n}\nlink set v{n} up\n"
            f"link set w{n} up\naddress add fd00::{n}/128 dev v{n}\n"
            f"route add 10.192.0.{n} dev v{n} proto 77\n"
            for n in names
        )
        batch = ["ip", "-batch", "-"]
        await asyncio.to_thread(subprocess.run, batch, input=make, text=True, check=True)
        before = thing.looks
        remove = ["ip", "link", "del", "group", "7"]
        await asyncio.to_thread(subprocess.run, remove, check=True)
        # One that stays, for comparison; it may come with the others.
        thing.wrong = True
        await event()
        await until(lambda: not thing.wrong)
        assert thing.looks - before <= 2


async def test_a_fight_is_given_up_and_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Once, however many looks find it, and until it is right by itself."""
    caplog.set_level(logging.INFO)
    thing = Thing()
    thing.wrong = thing.stubborn = True
    async with bench.running(thing, kinds=(), every_s=0.01):
        await until(lambda: bool(bench.conditions.problems()))
        assert thing.looks >= REPAIRS
        problem = bench.conditions.problems()["reconcile thing"]
        assert problem == (
            "thing was wrong; put back 5 times within 60 s and changed again by another "
            "program: left so"
        )
        looks = thing.looks
        await until(lambda: thing.looks > looks + 3)
        assert bench.conditions.notes() == {"repairs": f"{REPAIRS}: thing {REPAIRS}"}
        thing.wrong = False
        await until(lambda: not bench.conditions.problems())
    lines = [record.getMessage() for record in caplog.records if record.name == "root.thing"]
    assert lines == [
        *["put back: thing was wrong"] * REPAIRS,
        problem,
        "all is as it should be again",
    ]


async def test_what_cannot_be_put_back_is_said_until_it_can(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    thing = Thing()
    thing.wrong, thing.refused = True, "set x = 1: EPERM"
    async with bench.running(thing, kinds=(), every_s=0.01):
        await until(lambda: thing.looks > 3)
        assert bench.conditions.problems() == {
            "reconcile thing": "thing was wrong; cannot be put back: set x = 1: EPERM"
        }
        thing.refused = ""
        await until(lambda: not thing.wrong)
        await until(lambda: not bench.conditions.problems())
    lines = [record.getMessage() for record in caplog.records if record.name == "root.thing"]
    assert len(lines) == 3, lines


async def test_looks_that_fail(bench: Bench) -> None:
    """A few are nothing; in a row they are a problem, and then no more."""
    thing = Thing()
    thing.fails = [DumpInterrupted("list rules: changed")]
    async with bench.running(thing, kinds=(), every_s=0.01):
        await until(lambda: thing.looks > 1)
        assert bench.conditions.problems() == {}
        thing.fails = [OSError(12, "no memory"), KernelRefused("list links: EIO")] * 2
        await until(lambda: bool(bench.conditions.problems()))
        assert "cannot be looked at" in bench.conditions.problems()["reconcile thing"]
        await until(lambda: not bench.conditions.problems())


async def test_a_bug_in_a_ward_ends_only_its_look(bench: Bench) -> None:
    thing, other = Thing(), Thing("other")
    thing.fails = [ZeroDivisionError()]
    async with bench.running(thing, other, kinds=(), every_s=0.01):
        await until(lambda: thing.looks > 2 and other.looks > 2)


async def test_wards_do_not_wait_for_each_other(bench: Bench) -> None:
    slow, quick = Thing("slow"), Thing("quick")
    slow.hold = threading.Event()
    async with bench.running(slow, quick):
        await settled(quick)
        quick.wrong = True
        await event()
        await until(lambda: not quick.wrong)
        assert slow.looks == 0
        slow.hold.set()
    assert not slow.overlapped


async def test_a_stop_waits_for_the_look(bench: Bench) -> None:
    """The next life of the ward must not meet it."""
    thing = Thing()
    thing.hold = threading.Event()
    async with bench.running(thing):
        await until(thing._looking.locked)
        asyncio.get_running_loop().call_later(0.05, thing.hold.set)
    assert thing.looks == 1


async def test_what_is_known_outlives_a_restart(bench: Bench) -> None:
    """The next life goes on counting, and leaves what was left."""
    thing = Thing()
    thing.wrong = thing.stubborn = True
    async with bench.running(thing, kinds=(), every_s=0.01):
        await until(lambda: bool(bench.conditions.problems()))
    thing.looks = 0
    async with bench.running(thing, kinds=(), every_s=0.01):
        await until(lambda: thing.looks > 2)
        assert bench.conditions.problems()
    assert bench.conditions.notes() == {"repairs": f"{REPAIRS}: thing {REPAIRS}"}


async def test_many_things_are_few_words(bench: Bench) -> None:
    class Many:
        name = "many"

        def look(self, allow: Allow) -> Sequence[Repair]:
            return [Repair(f"route {n}", f"route {n} was gone", "EPERM") for n in range(2000)]

    many = Many()
    async with bench.running(many):  # type: ignore[arg-type]
        await until(lambda: bool(bench.conditions.problems()))
    problem = bench.conditions.problems()["reconcile many"]
    assert problem.endswith("; and 1,995 more")
    assert len(problem) < 500
