# SPDX-License-Identifier: Apache-2.0
"""Calls, timed: one after the other, or so many at once."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

_NOTICE_S = 0.5

type Call = Callable[[], object]


def _nothing() -> None:
    pass


def timed(
    calls: Sequence[Call], at_once: int, begin: Callable[[], None] = _nothing
) -> tuple[list[int], int]:
    """How long each call took, and all of them, in nanoseconds.

    Several at once have a thread each, started before the clock; `begin` is
    called by each of them first. With one at a time the caller makes the calls
    itself. Raises what a call raised, when all have ended.
    """
    if at_once == 1:
        begin()
        return _one_by_one(calls)
    each = [0] * len(calls)
    waiting: Iterator[int] = iter(range(len(calls)))
    mutex = threading.Lock()
    errors: list[BaseException] = []
    gate = threading.Barrier(at_once + 1)

    def take() -> int | None:
        with mutex:
            return next(waiting, None)

    def work() -> None:
        try:
            begin()
        except BaseException as error:
            errors.append(error)
            gate.abort()
        try:
            gate.wait()
        except threading.BrokenBarrierError:
            return
        for index in iter(take, None):
            start = time.perf_counter_ns()
            try:
                calls[index]()
            except BaseException as error:
                errors.append(error)
                return
            each[index] = time.perf_counter_ns() - start

    threads = [threading.Thread(target=work, daemon=True) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    start = 0
    try:
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait()
        start = time.perf_counter_ns()
        _join(threads)
    except BaseException:
        # Interrupted: no more calls, and those under way are waited for.
        gate.abort()
        with mutex:
            waiting = iter(())
        _join(threads)
        raise
    wall = time.perf_counter_ns() - start
    if errors:
        raise errors[0]
    return each, wall


def _join(threads: Sequence[threading.Thread]) -> None:
    """In short waits: a signal that comes right before a wait is not handled
    until that is over.
    """
    for thread in threads:
        while thread.is_alive():
            thread.join(_NOTICE_S)


def _one_by_one(calls: Sequence[Call]) -> tuple[list[int], int]:
    each = []
    begun = time.perf_counter_ns()
    for call in calls:
        start = time.perf_counter_ns()
        call()
        each.append(time.perf_counter_ns() - start)
    return each, time.perf_counter_ns() - begun
