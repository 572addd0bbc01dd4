# SPDX-License-Identifier: Apache-2.0
"""The delay before a dead runnable is started again. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Delays that double from `first_s` to `max_s`, in seconds.

    Each is lengthened by up to a quarter at random, so that runnables which
    died together do not restart together. A life of at least `reset_after_s`
    starts the series over. Becoming healthy does not: a runnable that dies
    right after it would be restarted for ever at the shortest delay.
    """

    def __init__(
        self,
        first_s: float = 0.5,
        max_s: float = 30.0,
        reset_after_s: float = 60.0,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`rand` gives numbers in [0, 1)."""
        self._first = first_s
        self._max = max_s
        self.reset_after_s = reset_after_s
        self._rand = rand
        self._next = first_s

    def died(self, lived_s: float) -> float:
        """Return the delay after a life of `lived_s` seconds."""
        if lived_s >= self.reset_after_s:
            self._next = self._first
        delay = self._next
        self._next = min(delay * 2, self._max)
        return delay * (1 + self._rand() / 4)
