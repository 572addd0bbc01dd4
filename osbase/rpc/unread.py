# SPDX-License-Identifier: Apache-2.0
"""Calls whose message has not arrived, and how long they may wait.

A client usually opens a call and sends the message in one packet. A call
without a message may keep its place only for a limited time, and for less when
other calls wait. All times are by the monotonic clock.

On a busy machine an arrived message may reach its reader late. So only the
reader itself, after a look at its queue, gives up early; others wait seconds.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

QUICK_S = 2.0  # for the message of a quick method's call
MESSAGE_S = 10.0  # for the message of any other
PRESSED_S = 1.0  # when there is no thread for another call
LIMIT = 1000  # calls of a method without a message and without a thread

_TICK_S = 0.5
_SOON_S = 0.05


class Late(Protocol):
    """A call that can be ended while it waits for its message."""

    def give_up(self, reason: str) -> None:
        """End the call. Any thread may call this, at any time."""


class Unread:
    """Calls that wait for their message, oldest first. Thread-safe.

    limit: beyond it the oldest is given up. patience_s: how long a message may
    take.
    """

    def __init__(self, patience_s: float, limit: float = math.inf) -> None:
        self._patience_s = patience_s
        self._limit = limit
        # Every call passes through it: each operation on it is atomic. For
        # users without a limit: since when each call waits.
        self.since: dict[Late, float] = {}

    def __len__(self) -> int:
        return len(self.since)

    def add(self, call: Late) -> None:
        """Add a call that waits for its message from now on."""
        self.since[call] = time.monotonic()
        if len(self.since) > self._limit:
            calls = list(self.since)
            for oldest in calls[: max(0, len(calls) - int(self._limit))]:
                self._give_up(oldest, "no message came, and others have come since")

    def discard(self, call: Late) -> None:
        """Remove a call whose message has arrived, or that has ended."""
        self.since.pop(call, None)

    def expire(self, at_most_s: float = math.inf) -> None:
        """Give up calls that are older than allowed, or than at_most_s."""
        patience_s = min(self._patience_s, at_most_s)
        end = time.monotonic() - patience_s
        for call, since in list(self.since.items()):
            if since > end:
                return
            self._give_up(call, f"no message came within {patience_s:g} s")

    def _give_up(self, call: Late, reason: str) -> None:
        if self.since.pop(call, None) is not None:
            call.give_up(reason)


class Ticker:
    """A thread that calls `tick` twice a second, and more often after `hurry`.
    Failures are logged.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="rpc-ticker", daemon=True)
        self.runs = False

    def start(self) -> None:
        """Start. Raises RuntimeError when the thread cannot be started."""
        self._thread.start()
        self.runs = True

    def hurry(self) -> None:
        """Tick more often from now on, since the server stops."""
        self._wake.set()

    def end(self) -> None:
        """End the thread; return when it calls `tick` no more."""
        self._ended = True
        self._wake.set()
        if self.runs:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended:
            if self._wake.wait(_TICK_S):
                time.sleep(_SOON_S)
            try:
                self._tick()
            except Exception:
                log.exception("the server's upkeep failed")
