# SPDX-License-Identifier: Apache-2.0
"""The states of a supervised runnable and the only ways between them."""

from __future__ import annotations

import enum
from typing import Final


class State(enum.Enum):
    """The state of a runnable."""

    NEW = "new"
    """Started, or about to be; may start children."""
    HEALTHY = "healthy"
    """Does its work, and has started all its children."""
    DONE = "done"
    """Returned, on purpose; its children live on."""
    DEAD = "dead"
    """Raised, or returned without signal_done; will be restarted."""
    CANCELED = "canceled"
    """Stopped: a parent or group member died, or the tree stops."""


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.NEW: frozenset({State.HEALTHY, State.DONE, State.DEAD, State.CANCELED}),
    State.HEALTHY: frozenset({State.DONE, State.DEAD, State.CANCELED}),
    State.DONE: frozenset({State.CANCELED, State.NEW}),
    State.DEAD: frozenset({State.CANCELED, State.NEW}),
    State.CANCELED: frozenset({State.NEW}),
}


class TransitionError(RuntimeError):
    """A runnable broke its contract, such as being healthy twice."""


def check(name: str, old: State, new: State) -> None:
    """Raise TransitionError when `new` cannot follow `old`."""
    if new not in TRANSITIONS[old]:
        raise TransitionError(f"{name} cannot become {new.value}: it is {old.value}")
