# SPDX-License-Identifier: Apache-2.0
"""The watchers of changes, and the events that each has not read yet.

    engine, under its mutex ── publish ──> [bounded queue] ── read ──> a watcher
                                           [bounded queue] ── read ──> another

Publishing only puts an event into queues, so a watcher never delays others: if
its queue is full it is dropped, gets an error when it reads, and begins again.
So a watcher sees either everything, in order, or that it did not.

Why not the newest value only, as in osbase.event: a loss that is followed by a
new attachment with the same id would never be seen.
"""

import enum
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from metropolis.node.core.network.workloads.errors import Aborted, Unavailable
from metropolis.node.core.network.workloads.model import Attachment

BACKLOG = 4096  # changes that a watcher may be behind


class Kind(enum.Enum):
    """See WatchEvent in the API."""

    PRESENT = 1
    COMPLETE = 2
    ATTACHED = 3
    DETACHED = 4
    LOST = 5
    CHANGED = 6


@dataclass(frozen=True, slots=True)
class Event:
    """A change. attachment: None for COMPLETE."""

    kind: Kind
    attachment: Attachment | None = None


class Watcher:
    """Iterate over it, on one thread; it ends when it is closed, and raises
    Aborted or Unavailable when the service ends it. Leave it by `with`.
    """

    def __init__(self, owner: Watchers, first: Iterable[Event], backlog: int) -> None:
        self._owner = owner
        self._first = deque(first)  # not part of the backlog, whatever its size
        self._changes: deque[Event] = deque()
        self._backlog = backlog
        self._ended: Exception | None = None
        self._closed = False
        self._news = threading.Condition()

    def put(self, event: Event) -> bool:
        """Queue an event; False: the queue is full, and the watcher ends."""
        with self._news:
            if len(self._changes) < self._backlog:
                self._changes.append(event)
                self._news.notify()
                return True
        self.end(
            Aborted(
                f"watch: {self._backlog} changes were not read; watch again, and begin with an "
                "empty set"
            )
        )
        return False

    def end(self, reason: Exception) -> None:
        """End with the reason; drop the unread events."""
        with self._news:
            self._ended = reason
            self._first.clear()
            self._changes.clear()
            self._news.notify()

    def close(self) -> None:
        """End the iteration; any thread, any number of times."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._owner.remove(self)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        with self._news:
            while True:
                if self._closed:
                    raise StopIteration
                if self._ended is not None:
                    raise self._ended
                if self._first:
                    return self._first.popleft()
                if self._changes:
                    return self._changes.popleft()
                self._news.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Watchers:
    """All watchers of a service. Callers serialise `add` and `publish`, in the
    order of the events.
    """

    def __init__(self) -> None:
        self._all: list[Watcher] = []
        self._mutex = threading.Lock()

    def add(self, present: Iterable[Attachment], backlog: int = BACKLOG) -> Watcher:
        """Return a new one, to be used in a `with` block."""
        first = [Event(Kind.PRESENT, one) for one in present]
        watcher = Watcher(self, [*first, Event(Kind.COMPLETE)], backlog)
        with self._mutex:
            self._all.append(watcher)
        return watcher

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self._all)

    def publish(self, event: Event) -> None:
        """Send it to all; drop those too far behind."""
        with self._mutex:
            self._all = [watcher for watcher in self._all if watcher.put(event)]

    def remove(self, watcher: Watcher) -> None:
        """Remove it, if it is there."""
        with self._mutex:
            self._all = [other for other in self._all if other is not watcher]

    def end(self, reason: str) -> None:
        """End all, with Unavailable."""
        with self._mutex:
            ended, self._all = self._all, []
        for watcher in ended:
            watcher.end(Unavailable(reason))
