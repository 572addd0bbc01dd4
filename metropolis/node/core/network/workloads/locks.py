# SPDX-License-Identifier: Apache-2.0
"""One lock a key, made when wanted and forgotten when nobody has it.

Calls for one key wait for each other, calls for different keys do not.
"""

import contextlib
import threading
from collections.abc import Hashable, Iterator

from metropolis.node.core.network.workloads.errors import Unavailable


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
    def hold(self, key: Key) -> Iterator[None]:
        """Hold the key's lock for a `with` block. Raises Unavailable."""
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
            if not slot.lock.acquire(timeout=self._timeout_s):
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
