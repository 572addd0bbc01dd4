# SPDX-License-Identifier: Apache-2.0
"""The tree and its tasks; the package docstring has the contract.

There is one task per runnable, and one per group, which starts its members,
waits for a death, stops the members and their children, waits, and starts over:

    Supervisor -> _Group(root) -> _Node(root) -> [_Group, ...] -> _Node ...

To stop a group is to stop its members, innermost first, and await them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Final, Protocol

from osbase.supervisor import states
from osbase.supervisor.backoff import Backoff
from osbase.supervisor.states import State

type Runnable = Callable[[Context], Coroutine[None, None, None]]

_STUCK_AFTER_S: Final = 10.0
"""A cancelled runnable that takes longer is named in the log."""


class Clock(Protocol):
    """The supervisor's time; tests use their own."""

    def now(self) -> float:
        """Return monotonic seconds."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""


class _SystemClock:
    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Context:
    """A runnable's place in the tree, for one life of it."""

    def __init__(self, node: _Node) -> None:
        """Made by the supervisor."""
        self._node = node
        self.logger = node.logger

    @property
    def dn(self) -> str:
        """Return the path in the tree: "root.network.uplink"."""
        return self._node.dn

    def run(self, name: str, runnable: Runnable) -> None:
        """Start a child, a group of one. Only while NEW."""
        self.run_group({name: runnable})

    def run_group(self, runnables: Mapping[str, Runnable]) -> None:
        """Start children that die and are restarted together. Only while NEW.

        Names are unique under one parent, made of ASCII letters, digits,
        `-` and `_`.
        """
        self._node.add_group(runnables)

    def signal_healthy(self) -> None:
        """Become HEALTHY: it does its work, and starts no more children."""
        self._node.to(State.HEALTHY)

    def signal_done(self) -> None:
        """Become DONE: it returns now, on purpose."""
        self._node.done_signalled = True


