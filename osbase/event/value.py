# SPDX-License-Identifier: Apache-2.0
"""The newest-value event; the package docstring has its purpose."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Final, overload

_NO_DEFAULT: Final = object()


class Value[T]:
    """A value that changes, and the watchers of changes. Thread-safe.

    It has no value until the first `set`. Setting an equal value is a change
    like any other.
    """

    def __init__(self, name: str) -> None:
        """`name` is for error messages and debugging only."""
        self._name = name
        self._lock = threading.Lock()
        self._version = 0  # number of sets so far
        self._newest: tuple[T] | None = None
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    def __repr__(self) -> str:
        """Name and value."""
        newest = self._newest
        return f"<Value {self._name}: {'not set' if newest is None else repr(newest[0])}>"

    def set(self, value: T) -> None:
        """Make `value` the newest and wakes all watchers. Never blocks."""
        with self._lock:
            self._newest = (value,)
            self._version += 1
            waiting, self._waiting = self._waiting, {}
        for future, loop in waiting.items():
            # The loop of a watcher may have ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_wake, future)

    @overload
    def peek(self) -> T: ...

    @overload
    def peek[D](self, default: D) -> T | D: ...

    def peek(self, default: object = _NO_DEFAULT) -> object:
        """Return the newest value. When there is none yet: the default, or
        raise LookupError if no default is given.
        """
        newest = self._newest
        if newest is not None:
            return newest[0]
        if default is _NO_DEFAULT:
            raise LookupError(f"{self._name} has no value yet")
        return default

    def watch(self) -> Watcher[T]:
        """Return a new watcher, which has seen nothing yet."""
        return Watcher(self)

    def _newer(self, than: int) -> tuple[int, T] | None:
        with self._lock:
            if self._newest is None or self._version == than:
                return None
            return self._version, self._newest[0]

    async def _wait_newer(self, than: int) -> tuple[int, T]:
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                if self._newest is not None and self._version != than:
                    return self._version, self._newest[0]
                future = loop.create_future()
                self._waiting[future] = loop
            try:
                await future
            finally:
                with self._lock:
                    self._waiting.pop(future, None)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Watcher[T]:
    """One consumer's view of a value; for one task at a time."""

    def __init__(self, value: Value[T]) -> None:
        """Use Value.watch."""
        self._value = value
        self._seen = 0
        self._busy = False

    async def get(self, where: Callable[[T], bool] | None = None) -> T:
        """Return the newest value that this watcher has not returned yet.

        Waits for one if necessary; with `where`, for one that satisfies it.
        After a cancellation nothing counts as seen. Raises RuntimeError when
        another task is in `get` of the same watcher.
        """
        if self._busy:
            raise RuntimeError(f"two tasks wait on one watcher of {self._value!r}")
        self._busy = True
        try:
            seen = self._seen
            while True:
                seen, newest = await self._value._wait_newer(seen)
                if where is None or where(newest):
                    self._seen = seen
                    return newest
        finally:
            self._busy = False

    def changed(self) -> bool:
        """Return whether `get` would return at once."""
        return self._value._newer(self._seen) is not None

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yield every value as `get` returns it, without end."""
        while True:
            yield await self.get()
