# SPDX-License-Identifier: Apache-2.0
"""Commands, and network namespaces with names, for tests.

sh("ip netns add srv")     fails the test with what the command said
sh(f"{at('srv')} ip link")  the same, in that namespace
with inside("srv"): ...    sockets made in the block are of that namespace

For tests that have a world of their own (py_pytest(netns = True), vm_pytest).
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
"""For what takes a moment, on a machine that is busy with much else."""


def sh(command: str, stdin: str = "") -> str:
    """Run a command without a shell; returns its output."""
    done = subprocess.run(
        _argv(command), input=stdin, check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _argv(command: str) -> list[str]:
    """Its words; what nsenter is to run by its path: busybox's prefers its own
    ip to the one that is installed.
    """
    words = command.split()
    if words[0] == "nsenter":
        program = next(i for i, word in enumerate(words) if i and not word.startswith("-"))
        words[program] = shutil.which(words[program]) or words[program]
    return words


def at(name: str) -> str:
    """Return what comes before a command that is to run in a namespace.

    Not `ip -n` or `ip netns exec`: they mount /sys, which not every sandbox
    lets them.
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
