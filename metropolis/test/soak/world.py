# SPDX-License-Identifier: Apache-2.0
"""Namespaces of our own, and a service process that may die."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from metropolis.node.core.network.workloads.spec import workload_pb2_grpc as rpc

_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_OWN_NETNS = "/proc/thread-self/ns/net"
_SERVE = "metropolis.node.core.network.workloads.serve"
_END_S = 30.0


class WorldError(Exception):
    """The world cannot be made; says what is missing."""


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


def enter_namespaces() -> None:
    """New user, mount and network namespaces; root in them. With one thread.

    /run is empty then. Works as root and as any user who may make user
    namespaces. Raises WorldError.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        _mount("", "/", "", _MS_REC | _MS_PRIVATE)
        _mount("tmpfs", "/run", "tmpfs", 0)
    except OSError as error:
        raise WorldError(
            f"user, mount and network namespaces are needed: {error}; check "
            "/proc/sys/kernel/unprivileged_userns_clone and user.max_user_namespaces"
        ) from error


class Netns:
    """A network namespace with a name in the file system, as runtimes make.

    It lives until `close`; nothing else of this process keeps it.
    """

    _numbers: Iterator[int] = itertools.count()

    def __init__(self) -> None:
        self.path = f"/run/netns-{next(self._numbers)}"
        Path(self.path).touch()
        home = os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.unshare(os.CLONE_NEWNET)
            try:
                _mount(_OWN_NETNS, self.path, "", _MS_BIND)
            finally:
                os.setns(home, os.CLONE_NEWNET)
        except BaseException:
            os.unlink(self.path)
            raise
        finally:
            os.close(home)

    def inside[T](self, make: Callable[[], T]) -> T:
        """What `make` returns when called in the namespace, by this thread."""
        home = os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.setns(there, os.CLONE_NEWNET)
            try:
                return make()
            finally:
                os.setns(home, os.CLONE_NEWNET)
        finally:
            os.close(there)
            os.close(home)

    def close(self) -> None:
        """Take the name away, and with it the namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(self.path.encode(), _MNT_DETACH):
            error = ctypes.get_errno()
            raise OSError(error, f"unmount {self.path}: {os.strerror(error)}")
        os.unlink(self.path)


class Host:
    """A namespace that stands for a node, and the service in it.

    `start`, `kill` and `end` are for one thread that lives as long as the
    program: the kernel ends the service with it.
    """

    def __init__(self, name: str, prefixes: tuple[str, ...], log: Path) -> None:
        self.name = name
        self.netns = Netns()
        self._prefixes = prefixes
        self._socket = f"/run/{name}/workload.sock"
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        # Calls wait for a service that is being restarted, and notice soon.
        backoff = ("initial", "min", "max")
        self._channel = grpc.insecure_channel(
            f"unix:{self._socket}",
            options=[(f"grpc.{which}_reconnect_backoff_ms", 50) for which in backoff],
        )
        self.stub = rpc.WorkloadNetworkingStub(self._channel)

    @property
    def pid(self) -> int:
        """The service's process."""
        assert self._process is not None, "a host that was started"
        return self._process.pid

    def start(self) -> None:
        """Start the service; returns when it serves. Raises WorldError."""
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", _SERVE]
        command += ["--socket", self._socket]
        command += [f"--prefix={prefix}" for prefix in self._prefixes]

        def spawn() -> subprocess.Popen[str]:
            with self._log.open("ab") as log:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the driver
                )

        self._process = self.netns.inside(spawn)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            status = self._process.wait(_END_S)
            raise WorldError(f"the service said {line!r}, ended with {status}; see {self._log}")

    def kill(self) -> None:
        """SIGKILL."""
        self._stop(signal.SIGKILL)

    def end(self) -> int:
        """SIGTERM; the exit status."""
        return self._stop(signal.SIGTERM)

    def _stop(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        assert process.stdout is not None
        process.stdout.close()
        try:
            return process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise WorldError(f"{self.name}: the service did not end in {_END_S:g} s") from None

    def close(self) -> None:
        """End the service if it runs, and the namespace."""
        try:
            self._stop(signal.SIGKILL)
        finally:
            self._channel.close()
            self.netns.close()
