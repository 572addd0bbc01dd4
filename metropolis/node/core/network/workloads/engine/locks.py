# SPDX-License-Identifier: Apache-2.0
"""One lock a key, made when wanted and forgotten when nobody has it.

Calls for one key wait for each other, calls for different keys do not.
"""

import math
import threading
from collections.abc import Hashable
from types import TracebackType

from metropolis.node.core.network.workloads.errors import GivenUp, Unavailable


class _Slot:
    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


class KeyedLocks[Key: Hashable]:
    """timeout_s: how long to wait. waiters: how many may wait for one key,
    so that one stuck workload cannot hold every thread of a server.
    """

    def __init__(self, what: str, *, timeout_s: float = 30.0, waiters: int = 4) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._waiters = waiters
        self._slots: dict[Key, _Slot] = {}
        self._mutex = threading.Lock()

    def hold(self, key: Key, *, left_s: float = math.inf) -> Hold[Key]:
        """Hold the key's lock for a `with` block. Entering raises Unavailable,
        and GivenUp when left_s, the time that the caller has, was over first;
        with 0 it does not wait.
        """
        return Hold(self, key, left_s)

    def _enter(self, key: Key, left_s: float) -> None:
        with self._mutex:
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot()
            if slot.users > self._waiters:
                raise Unavailable(
                    f"{slot.users} other calls for this {self._what} are under way; try again"
                )
            slot.users += 1
            if slot.lock.acquire(blocking=False):
                return
        try:
            if slot.lock.acquire(timeout=max(min(self._timeout_s, left_s), 0.0)):
                return
            if left_s < self._timeout_s:
                raise GivenUp(f"another call for this {self._what} was under way until the end")
            raise Unavailable(
                f"another call for this {self._what} has taken over {self._timeout_s:g} s; "
                "try again"
            )
        except BaseException:
            with self._mutex:
                self._leave(key, slot)
            raise

    def _exit(self, key: Key) -> None:
        with self._mutex:
            slot = self._slots[key]
            slot.lock.release()
            self._leave(key, slot)

    def _leave(self, key: Key, slot: _Slot) -> None:
        slot.users -= 1
        if not slot.users:
            del self._slots[key]


class Hold[Key: Hashable]:
    """A key's lock for a `with` block; see KeyedLocks.hold."""

    __slots__ = ("_key", "_left_s", "_locks")

    def __init__(self, locks: KeyedLocks[Key], key: Key, left_s: float) -> None:
        self._locks = locks
        self._key = key
        self._left_s = left_s

    def __enter__(self) -> None:
        self._locks._enter(self._key, self._left_s)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._locks._exit(self._key)
