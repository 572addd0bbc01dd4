# SPDX-License-Identifier: Apache-2.0
"""Problems of the node's network, and notes about it.

A part that finds a problem sets it under its own key, and clears it when it is
over. While there is any, Status is unavailable and lists all, and Check has
each as a finding. Notes inform, in Status, and are no problem.
"""

import threading
from collections.abc import Callable

type Problem = str | Callable[[], str]


class Conditions:
    """Problems and notes by key; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._problems: dict[str, Problem] = {}
        self._notes: dict[str, str] = {}

    def set(self, key: str, problem: Problem) -> bool:
        """Set a problem; return whether it is new. If it is a function, it is
        called for the present text.
        """
        with self._lock:
            news = self._problems.get(key) != problem
            self._problems[key] = problem
            return news

    def clear(self, key: str) -> bool:
        """Clear a problem; return whether there was one."""
        with self._lock:
            return self._problems.pop(key, None) is not None

    def note(self, key: str, text: str) -> None:
        """Set a note; "" removes it."""
        with self._lock:
            if text:
                self._notes[key] = text
            else:
                self._notes.pop(key, None)

    def problems(self) -> dict[str, str]:
        """Return a copy: key and problem, oldest first."""
        with self._lock:
            problems = dict(self._problems)
        return {key: one if isinstance(one, str) else one() for key, one in problems.items()}

    def notes(self) -> dict[str, str]:
        """Return a copy: key and text."""
        with self._lock:
            return dict(self._notes)
