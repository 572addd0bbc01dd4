# SPDX-License-Identifier: Apache-2.0
"""The clock of leases, which continues while the machine is suspended.

The time of a lease continues while the client is suspended. time.monotonic, and
with it asyncio's timers, stop meanwhile (clock_gettime(2)): a client that used
them could use an address that belongs to another host by now.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable


def now() -> float:
    """Return the seconds since boot, including suspension."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Timer:
    """A timer of that clock; calls back in the running loop, or as soon as the
    machine wakes up. `close` it.
    """

    def __init__(self, due: Callable[[], None]) -> None:
        """Not set yet. Raises OSError."""
        self._due = due
        self._fd = os.timerfd_create(time.CLOCK_BOOTTIME, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._expired)

    def set(self, when: float | None) -> None:
        """Replace the time; None: never. A past time is due at once."""
        # 0 would be never.
        at = 0.0 if when is None else max(when, 1e-3)
        os.timerfd_settime(self._fd, flags=os.TFD_TIMER_ABSTIME, initial=at)

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set again meanwhile
        self._due()

    def close(self) -> None:
        """Stop the timer for good; `due` is not called again."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
