# SPDX-License-Identifier: Apache-2.0
"""The clock of leases: it goes on while the machine is suspended.

A server counts on while a client sleeps. time.monotonic, and with it asyncio's
timers, stand still meanwhile (clock_gettime(2)): a client that went by them
would use an address that is another's by now.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable


def now() -> float:
    """Seconds since boot, those of suspension among them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Timer:
    """Calls back in the running loop at a time of that clock, or as soon as the
    machine is awake again. `close` it.
    """

    def __init__(self, due: Callable[[], None]) -> None:
        """Not set yet. Raises OSError."""
        self._due = due
        self._fd = os.timerfd_create(time.CLOCK_BOOTTIME, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._expired)

    def set(self, when: float | None) -> None:
        """Instead of what was set before; None: never. What is past is due."""
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
        """It will not call any more."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
