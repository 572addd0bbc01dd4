# SPDX-License-Identifier: Apache-2.0
"""What a process asks of the kernel, as strace sees it."""

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from osbase.netlink.message import HEADER


def traced(pid: int, log: Path, act: Callable[[], None], *options: str) -> str:
    """What strace says of all threads of the process while `act` runs."""
    command = ["strace", "-f", "-yy", f"--attach={pid}"]
    with subprocess.Popen(
        [*command, f"--output={log}", *options], stderr=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stderr is not None
        for line in tracer.stderr:
            if "attached" in line:
                break
        else:
            raise AssertionError("strace did not attach")
        try:
            act()
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.stderr.read()
    return log.read_text()


def calls(log: str) -> Iterator[tuple[str, str]]:
    """Name and text of each system call that began while it was traced."""
    for line in log.splitlines():
        _, _, text = line.partition(" ")
        text = text.strip()
        # Those are the end of a call that was listed, and signals.
        if not text.startswith(("<...", "+++", "---", "strace:")):
            yield re.split(r"\W", text, maxsplit=1)[0], text


def split(data: bytes) -> list[bytes]:
    """The messages of a netlink datagram."""
    messages: list[bytes] = []
    offset = 0
    while offset < len(data):
        length = HEADER.unpack_from(data, offset)[0]
        end = offset + (length + 3 & ~3)
        messages.append(data[offset:end])
        offset = end
    return messages
