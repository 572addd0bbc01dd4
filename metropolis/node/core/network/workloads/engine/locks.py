# SPDX-License-Identifier: Apache-2.0
"""One lock per key, made on demand and forgotten when nobody uses it.

Calls for one key wait for each other, calls for different keys do not.

A caller may stop waiting at any time. `time_remaining`, where it is a
parameter, returns the seconds for which the caller still waits, 0 when it has
given up. It is called before the work begins and not after: work that has begun
is finished, and a retry finds its result.
"""

import math
import threading
from collections.abc import Callable, Hashable
from types import TracebackType

from metropolis.node.core.network.workloads.errors import GivenUp, Unavailable

type TimeRemaining = Callable[[], float]


def forever() -> float:
    """Return the time remaining of a caller that never gives up."""
    return math.inf


def check_still_wanted(time_remaining: TimeRemaining) -> None:
    """Raise GivenUp when the caller does not wait any more."""
    if time_remaining() <= 0:
        raise GivenUp("the caller does not wait any more; nothing was begun")


class _Slot:
    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


class KeyedLocks[Key: Hashable]:
    """what: the kind of key, for messages. timeout_s: the longest wait.
    waiters: how many may wait for one key, so that one stuck workload cannot
    occupy every thread of a server.
    """

    def __init__(self, what: str, *, timeout_s: float = 30.0, waiters: int = 4) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._waiters = waiters
        self._slots: dict[Key, _Slot] = {}
        self._mutex = threading.Lock()

    def hold(self, key: Key, time_remaining: TimeRemaining = forever) -> Lock[Key]:
        """Return the key's lock, for a `with` block.

        Entering raises Unavailable when the wait is too long or too many wait,
        and GivenUp when the caller's time is over.
        """
        return Lock(self, key, time_remaining)

    def try_hold(self, key: Key) -> Lock[Key] | None:
        """Return the key's lock, held until `release`; None when it is busy."""
        with self._mutex:
            if key in self._slots:
                return None
            slot = self._slots[key] = _Slot()
            slot.users = 1
            slot.lock.acquire()
        return Lock(self, key, forever)

    def _enter(self, key: Key, time_remaining: TimeRemaining) -> None:
        with self._mutex:
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot()
            if slot.users > self._waiters:
                raise Unavailable(
                    f"{slot.users} other calls for this {self._what} are under way; try again"
                )
            slot.users += 1
            held = slot.lock.acquire(blocking=False)
        try:
            if not held:
                self._wait(slot, time_remaining())
                held = True
            check_still_wanted(time_remaining)
        except BaseException:
            with self._mutex:
                if held:
                    slot.lock.release()
                self._leave(key, slot)
            raise

    def _wait(self, slot: _Slot, seconds: float) -> None:
        if slot.lock.acquire(timeout=max(min(self._timeout_s, seconds), 0.0)):
            return
        if seconds < self._timeout_s:
            raise GivenUp(f"another call for this {self._what} was under way until the end")
        raise Unavailable(
            f"another call for this {self._what} has taken over {self._timeout_s:g} s; try again"
        )

    def _exit(self, key: Key) -> None:
        with self._mutex:
            slot = self._slots[key]
            slot.lock.release()
            self._leave(key, slot)

    def _leave(self, key: Key, slot: _Slot) -> None:
        slot.users -= 1
        if not slot.users:
            del self._slots[key]


class Lock[Key: Hashable]:
    """A key's lock; see KeyedLocks. A class and no generator, since every call
    uses it.
    """

    __slots__ = ("_key", "_locks", "_time_remaining")

    def __init__(self, locks: KeyedLocks[Key], key: Key, time_remaining: TimeRemaining) -> None:
        self._locks = locks
        self._key = key
        self._time_remaining = time_remaining

    def __enter__(self) -> None:
        self._locks._enter(self._key, self._time_remaining)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._locks._exit(self._key)

    def release(self) -> None:
        """Release a lock that `try_hold` returned."""
        self._locks._exit(self._key)


class Locks:
    """The locks of the service's calls, in the order in which they are taken:

        collection  one Collect at a time; held across kernel work
        workload    one call per workload at a time; held the same way. A
                    Collect holds many, and waits for none while it holds one
        namespace   one attach per network namespace at a time; the same
        mutex       the ledger's own; never held across kernel work

    So Status and List, which need only the mutex, always answer at once, and an
    attachment that hangs in the kernel stops its own workload and no other.
    """

    def __init__(self) -> None:
        self.collection = KeyedLocks[str]("garbage collection", waiters=1)
        self.workload = KeyedLocks[str]("workload")
        self.namespace = KeyedLocks[int]("network namespace", waiters=64)
