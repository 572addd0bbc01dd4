# SPDX-License-Identifier: Apache-2.0
"""A running machine: QEMU as a child process, controlled over QMP.

    async with Vm(machine, accel, directory) as vm:
        await vm.console_match(rb"login:")
        ...

Life cycle (see State): NEW -> RUNNING -> STOPPED, never back. Leaving the
context manager always ends in STOPPED with the process reaped. When the
process that runs this dies, however it dies, QEMU exits too
(-run-with exit-with-parent, prctl(2) PR_SET_PDEATHSIG).

The console is read through a pipe, not by polling the log file: QEMU writes a
copy of all output there and blocks without a reader, so the event loop that
started the machine has to keep running.
"""

import asyncio
import contextlib
import os
import re
import shutil
import socket
from collections.abc import Coroutine, Mapping
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from osbase.test.qemu.config import Accel, Layout, Machine, qemu_args
from qemu.qmp import ConnectError, EventListener, QMPClient, QMPError, Runstate

QEMU = "qemu-system-x86_64"

# Bazel sets the first in any test; //build/python:defs.bzl sets the second for
# tests that boot machines. That mark keeps the quick subset of tests quick.
_TARGET = "TEST_TARGET"
_MAY_BOOT = "TEST_BOOTS_VMS"

# Seconds. QEMU answers QMP at once, unless the host is very busy.
_QMP_TIMEOUT_S = 60.0
_QUIT_TIMEOUT_S = 10.0

# Console bytes kept for console_match() and for error messages.
_CONSOLE_KEEP = 256 * 1024
_TAIL_LINES = 40


class State(Enum):
    """Life cycle of a Vm."""

    NEW = "new"
    RUNNING = "running"
    STOPPED = "stopped"


_TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.NEW: frozenset({State.RUNNING, State.STOPPED}),
    State.RUNNING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset(),
}


class VmError(Exception):
    """A machine did not start, or ended unexpectedly.

    The message ends with the last lines of the console and of QEMU's log.
    """


