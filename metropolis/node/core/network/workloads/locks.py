# SPDX-License-Identifier: Apache-2.0
"""One lock a key, made when wanted and forgotten when nobody has it.

Calls for one key wait for each other, calls for different keys do not.
"""

import contextlib
import math
import threading
from collections.abc import Hashable, Iterator

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

    @contextlib.contextmanager
    def hold(self, key: Key, *, left_s: float = math.inf) -> Iterator[None]:
        """Hold the key's lock for a `with` block. Raises Unavailable, and
        GivenUp when left_s, the time that the caller has, was over first; with
        0 it does not wait.
        """
        with self._mutex:
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot()
            if slot.users > self._waiters:
                raise Unavailable(
                    f"{slot.users} other calls for this {self._what} are under way; try again"
                )
            slot.users += 1
        try:
            if not slot.lock.acquire(timeout=max(min(self._timeout_s, left_s), 0.0)):
                if left_s < self._timeout_s:
                    raise GivenUp(f"another call for this {self._what} was under way until the end")
                raise Unavailable(
                    f"another call for this {self._what} has taken over {self._timeout_s:g} s; "
                    "try again"
                )
            try:
                yield
            finally:
                slot.lock.release()
        finally:
            with self._mutex:
                slot.users -= 1
                if not slot.users:
                    del self._slots[key]
