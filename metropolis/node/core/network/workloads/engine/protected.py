# SPDX-License-Identifier: Apache-2.0
"""The workloads that a collection leaves alone.

Not thread-safe: the ledger's.
"""

from collections import Counter
from collections.abc import Callable, Set
from types import TracebackType


class ProtectedWorkloads:
    """Workloads that calls protect now, and since the collection began."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._since: set[str] | None = None  # None: no collection is under way

    def add(self, workload_id: str) -> None:
        """Protect a workload, until `remove` is called as many times."""
        self._calls[workload_id] += 1
        if self._since is not None:
            self._since.add(workload_id)

    def remove(self, workload_id: str) -> None:
        """End one protection."""
        calls = self._calls[workload_id] - 1
        if calls:
            self._calls[workload_id] = calls
        else:
            del self._calls[workload_id]

    def begin_collection(self) -> None:
        """Record from now on each workload that is protected at any time."""
        self._since = set(self._calls)

    def end_collection(self) -> None:
        """End the recording."""
        self._since = None

    @property
    def since_collection(self) -> Set[str]:
        """Return the workloads that were protected since it began."""
        return self._since or frozenset()


class Protection:
    """Keeps Collect away from a workload while a `with` block runs."""

    __slots__ = ("_begin", "_end", "_workload_id")

    def __init__(
        self, begin: Callable[[str], None], end: Callable[[str], None], workload_id: str
    ) -> None:
        self._begin = begin
        self._end = end
        self._workload_id = workload_id

    def __enter__(self) -> None:
        self._begin(self._workload_id)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(self._workload_id)
