# SPDX-License-Identifier: Apache-2.0
"""A map of newest values: a watcher gets the changes since its last read."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable, Mapping


class Table[K, V]:
    """Values by key, and the watchers of changes. Thread-safe.

    Like Value, for many values of a kind: the cost of a change grows with the
    number of changed keys and of watchers, not with the size of the table.
    """

    def __init__(self, name: str) -> None:
        """`name` is for error messages and debugging only."""
        self._name = name
        self._lock = threading.Lock()
        self._values: dict[K, V] = {}
        self._watchers: list[TableWatcher[K, V]] = []

    def __repr__(self) -> str:
        """Name and size."""
        return f"<Table {self._name}: {len(self._values)} keys>"

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._values)

    def set(self, key: K, value: V) -> None:
        """Make `value` the newest of the key. An equal value is no change."""
        self.update({key: value})

    def delete(self, key: K) -> None:
        """Remove the key; a missing key is ignored."""
        self.update({}, [key])

    def update(self, values: Mapping[K, V], removed: Iterable[K] = ()) -> None:
        """Set and remove several at once; watchers see all or nothing."""
        with self._lock:
            changed = [key for key in removed if key not in values and key in self._values]
            for key in changed:
                del self._values[key]
            for key, value in values.items():
                if key not in self._values or self._values[key] != value:
                    self._values[key] = value
                    changed.append(key)
            self._tell(changed)

    def replace(self, values: Mapping[K, V]) -> None:
        """Make the whole table equal to `values`; an equal value is no change.
        Only the cost of this operation grows with the size of the table.
        """
        self.update(values, [key for key in self.copy() if key not in values])

    def copy(self) -> dict[K, V]:
        """Return a copy of the whole table."""
        with self._lock:
            return dict(self._values)

    def get(self, key: K) -> V | None:
        """Return the newest value of the key; None for a missing key."""
        return self._values.get(key)

    def watch(self) -> TableWatcher[K, V]:
        """Return a new watcher, for which every key is changed. Close it."""
        with self._lock:
            watcher = TableWatcher(self, self._values)
            self._watchers.append(watcher)
            return watcher

    def _tell(self, changed: Iterable[K]) -> None:
        keys = dict.fromkeys(changed)
        if keys:
            for watcher in self._watchers:
                watcher._dirty.update(keys)
                watcher._wake()


class TableWatcher[K, V]:
    """One consumer's view of a table; for one task at a time."""

    def __init__(self, table: Table[K, V], keys: Iterable[K]) -> None:
        """Use Table.watch."""
        self._table = table
        self._dirty = dict.fromkeys(keys)
        self._waiting: tuple[asyncio.Future[None], asyncio.AbstractEventLoop] | None = None

    def close(self) -> None:
        """Remove the watcher from the table: it gets no more changes."""
        with self._table._lock, contextlib.suppress(ValueError):
            self._table._watchers.remove(self)

    def __enter__(self) -> TableWatcher[K, V]:
        """Close it at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def take(self) -> dict[K, V | None]:
        """Return the newest values that changed since the last call; None for
        a removed key. Empty when nothing changed.
        """
        with self._table._lock:
            dirty, self._dirty = self._dirty, {}
            values = self._table._values
            return {key: values.get(key) for key in dirty}

    async def get(self) -> dict[K, V | None]:
        """Like take, but wait for a change if there is none.

        A key that was added and removed meanwhile is None, like any removed
        key. After a cancellation nothing counts as seen.
        """
        if self._waiting is not None:
            raise RuntimeError(f"two tasks wait on one watcher of {self._table!r}")
        loop = asyncio.get_running_loop()
        while True:
            with self._table._lock:
                if not self._dirty:
                    future = loop.create_future()
                    self._waiting = (future, loop)
            if self._waiting is None:
                return self.take()
            try:
                await future
            finally:
                self._waiting = None

    async def __aiter__(self) -> AsyncIterator[dict[K, V | None]]:
        """Yield every change as `get` returns it, without end."""
        while True:
            yield await self.get()

    def _wake(self) -> None:
        if self._waiting is not None:
            future, loop = self._waiting
            # The loop may have ended before its watcher was closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
