# SPDX-License-Identifier: Apache-2.0
"""The clock of leases, and its timers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from osbase.net.dhcp4 import clock

LIMIT_S = 60.0


def test_suspension_is_counted() -> None:
    """The clock is the one that continues."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= clock.now() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def _fdinfo(timer: clock.Timer) -> str:
    return Path(f"/proc/self/fdinfo/{timer._fd}").read_text()


async def test_timers_go_by_that_clock() -> None:
    """The kernel says so; it expires them when the machine wakes up."""
    timer = clock.Timer(lambda: None)
    try:
        assert f"clockid: {time.CLOCK_BOOTTIME}\n" in _fdinfo(timer)
    finally:
        timer.close()


async def test_a_timer_calls_in_time_and_once() -> None:
    """A past time expires at once; none expires early."""
    due = asyncio.Event()
    timer = clock.Timer(due.set)
    try:
        for when in (0.0, clock.now() - 5, clock.now(), clock.now() + 0.05):
            timer.set(when)
            async with asyncio.timeout(LIMIT_S):
                await due.wait()
            assert clock.now() >= when
            due.clear()
            await asyncio.sleep(0)
            assert not due.is_set()
    finally:
        timer.close()


async def test_a_timer_that_is_set_again_or_never() -> None:
    """Only the last time counts."""
    due, other = asyncio.Event(), asyncio.Event()
    timer, later = clock.Timer(due.set), clock.Timer(other.set)
    try:
        timer.set(clock.now() + 0.02)
        timer.set(None)
        later.set(clock.now() + 0.1)
        async with asyncio.timeout(LIMIT_S):
            await other.wait()
        assert not due.is_set()
    finally:
        timer.close()
        later.close()
