# SPDX-License-Identifier: Apache-2.0
"""The supervisor's promises, with a clock that the tests advance."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator

import pytest

from osbase.supervisor import Backoff, Context, Runnable, State, Supervisor
from osbase.supervisor.states import TRANSITIONS, TransitionError, check


class FakeClock:
    """Stands still until `advance`."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + seconds, future))
        await future

    async def advance(self, seconds: float) -> None:
        self._now += seconds
        for due, future in self._sleepers:
            if due <= self._now and not future.done():
                future.set_result(None)
        await settle()


async def settle() -> None:
    """Let all tasks run until they wait for time to pass."""
    for _ in range(100):
        await asyncio.sleep(0)


class Tree:
    """A supervisor under test."""

    def __init__(self, root: Runnable) -> None:
        self.clock = FakeClock()
        self.supervisor = Supervisor(
            root, clock=self.clock, make_backoff=lambda: Backoff(1, 8, 60, rand=lambda: 0)
        )

    def states(self) -> dict[str, State]:
        return self.supervisor.states()


@contextlib.asynccontextmanager
async def running(root: Runnable) -> AsyncIterator[Tree]:
    """Start the tree; stop it afterwards, when no task may be stuck."""
    tree = Tree(root)
    run = asyncio.create_task(tree.supervisor.run(10))
    await settle()
    try:
        yield tree
    finally:
        tree.supervisor.request_stop()
        async with asyncio.timeout(10):
            assert await run == []


async def forever(ctx: Context) -> None:
    """Healthy, and runs until cancelled."""
    ctx.signal_healthy()
    await asyncio.Event().wait()


class Mortal:
    """Runs until `die`; counts lives and clean-ups."""

    def __init__(self) -> None:
        self.lives = 0
        self.cleanups = 0
        self.death: asyncio.Future[None] | None = None
        self.children: dict[str, Runnable] = {}

    async def __call__(self, ctx: Context) -> None:
        self.lives += 1
        for name, child in self.children.items():
            ctx.run(name, child)
        ctx.signal_healthy()
        self.death = asyncio.get_running_loop().create_future()
        try:
            await self.death
        finally:
            await asyncio.sleep(0)  # a clean-up that awaits
            self.cleanups += 1

    async def die(self, error: BaseException | None = None) -> None:
        assert self.death is not None
        self.death.set_exception(error or RuntimeError("told to die"))
        await settle()


async def test_states_of_a_living_tree() -> None:
    """States are NEW, HEALTHY and DONE, and CANCELED after the stop."""

    async def slow(ctx: Context) -> None:
        await asyncio.Event().wait()

    async def once(ctx: Context) -> None:
        ctx.signal_done()

    async def root(ctx: Context) -> None:
        ctx.run("slow", slow)
        ctx.run("once", once)
        await forever(ctx)

    async with running(root) as tree:
        assert tree.states() == {
            "root": State.HEALTHY,
            "root.slow": State.NEW,
            "root.once": State.DONE,
        }
    assert set(tree.states().values()) == {State.CANCELED}


async def test_death_restarts_the_subtree_and_nothing_else() -> None:
    """Children end with their parent; siblings and the parent's parent live."""
    root, parent, child, sibling = Mortal(), Mortal(), Mortal(), Mortal()
    root.children = {"parent": parent, "sibling": sibling}
    parent.children = {"child": child}
    async with running(root) as tree:
        await parent.die()
        assert tree.states()["root.parent"] is State.DEAD
        assert child.cleanups == 1
        await tree.clock.advance(0.9)
        assert parent.lives == 1
        await tree.clock.advance(0.2)
        assert (root.lives, parent.lives, child.lives, sibling.lives) == (1, 2, 2, 1)
    assert (root.cleanups, parent.cleanups, child.cleanups, sibling.cleanups) == (1, 2, 2, 1)


