# SPDX-License-Identifier: Apache-2.0
"""For tests: a command on a terminal of its own, as a user starts it."""

import os


def start(command: list[str]) -> tuple[int, int]:
    """Start the command in a new session; return its pid, and the terminal's
    other end: its output, and where keys are typed.
    """
    ours, its = os.openpty()
    pid = os.posix_spawn(
        command[0],
        command,
        os.environ,
        # In a new session, so that it becomes the controlling terminal.
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.ttyname(its), os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        ],
        setsid=True,
    )
    os.close(its)
    return pid, ours
