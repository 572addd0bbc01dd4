# SPDX-License-Identifier: Apache-2.0
"""Machines that many tests use, one after the other.

    world = await shared.get(("node", "image"), make)      boots, or exists
    scene = await shared.part(make_scene, world)           made, or exists

Booting is slow. So a session has one node, or one cluster, at a time: for as
long as tests request the same, and until one of them fails, since tests on
leftovers of a failed test prove nothing.

Parts are the objects that a file of tests makes there: pods, captures. They end
with the file, or with their node or cluster.

Why not fixtures of pytest's session scope: those cannot be made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import pytest_asyncio

MOST = 6
"""Failures of get(); if all fail, the last tests should fail at once."""


class SharedError(Exception):
    """Too many were used up."""


class Shared:
    """The shared object of a session; at most one at a time."""

    def __init__(self) -> None:
        self.made = 0
        self._key: object = None
        self._running: Any = None
        self._stack = contextlib.AsyncExitStack()
        self._parts: dict[object, Any] = {}
        self._parts_stack = contextlib.AsyncExitStack()

    async def get[T](self, key: object, make: Callable[[], AbstractAsyncContextManager[T]]) -> T:
        """Return the object of that key; make it, in place of another, if
        needed. Raises SharedError, and errors of entering and leaving.
        """
        if self._key is None or self._key != key:
            await self.close()
            if self.made == MOST:
                raise SharedError(f"{MOST} were used up by tests that failed; see the first")
            self.made += 1
            self._running = await self._stack.enter_async_context(make())
            self._key = key
        running: T = self._running
        return running

    async def part[**A, T](
        self, make: Callable[A, AbstractAsyncContextManager[T]], *args: A.args, **kwargs: A.kwargs
    ) -> T:
        """Return the result of `make`, called once in this file of tests."""
        if make not in self._parts:
            self._parts[make] = await self._parts_stack.enter_async_context(make(*args, **kwargs))
        made: T = self._parts[make]
        return made

    async def end_parts(self) -> None:
        """End all parts, the last one first."""
        self._parts.clear()
        await self._parts_stack.aclose()

    async def close(self) -> None:
        """End the parts, and the shared object."""
        try:
            await self.end_parts()
        finally:
            self._key = self._running = None
            await self._stack.aclose()


_KEY = pytest.StashKey[Shared]()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Shared]:
    """Yield the session's object, the same for all conftest.py."""
    found = request.config.stash.setdefault(_KEY, Shared())
    yield found
    await found.close()
