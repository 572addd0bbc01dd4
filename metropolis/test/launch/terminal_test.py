# SPDX-License-Identifier: Apache-2.0
"""A terminal from the user to a command: a local agent, a fake ctr."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator, Sequence
from fcntl import ioctl
from pathlib import Path

import pytest_asyncio

from metropolis.test.launch import control, on_terminal, terminal
from osbase.test.agent import guest
from osbase.test.agent.client import Agent

# ctr --namespace k8s.io task exec [--tty] --exec-id ID CONTAINER COMMAND...
CTR = """\
#!/bin/sh
echo "$*" >>$(dirname $0)/calls
[ $4 = exec ] || exit 0
while [ $1 != --exec-id ]; do shift; done
shift 3
exec "$@"
"""
LIMIT_S = 60.0


@pytest_asyncio.fixture
async def launch(tmp_path: Path) -> AsyncIterator[Path]:
    """Return the directory of a launch whose node is this host."""
    ctr = tmp_path / "ctr"
    ctr.write_text(CTR)
    ctr.chmod(0o755)
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", guest.__file__, "--fd", str(theirs.fileno()),
        pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    theirs.close()
    async with Agent(ours) as agent:

        async def take(
            request: control.Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await terminal.serve(agent, request, reader, writer)

        async with control.control(tmp_path / control.SOCKET, {}, (OSError,), take):
            yield tmp_path
    await process.wait()


class User:
    """The command's process, on a terminal of its own if asked for."""

    def __init__(self, launch: Path, command: Sequence[str], *, on_tty: bool) -> None:
        arguments = [str(launch), "node", "c1", on_tty, list(command)]
        script = (
            f"import sys, pathlib; sys.path[:] = {sys.path!r}\n"
            "from metropolis.test.launch import terminal\n"
            "directory, node, container, on_tty, command = " + repr(arguments) + "\n"
            "sys.exit(terminal.run(pathlib.Path(directory), node, container, command, on_tty))\n"
        )
        self.pid, self.fd = on_terminal.start([sys.executable, "-c", script])
        self.resize(40, 120)
        self.output = ""

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def until(self, pattern: str) -> str:
        """Read until the output matches; return the match."""
        end = time.monotonic() + LIMIT_S
        while not (found := re.search(pattern, self.output)):
            assert time.monotonic() < end, self.output
            self.output += os.read(self.fd, 4096).decode()
        self.output = self.output[found.end() :]
        return found[0]

    def wait(self) -> int:
        with contextlib.suppress(OSError):
            while data := os.read(self.fd, 4096):
                self.output += data.decode()
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


async def test_a_shell(launch: Path) -> None:
    """Its window, Ctrl-C, the end by a status."""

    def use() -> int:
        user = User(launch, ["sh"], on_tty=True)
        user.type("echo re''ady\n")
        user.until("ready")
        user.resize(50, 132)
        user.type("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo re''sized\n")
        user.until("resized")
        # A process that has seen Ctrl-C coming.
        user.type('sh -c \'trap "exit 5" INT; echo sl""eeps; while :; do sleep 0.1; done\'\n')
        user.until("sleeps")
        user.type("\x03")
        user.type("echo goes on: $?\n")
        user.until("goes on: 5")
        user.type("exit 7\n")
        return user.wait()

    assert await asyncio.to_thread(use) == 7
    calls = (launch / "calls").read_text()
    assert re.fullmatch(
        r"--namespace k8s\.io task exec --tty --exec-id terminal-\w+ c1 sh\n", calls
    )


async def test_the_user_goes(launch: Path) -> None:
    """The command in the pod is killed, though its terminal is not."""

    def use() -> None:
        user = User(launch, ["sh"], on_tty=True)
        user.type("echo re''ady\n")
        user.until("ready")
        os.kill(user.pid, 9)
        user.wait()
        end = time.monotonic() + LIMIT_S
        while "task kill --exec-id" not in (launch / "calls").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)

    await asyncio.to_thread(use)


async def piped(launch: Path, data: bytes, *command: str) -> tuple[int | None, bytes, bytes]:
    """Run a command without a terminal; return its status and outputs."""
    script = (
        f"import sys, pathlib; sys.path[:] = {sys.path!r}\n"
        "from metropolis.test.launch import terminal\n"
        f"sys.exit(terminal.run(pathlib.Path({str(launch)!r}), 'n', 'c1', {command!r}, False))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=-1, stdout=-1, stderr=-1
    )
    async with asyncio.timeout(LIMIT_S):
        out, said = await process.communicate(data)
    return process.returncode, out, said


async def test_without_a_terminal(launch: Path) -> None:
    data = os.urandom(300_000)
    assert await piped(launch, data, "cat") == (0, data, b"")
    assert await piped(launch, b"", "sh", "-c", "echo out; echo err >&2; exit 3") == (
        3, b"out\n", b"err\n",
    )  # fmt: skip
    assert (await piped(launch, data, "true"))[0] == 0, "it reads nothing"