class _Node:
    """One runnable and its children."""

    def __init__(self, tree: Supervisor, dn: str, runnable: Runnable) -> None:
        self.tree = tree
        self.dn = dn
        self.runnable = runnable
        self.logger = logging.getLogger(dn)
        self.backoff = tree.make_backoff()
        self.state = State.NEW
        self.done_signalled = False
        self.stopping = False
        self.groups: list[_Group] = []
        self.task: asyncio.Task[None] | None = None
        self.died_after_s = 0.0
        self.complaint = ""  # the expected error that was logged last
        self.is_repeated = False  # whether the last death had the same

    def to(self, new: State) -> None:
        states.check(self.dn, self.state, new)
        self.state = new

    def add_group(self, runnables: Mapping[str, Runnable]) -> None:
        if self.stopping:
            raise asyncio.CancelledError(f"{self.dn} is being stopped")
        if self.state is not State.NEW:
            raise states.TransitionError(
                f"{self.dn} cannot start {sorted(runnables)}: it is {self.state.value}"
            )
        taken = {node.dn for group in self.groups for node in group.nodes}
        members = []
        for name, runnable in runnables.items():
            if not (name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
                raise ValueError(f"{self.dn} cannot name a child {name!r}")
            dn = f"{self.dn}.{name}"
            if dn in taken:
                raise ValueError(f"{dn} is running already")
            members.append(_Node(self.tree, dn, runnable))
        group = _Group(self.tree, members)
        self.groups.append(group)
        group.start()

    def start(self, on_death: Callable[[], None]) -> None:
        if self.state is not State.NEW:
            self.to(State.NEW)
        self.groups.clear()
        self.done_signalled = self.stopping = False
        self.task = asyncio.create_task(self._live(on_death), name=self.dn)

    async def _live(self, on_death: Callable[[], None]) -> None:
        born = self.tree.clock.now()
        try:
            await self.runnable(Context(self))
        except asyncio.CancelledError:
            if self.stopping:
                self.to(State.CANCELED)
                return
            self.logger.error("died: cancelled, and not by its supervisor")
        except BaseException as error:  # also SystemExit, which would end the loop
            if self.stopping:
                self.logger.warning("failed while it was being stopped", exc_info=error)
                self.to(State.CANCELED)
                return
            self._complain(error, self.tree.clock.now() - born)
        else:
            if self.stopping:
                self.to(State.CANCELED)
                return
            if self.done_signalled:
                self.to(State.DONE)
                return
            self.logger.error("died: returned without signalling that it is done")
        self.to(State.DEAD)
        self.died_after_s = self.tree.clock.now() - born
        on_death()

    def _complain(self, error: BaseException, lived_s: float) -> None:
        """Log a death: an expected error as one line, when it is another than
        before, or the runnable has worked for a while; others in full.
        """
        text = self.tree.expected(error)
        self.is_repeated = (
            bool(text) and text == self.complaint and lived_s < self.backoff.reset_after_s
        )
        self.complaint = text
        if not text:
            self.logger.error("died: %s", _first_line(error), exc_info=error)
        else:
            level = logging.DEBUG if self.is_repeated else logging.ERROR
            with_trace = self.logger.isEnabledFor(logging.DEBUG)
            self.logger.log(
                level, "%s; it is tried again", text, exc_info=error if with_trace else None
            )

    async def stop(self) -> None:
        """Stop the children, then the runnable; return when all ended.

        Called once in a life: a second cancellation would hit a clean-up.
        """
        self.stopping = True
        await _all([group.stop() for group in self.groups])
        if self.task is None:
            return
        if not self.task.done():
            self.task.cancel()
            while not self.task.done():
                await asyncio.wait([self.task], timeout=_STUCK_AFTER_S)
                if not self.task.done():
                    self.logger.warning("was cancelled and still runs; waiting for it")
        if self.state in (State.NEW, State.DONE):
            # Cancelled before its first step, or long returned.
            self.to(State.CANCELED)

    def walk(self) -> Iterator[_Node]:
        yield self
        for group in self.groups:
            for node in group.nodes:
                yield from node.walk()


class _Group:
    """Runnables that live and die together.

    An event stops its driver, never a cancellation: that could come while it
    stops its members, and they would be cancelled twice, the second time in
    their clean-up.
    """

    def __init__(self, tree: Supervisor, nodes: list[_Node]) -> None:
        self.tree = tree
        self.nodes = nodes
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()  # a death, or stop
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        names = ", ".join(node.dn for node in self.nodes)
        self._task = asyncio.create_task(self._drive(), name=f"group of {names}")

    async def _drive(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            for node in self.nodes:
                node.start(self._wake.set)
            await self._wake.wait()
            dead = [node for node in self.nodes if node.state is State.DEAD]
            await _all([node.stop() for node in self.nodes])
            if self._stop.is_set():
                return
            delay = max(node.backoff.died(node.died_after_s) for node in dead)
            for node in dead:
                level = logging.DEBUG if node.is_repeated else logging.INFO
                node.logger.log(level, "restarts in %.1f s", delay)
            await _first(self.tree.clock.sleep(delay), _wait(self._stop))

    async def stop(self) -> None:
        """Stop the members; return when all have ended."""
        self._stop.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.shield(self._task)


async def _all(stops: list[Coroutine[None, None, None]]) -> None:
    if stops:
        await asyncio.gather(*stops)


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _first(*choices: Coroutine[None, None, None]) -> None:
    """Return when one has ended; cancel the others."""
    tasks = [asyncio.create_task(choice) for choice in choices]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()


def _first_line(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Supervisor:
    """Runs one tree, once.

    expected: returns the one line that is logged when a runnable dies of this
    error, with the cure, and only once while it stays the same; "" for an error
    that is logged with its traceback each time. `clock` and `make_backoff` (a
    new series of delays for each runnable) are for tests.
    """

    def __init__(
        self,
        root: Runnable,
        *,
        expected: Callable[[BaseException], str] = lambda _: "",
        clock: Clock | None = None,
        make_backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        """`root` is the runnable at the top, named "root"."""
        self.expected = expected
        self.clock: Clock = clock or _SystemClock()
        self.make_backoff = make_backoff
        self._root = _Node(self, "root", root)
        self._stop = asyncio.Event()

    def states(self) -> dict[str, State]:
        """Return the state of every runnable of the tree, by path."""
        return {node.dn: node.state for node in self._root.walk()}

    def request_stop(self) -> None:
        """Make `run` stop the tree and return. Call on the loop's thread."""
        self._stop.set()

    async def run(self, shutdown_limit_s: float) -> list[str]:
        """Run the tree until request_stop, or until cancelled.

        Then cancel everything, innermost first. Return the paths of runnables
        that have not ended `shutdown_limit_s` later; normally []. They go on
        running; the caller should end the process.
        """
        group = _Group(self, [self._root])
        group.start()
        with contextlib.suppress(asyncio.CancelledError):
            await self._stop.wait()
        stopping = asyncio.create_task(group.stop(), name="stop the tree")
        limit = asyncio.create_task(self.clock.sleep(shutdown_limit_s), name="shutdown limit")
        try:
            await asyncio.wait([stopping, limit], return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                stopping.result()
                return []
            return [node.dn for node in self._root.walk() if node.task and not node.task.done()]
        finally:
            limit.cancel()