async def test_group_dies_and_restarts_together() -> None:
    """Members that need each other are restarted together."""
    one, two, other = Mortal(), Mortal(), Mortal()

    async def root(ctx: Context) -> None:
        ctx.run_group({"one": one, "two": two})
        ctx.run("other", other)
        await forever(ctx)

    async with running(root) as tree:
        await one.die()
        assert tree.states()["root.two"] is State.CANCELED
        await tree.clock.advance(1)
        assert (one.lives, two.lives, other.lives) == (2, 2, 1)


async def test_backoff_doubles_and_starts_over_after_a_long_life() -> None:
    """1, 2, 4, 8, 8 s; after a minute of life 1 s again."""
    mortal = Mortal()
    async with running(mortal) as tree:
        for number, delay in enumerate([1, 2, 4, 8, 8], start=1):
            await mortal.die()
            await tree.clock.advance(delay - 0.1)
            assert mortal.lives == number
            await tree.clock.advance(0.1)
            assert mortal.lives == number + 1
        await tree.clock.advance(60)
        await mortal.die()
        await tree.clock.advance(1)
        assert mortal.lives == 7


async def test_all_ways_to_die(caplog: pytest.LogCaptureFixture) -> None:
    """Each is logged under the path, and ends in a restart."""

    async def returns(ctx: Context) -> None:
        ctx.signal_healthy()

    async def raises(ctx: Context) -> None:
        raise ValueError("three is not four")

    async def exits(ctx: Context) -> None:
        sys.exit(3)

    async def cancels_itself(ctx: Context) -> None:
        raise asyncio.CancelledError

    async def healthy_twice(ctx: Context) -> None:
        ctx.signal_healthy()
        ctx.signal_healthy()

    async def late_child(ctx: Context) -> None:
        ctx.signal_healthy()
        ctx.run("child", forever)

    async def same_child(ctx: Context) -> None:
        ctx.run("child", forever)
        ctx.run("child", forever)

    async def bad_name(ctx: Context) -> None:
        ctx.run("a.b", forever)

    ways: dict[str, tuple[Runnable, str]] = {
        "returns": (returns, "returned without signalling"),
        "raises": (raises, "ValueError: three is not four"),
        "exits": (exits, "SystemExit: 3"),
        "cancels_itself": (cancels_itself, "cancelled, and not by its supervisor"),
        "healthy_twice": (healthy_twice, "cannot become healthy: it is healthy"),
        "late_child": (late_child, "cannot start ['child']: it is healthy"),
        "same_child": (same_child, "root.same_child.child is running already"),
        "bad_name": (bad_name, "cannot name a child 'a.b'"),
    }

    async def root(ctx: Context) -> None:
        for name, (runnable, _) in ways.items():
            ctx.run(name, runnable)
        await forever(ctx)

    async with running(root) as tree:
        for name, (_, text) in ways.items():
            assert tree.states()[f"root.{name}"] is State.DEAD
            messages = [r.getMessage() for r in caplog.records if r.name == f"root.{name}"]
            assert any(text in message for message in messages), (name, messages)
        assert tree.states()["root"] is State.HEALTHY


async def test_stop_is_innermost_first() -> None:
    """A parent's resources outlive its children."""
    order: list[str] = []

    async def leaf(ctx: Context) -> None:
        try:
            await forever(ctx)
        finally:
            order.append(ctx.dn)

    async def root(ctx: Context) -> None:
        ctx.run("child", leaf)
        try:
            await forever(ctx)
        finally:
            order.append(ctx.dn)

    async with running(root):
        pass
    assert order == ["root.child", "root"]


async def test_stop_during_a_backoff_and_amid_a_clean_up() -> None:
    """No one is cancelled twice, and nothing is started again."""
    finish = asyncio.Event()
    parent, waiting = Mortal(), Mortal()
    cleaned: list[bool] = []

    async def slow_to_end(ctx: Context) -> None:
        try:
            await forever(ctx)
        finally:
            await finish.wait()
            cleaned.append(True)

    parent.children = {"slow": slow_to_end, "waiting": waiting}

    tree = Tree(parent)
    run = asyncio.create_task(tree.supervisor.run(10))
    await settle()
    await waiting.die()  # root.waiting is in its back-off
    await parent.die()  # root waits for root.slow's clean-up
    tree.supervisor.request_stop()
    await settle()
    assert not run.done()
    assert cleaned == []
    finish.set()
    async with asyncio.timeout(10):
        assert await run == []
    assert cleaned == [True]
    assert (parent.lives, waiting.lives) == (1, 1)


