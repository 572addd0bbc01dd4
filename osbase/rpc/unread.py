# SPDX-License-Identifier: Apache-2.0
"""Calls whose message has not come, and how long that may last.

A client opens a call and sends the message along, usually in one packet. One
that does not may keep a place only for so long, and for less when others want
the place. All times are by the monotonic clock.

A busy machine may keep a message that has come from its reader. So a reader is
given up early only by itself, when it has looked; or after seconds.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

QUICK_S = 2.0  # for the message of a quick method's call
MESSAGE_S = 10.0  # for that of any other
PRESSED_S = 1.0  # when there is no thread for another call
LIMIT = 1000  # calls without a message that have no thread, of a method

_TICK_S = 0.5
_SOON_S = 0.05


class Late(Protocol):
    """A call that can be ended while it waits for its message."""

    def give_up(self, reason: str) -> None:
        """End it; any thread, at any time."""


class Unread:
    """A set of such calls, oldest first. Any thread.

    limit: the oldest is given up when there would be more. patience_s: how
    long a message may take.
    """

    def __init__(self, patience_s: float, limit: float = math.inf) -> None:
        self._patience_s = patience_s
        self._limit = limit
        # Each operation on it is atomic; it is on the way of every call. For
        # those who need no limit: since when each one waits.
        self.since: dict[Late, float] = {}

    def __len__(self) -> int:
        return len(self.since)

    def add(self, call: Late) -> None:
        """A call that waits for its message from now on."""
        self.since[call] = time.monotonic()
        if len(self.since) > self._limit:
            calls = list(self.since)
            for oldest in calls[: max(0, len(calls) - int(self._limit))]:
                self._give_up(oldest, "no message came, and others have come since")

    def discard(self, call: Late) -> None:
        """Its message has come, or it has ended."""
        self.since.pop(call, None)

    def expire(self, at_most_s: float = math.inf) -> None:
        """Give up those that are older than allowed, or than at_most_s."""
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
    """A thread that does what is to be done from time to time: `tick`, twice a
    second, or more often from `hurry` on. Failures are logged.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="rpc-ticker", daemon=True)
        self.runs = False

    def start(self) -> None:
        """Raises RuntimeError when the thread cannot be started."""
        self._thread.start()
        self.runs = True

    def hurry(self) -> None:
        """The server stops."""
        self._wake.set()

    def end(self) -> None:
        """Returns when `tick` is not called any more."""
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
