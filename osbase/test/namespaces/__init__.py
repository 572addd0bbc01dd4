# SPDX-License-Identifier: Apache-2.0
"""Commands, and network namespaces with names, for tests.

sh("ip netns add srv")     fails the test with the command's output
sh(f"{at('srv')} ip link")  the same, in that namespace
with inside("srv"): ...    sockets made in the block are of that namespace

For tests in fresh namespaces or machines (py_pytest(netns = True), vm_pytest).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final

from osbase.netlink import netns

LIMIT_S: Final = 60.0
"""Seconds for an operation that takes a moment, on a busy machine."""


def sh(command: str, stdin: str = "") -> str:
    """Run a command without a shell; return its output."""
    done = subprocess.run(
        _argv(command), input=stdin, check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _argv(command: str) -> list[str]:
    """Return the words of a command. nsenter gets its program by path: that of
    busybox prefers its own ip to the installed one.
    """
    words = command.split()
    if words[0] == "nsenter":
        program = next(i for i, word in enumerate(words) if i and not word.startswith("-"))
        words[program] = shutil.which(words[program]) or words[program]
    return words


def at(name: str) -> str:
    """Return the prefix of a command that is to run in a namespace.

    Not `ip -n` or `ip netns exec`: they mount /sys, which not every sandbox
    allows.
    """
    return f"nsenter --net=/run/netns/{name}"


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the block in a namespace; sockets opened in it stay in it."""
    home, there = netns.open_current(), netns.open_path(f"/run/netns/{name}")
    try:
        with netns.Inside(there, home):
            yield
    finally:
        os.close(home)
        os.close(there)
