# SPDX-License-Identifier: Apache-2.0
"""Timed calls, sequential or concurrent."""

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
    """Return the time of each call, and of all, in nanoseconds.

    Concurrent calls have `at_once` threads, started before the clock; each
    first calls `begin`. A single one is the calling thread. Raises a call's
    exception, when all have ended.
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
        # Interrupted: make no more calls, and wait for those under way.
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
    """Join in short waits: a signal right before a wait is only handled after
    it.
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
