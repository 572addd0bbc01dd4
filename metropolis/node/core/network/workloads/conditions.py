# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the node's network, and what is worth knowing of it.

Whoever finds a problem sets it under a key of his own, and clears it when it is
over. While there is any, Status is unavailable and says all of them, and Check
has each as a finding. Notes say how things are, in Status; they are no problem.
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
        """Say that there is a problem; returns whether that is news. One that
        is called says how it is at the time.
        """
        with self._lock:
            news = self._problems.get(key) != problem
            self._problems[key] = problem
            return news

    def clear(self, key: str) -> bool:
        """Say that it is over; returns whether there was one."""
        with self._lock:
            return self._problems.pop(key, None) is not None

    def note(self, key: str, text: str) -> None:
        """Say how something is; "": nothing is to be said."""
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
