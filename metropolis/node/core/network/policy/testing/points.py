# SPDX-License-Identifier: Apache-2.0
"""A SIGKILL at a chosen point of what a manager does to its files and the
kernel, in a process of its own.

A point is before or after a system call that changes something: a file that is
made, renamed (it is written then) or removed, a directory that is made, and a
send by netlink, unless it only lists.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from osbase.netlink.message import HEADER, NLM_F_DUMP

_CALLS = ("open", "rename", "unlink", "mkdir")


def killed_at(point: int, act: Callable[[Callable[[], None]], object]) -> bool:
    """Run `act` in a process that is killed at a point, counted from 1 since
    `act` called its argument. Return whether it got there.
    """
    if (pid := os.fork()) == 0:
        try:
            steps = _Steps(point)
            _count(steps.step)
            act(steps.arm)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


class _Steps:
    """Counts, once it is armed, and kills."""

    def __init__(self, point: int) -> None:
        self._left = point
        self._is_armed = False

    def arm(self) -> None:
        """Count from now on."""
        self._is_armed = True

    def step(self) -> None:
        """Get to a point."""
        self._left -= self._is_armed
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def _count(step: Callable[[], None]) -> None:
    """Have it called at each point. Sockets that are open already do not."""

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            step()
            result = real(*arguments, **options)
            step()
            return result

        return wrapped

    class Counted(socket.socket):
        """Its sends are steps."""

        def send(self, data: bytes, flags: int = 0, /) -> int:  # type: ignore[override]
            _, _, asked, _, _ = HEADER.unpack_from(data)
            if asked & NLM_F_DUMP == NLM_F_DUMP:
                return super().send(data, flags)
            step()
            sent = super().send(data, flags)
            step()
            return sent

    for name in _CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    socket.socket = Counted  # type: ignore[misc]