class Vm:
    """One machine. `directory` is for its sockets and logs, and short (see
    UNIX_PATH_MAX); it is created when missing and left behind for the logs.
    """

    def __init__(self, machine: Machine, accel: Accel, directory: Path) -> None:
        self.machine = machine
        self.accel = accel
        self.layout = Layout(directory)
        self._state = State.NEW
        self._process: asyncio.subprocess.Process | None = None
        self._qmp = QMPClient("vm")
        self._console = bytearray()
        self._console_news = asyncio.Condition()
        self._console_ended = False
        self._tasks: list[asyncio.Task[None]] = []
        self._shutdowns = EventListener("SHUTDOWN")
        self._qmp.register_listener(self._shutdowns)
        self._shutdown_reason = ""
        self._exited = asyncio.Event()
        self._stop_lock = asyncio.Lock()

    @property
    def state(self) -> State:
        """Return the state in the life cycle."""
        return self._state

    @property
    def pid(self) -> int:
        """Return QEMU's process id. Needs RUNNING."""
        return self._running().pid

    def _to(self, state: State) -> None:
        if state not in _TRANSITIONS[self._state]:
            raise VmError(f"vm: {self._state.value} -> {state.value} is not possible")
        self._state = state

    def _running(self) -> asyncio.subprocess.Process:
        if self._state is not State.RUNNING or self._process is None:
            raise VmError(f"vm: is {self._state.value}, not running")
        return self._process

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """NEW -> RUNNING: the guest executes, QMP is connected, every socket
        of the layout listens. On any error: STOPPED, nothing is left running.
        """
        if self._state is not State.NEW:
            raise VmError(f"vm: start: is {self._state.value}, not new")
        if _TARGET in os.environ and _MAY_BOOT not in os.environ:
            self._to(State.STOPPED)
            raise VmError(f"vm: {os.environ[_TARGET]} needs vm = True in its BUILD file")
        binary = shutil.which(QEMU)
        if binary is None:
            raise VmError(f"vm: {QEMU} not found in PATH; run inside the devroot (./bazelw)")
        self.layout.dir.mkdir(parents=True, exist_ok=True)
        for name, contents in self.machine.fw_cfg.items():
            self.layout.fw_cfg(name).write_bytes(contents)

        ours, theirs = socket.socketpair()
        console_read, console_write = os.pipe()
        try:
            args = qemu_args(self.machine, self.accel, self.layout, theirs.fileno(), console_write)
            inherited = [theirs.fileno(), console_write, *(tap.fd for tap in self.machine.nets)]
            with self.layout.qemu_log.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    binary,
                    *args,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=inherited,
                    # Ctrl-C on the terminal is for us: we end the machine after
                    # its logs are copied, and it ends with us in any case.
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            os.close(console_read)
            self._to(State.STOPPED)
            raise
        finally:
            theirs.close()
            os.close(console_write)

        self._to(State.RUNNING)
        self._spawn(self._follow_console(console_read))
        self._spawn(self._follow_process(self._process))
        try:
            async with asyncio.timeout(_QMP_TIMEOUT_S):
                await self._qmp.connect(ours)
        except BaseException as error:
            ours.close()
            await self.stop()
            if isinstance(error, (ConnectError, TimeoutError)):
                raise self.failure(f"start: no QMP greeting ({error!r})") from error
            raise

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(coroutine))

    async def _follow_process(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        self._exited.set()

    async def _follow_console(self, fd: int) -> None:
        """Copy the console pipe to the log file and to `_console`."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
        )
        try:
            with self.layout.console_log.open("wb", buffering=0) as log:
                while data := await reader.read(64 * 1024):
                    log.write(data)
                    async with self._console_news:
                        self._console += data
                        del self._console[:-_CONSOLE_KEEP]
                        self._console_news.notify_all()
        finally:
            transport.close()
            async with self._console_news:
                self._console_ended = True
                self._console_news.notify_all()

    async def console_match(self, pattern: bytes, timeout_s: float = 120.0) -> re.Match[bytes]:
        """Wait until the console so far contains `pattern` (a bytes regular
        expression, searched in the last 256 KiB). VmError when the machine
        ends, or `timeout_s` passes, without it.
        """
        regex = re.compile(pattern)
        found: re.Match[bytes] | None = None

        def look() -> bool:
            nonlocal found
            found = regex.search(bytes(self._console))
            return found is not None or self._console_ended

        try:
            async with asyncio.timeout(timeout_s), self._console_news:
                await self._console_news.wait_for(look)
        except TimeoutError:
            raise self.failure(f"no {pattern!r} on the console in {timeout_s} s") from None
        if found is None:
            raise self.failure(f"ended without {pattern!r} on the console")
        return found

    async def qmp(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Run a QMP command and return its result. Needs RUNNING."""
        self._running()
        try:
            async with asyncio.timeout(_QMP_TIMEOUT_S):
                return await self._qmp.execute(command, dict(arguments or {}))
        except (QMPError, TimeoutError) as error:
            raise self.failure(f"QMP {command}: {error!r}") from error

    async def wait(self) -> str:
        """Wait until the machine ends by itself. Return QEMU's reason, e.g.
        "guest-shutdown", "guest-reset" (also a panic: panic=-1), "guest-panic",
        or "" when QEMU died without one.
        """
        await self._exited.wait()
        # A cancelled wait does not interrupt the task.
        await asyncio.shield(self.stop())
        return self._shutdown_reason

    async def stopped_by_error(self) -> None:
        """Return when an error of the hypervisor ("KVM internal error") has
        stopped the guest; never for a guest that runs, or has ended.
        """
        with self._qmp.listener("STOP") as listener:
            while await self.run_state() != "internal-error":
                await listener.get()

    async def run_state(self) -> str:
        """Return QEMU's run state, e.g. "running", "internal-error"."""
        status = await self.qmp("query-status")
        return str(status.get("status", "")) if isinstance(status, dict) else ""

    async def where_it_is(self) -> str:
        """Return what each CPU of a silent guest executes, a line each; "" when
        QEMU does not report it.
        """
        try:
            registers = await self.qmp(
                "human-monitor-command", {"command-line": "info registers -a"}
            )
        except VmError:
            return ""
        found = re.findall(r"CPU#\d+|[RE]IP=\w+ [RE]FL=.*", str(registers))
        return " ".join(found).replace(" CPU#", "\nCPU#")

    async def stop(self, powerdown_s: float = 0.0) -> None:
        """RUNNING -> STOPPED, from any state, any number of times.

        powerdown_s: how long the guest may take to answer a press of its
        power button; 0 does not press it. Then QMP quit, then SIGKILL to the
        one process started here.
        """
        async with self._stop_lock:
            if self._state is State.NEW:
                self._to(State.STOPPED)
            if self._state is State.STOPPED:
                return
            process = self._running()
            if powerdown_s > 0:
                await self._end_by("system_powerdown", powerdown_s)
            await self._end_by("quit", _QUIT_TIMEOUT_S)
            if not self._exited.is_set():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await self._exited.wait()
            self._to(State.STOPPED)
            with contextlib.suppress(QMPError, EOFError, OSError, TimeoutError):
                # Read QEMU's messages to the end, then its reason.
                async with asyncio.timeout(_QUIT_TIMEOUT_S):
                    while self._qmp.runstate is Runstate.RUNNING:
                        await self._qmp.runstate_changed()
                await self._qmp.disconnect()
            for event in self._shutdowns.clear():
                data = event.get("data")
                if isinstance(data, dict):
                    self._shutdown_reason = str(data.get("reason", ""))
            # The console pipe ends by itself once QEMU is gone.
            done, pending = await asyncio.wait(self._tasks, timeout=_QUIT_TIMEOUT_S)
            for task in pending:
                task.cancel()
            await asyncio.gather(*done, *pending, return_exceptions=True)

    async def _end_by(self, command: str, wait_s: float) -> None:
        if self._exited.is_set():
            return
        with contextlib.suppress(TimeoutError, QMPError, OSError):
            async with asyncio.timeout(wait_s):
                await self._qmp.execute(command)
                await self._exited.wait()

    def console_tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the console's last lines, without control characters."""
        text = self._console.decode("utf-8", "replace")
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]", "", text)
        return "\n".join(text.splitlines()[-lines:])

    def failure(self, what: str) -> VmError:
        """Return an error about this machine, with the end of its logs."""
        try:
            log = self.layout.qemu_log.read_text(errors="replace").strip()
        except OSError:
            log = ""
        parts = [f"vm {self.layout.dir}: {what}"]
        if log:
            parts.append(f"--- {self.layout.qemu_log}\n{log[-4000:]}")
        if self._console:
            parts.append(f"--- {self.layout.console_log}, the end\n{self.console_tail()}")
        return VmError("\n".join(parts))
