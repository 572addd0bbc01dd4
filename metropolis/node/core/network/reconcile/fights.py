# SPDX-License-Identifier: Apache-2.0
"""When to stop restoring an object that another program changes again. Pure.

    right --changed--> put back --changed--> ... five times in a minute --> left
      ^                                                                      |
      +------- found right by itself, or put back after ten minutes ---------+

Two programs that undo each other's work all day help nobody: the object flaps,
and the log repeats itself for ever. So after a few rounds the object is left as
it is, and the log says so, until the other program has stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from metropolis.node.core.network.reconcile.ward import Repair

REPAIRS: Final = 5
WITHIN_S: Final = 60.0
TRY_AGAIN_S: Final = 600.0


@dataclass
class _Thing:
    """An object that was repaired. times: of the last few repairs, monotonic
    seconds. left_since: None if it is not left. failed: the repair failed.
    """

    times: deque[float] = field(default_factory=lambda: deque(maxlen=REPAIRS))
    left_since: float | None = None
    failed: bool = False


class Fights:
    """The repairs of one ward. Not thread-safe; one look at a time."""

    def __init__(self, now: Callable[[], float]) -> None:
        """now: monotonic seconds."""
        self._now = now
        self._things: dict[str, _Thing] = {}

    def allow(self, key: str) -> bool:
        """Return whether the thing may be restored once more."""
        thing = self._things.get(key)
        if thing is None:
            return True
        now = self._now()
        if thing.left_since is not None:
            return now >= thing.left_since + TRY_AGAIN_S
        return len(thing.times) < REPAIRS or now - thing.times[0] >= WITHIN_S

    def looked(self, repairs: Sequence[Repair]) -> None:
        """Take the result of a look: everything that was wrong."""
        now = self._now()
        wrong = {repair.key for repair in repairs}
        for repair in repairs:
            thing = self._things.setdefault(repair.key, _Thing())
            thing.failed = bool(repair.error)
            if repair.left:
                thing.left_since = now if thing.left_since is None else thing.left_since
                continue
            if thing.left_since is not None:
                thing.left_since = None
                thing.times.clear()
            if not repair.error:
                thing.times.append(now)
        for key, thing in list(self._things.items()):
            if key in wrong:
                continue
            thing.failed = False
            if thing.left_since is not None:
                thing.left_since = None
                thing.times.clear()
            if not thing.times or now - thing.times[-1] >= WITHIN_S:
                del self._things[key]

    @property
    def left(self) -> Collection[str]:
        """Return keys of the things that are left as others set them."""
        return [key for key, thing in self._things.items() if thing.left_since is not None]