async def test_shutdown_limit_names_who_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    """A runnable that ignores its cancellation does not keep the process."""
    released = asyncio.Event()

    async def stubborn(ctx: Context) -> None:
        ctx.signal_healthy()
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    async def root(ctx: Context) -> None:
        ctx.run("stubborn", stubborn)
        ctx.run("good", forever)
        await forever(ctx)

    tree = Tree(root)
    run = asyncio.create_task(tree.supervisor.run(10))
    await settle()
    tree.supervisor.request_stop()
    await settle()
    await tree.clock.advance(9)
    assert not run.done()
    await tree.clock.advance(1)
    # root waits for its child, so it has not ended either.
    assert await run == ["root", "root.stubborn"]
    assert tree.states()["root.good"] is State.CANCELED
    released.set()
    await settle()


async def test_cancelling_run_stops_the_tree() -> None:
    """asyncio.run does so on Ctrl-C."""
    mortal = Mortal()
    tree = Tree(mortal)
    run = asyncio.create_task(tree.supervisor.run(10))
    await settle()
    run.cancel()
    assert await run == []
    assert mortal.cleanups == 1


async def test_failure_while_stopping_is_reported_not_restarted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error in a clean-up is logged."""

    async def root(ctx: Context) -> None:
        try:
            await forever(ctx)
        finally:
            raise OSError("disk on fire")

    with caplog.at_level(logging.WARNING):
        async with running(root) as tree:
            pass
    assert tree.states() == {"root": State.CANCELED}
    assert "failed while it was being stopped" in caplog.text


async def test_expected_errors_are_one_line_until_they_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Unexpected ones have their traceback each time."""
    errors: list[Exception] = [
        OSError("no file\nmore"), OSError("no file\nmore"), OSError("no port"),
        OSError("no file\nmore"), KeyError("x"), KeyError("x"), OSError("no port"),
    ]  # fmt: skip
    left = list(errors)

    async def failing(ctx: Context) -> None:
        if left:
            raise left.pop(0)
        await forever(ctx)

    def expected(error: BaseException) -> str:
        return str(error).partition("\n")[0] + "; mend it" if isinstance(error, OSError) else ""

    clock = FakeClock()
    supervisor = Supervisor(failing, expected=expected, clock=clock)
    with caplog.at_level(logging.INFO):
        task = asyncio.create_task(supervisor.run(10.0))
        for _ in errors:
            await settle()
            await clock.advance(60.0)
        supervisor.request_stop()
        assert await task == []
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in said] == [
        "no file; mend it; it is tried again",
        "no port; mend it; it is tried again",
        "no file; mend it; it is tried again",
        "died: KeyError: 'x'",
        "died: KeyError: 'x'",
        "no port; mend it; it is tried again",
    ]
    assert [bool(record.exc_info) for record in said] == [False] * 3 + [True] * 2 + [False]
    restarts = [record for record in caplog.records if "restarts in" in record.getMessage()]
    assert len(restarts) == len(errors) - 1


def test_transition_table_is_closed() -> None:
    """Every state has a row; nothing follows itself; errors name both."""
    assert set(TRANSITIONS) == set(State)
    for state, following in TRANSITIONS.items():
        assert state not in following
    with pytest.raises(TransitionError, match=r"root\.x cannot become done: it is dead"):
        check("root.x", State.DEAD, State.DONE)


def test_jitter_is_at_most_a_quarter() -> None:
    """It never shortens a delay."""
    assert Backoff(4, 8, 60, rand=lambda: 0.999).died(0) == pytest.approx(5, abs=0.01)
    assert Backoff(4, 8, 60, rand=lambda: 0).died(0) == 4
