# SPDX-License-Identifier: Apache-2.0
"""The guest's work for the host: a class for each kind of request.

Requests (the JSON of an OPEN frame) and their RESULT:

    {"op": "exec", "argv": [...], "env": {...}|null}       {"exit": n}
        channel 0 is stdin and stdout, 1 is stderr; n < 0: killed by signal -n.
        The result comes after the process ended and its output was closed.
    {"op": "read", "path": p}                              {}
    {"op": "write", "path": p, "mode": m}                  {}
        A regular file appears complete or not at all.
    {"op": "dial", "path": p}                              {}
        Bytes to and from a unix stream socket, with half-close.

A request that fails has {"error": text, "errno": n} instead.
"""

import errno
import json
import os
import select
import signal
import socket
import stat

TYPE_CHECKING = False  # the typing module takes long to import in a guest
if TYPE_CHECKING:
    from osbase.test.agent.guest import Agent

_CHUNK = 64 * 1024
# Bytes queued for the host on one channel before its source has to wait.
_QUEUE = 128 * 1024


class RequestError(Exception):
    """The request is invalid."""


def failure(what: str, error: Exception) -> bytes:
    """Return the RESULT of a request that failed."""
    code = error.errno if isinstance(error, OSError) and error.errno else 0
    text = f"{what}: {errno.errorcode.get(code, code)}: {error}" if code else f"{what}: {error}"
    return json.dumps({"error": text, "errno": code}).encode()


class Request:
    """One open stream. The base class ignores everything."""

    def __init__(self, agent: Agent, stream: int) -> None:
        self.agent = agent
        self.stream = stream

    def data(self, payload: bytes) -> None:
        """Bytes from the host."""

    def eof(self) -> None:
        """No more bytes from the host."""

    def signal(self, number: int) -> None:
        """A signal for the process."""

    def event(self, fd: int, mask: int) -> None:
        """One of this request's descriptors is ready."""

    def pump(self) -> None:
        """Queue more, now that the queue has room."""

    @property
    def eager(self) -> bool:
        """Return whether pump() would do something now."""
        return False

    def close(self) -> None:
        """Release everything; the stream is over."""


class Source:
    """A descriptor that is read into a channel, no faster than it drains."""

    def __init__(self, request: Request, fd: int, channel: int) -> None:
        self.request, self.fd, self.channel = request, fd, channel
        self.open = True
        self._watched = False
        os.set_blocking(fd, False)
        self.pump()

    def pump(self) -> None:
        """Watch the descriptor exactly while there is room for its bytes."""
        agent = self.request.agent
        room = agent.mux.queued(self.request.stream, self.channel) < _QUEUE
        wanted = self.open and room
        if wanted != self._watched:
            self._watched = wanted
            agent.watch(self.fd, select.EPOLLIN if wanted else 0, self.request)

    def ready(self) -> None:
        """Read once; at the end of the file, queue the channel's end."""
        agent = self.request.agent
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            agent.mux.send(self.request.stream, self.channel, data)
        else:
            agent.mux.finish(self.request.stream, self.channel)
            self.open = False
        self.pump()


class Sink:
    """A descriptor to which a channel's bytes are written."""

    def __init__(self, request: Request, fd: int, channel: int) -> None:
        self.request, self.fd, self.channel = request, fd, channel
        self.broken = False
        self.ended = False
        self._buffer = bytearray()
        os.set_blocking(fd, False)

    @property
    def done(self) -> bool:
        """Return whether all bytes are written, or cannot be."""
        return self.broken or (self.ended and not self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes to write."""
        self._buffer += data
        self.flush()

    def flush(self) -> None:
        """Write as much as possible; give the host credit for it."""
        agent = self.request.agent
        size = 0
        try:
            while self._buffer and not self.broken:
                count = os.write(self.fd, self._buffer[:_CHUNK])
                del self._buffer[:count]
                size += count
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True
        if self.broken:
            size += len(self._buffer)
            self._buffer.clear()
        agent.mux.consumed(self.request.stream, self.channel, size)
        agent.watch(self.fd, select.EPOLLOUT if self._buffer else 0, self.request)


class Exec(Request):
    """A child process."""

    def __init__(self, agent: Agent, stream: int, ask: dict[str, object]) -> None:
        super().__init__(agent, stream)
        argv, env = ask.get("argv"), ask.get("env")
        if not isinstance(argv, list) or not argv:
            raise RequestError("argv: want a list of strings")
        words = [os.fsencode(str(word)) for word in argv]
        variables = dict(os.environ)
        if isinstance(env, dict):
            variables = {str(key): str(value) for key, value in env.items()}
        pipes = [os.pipe() for _ in range(3)]
        inner = [pipes[0][0], pipes[1][1], pipes[2][1]]
        outer = [pipes[0][1], pipes[1][0], pipes[2][0]]
        try:
            self.pid = os.posix_spawnp(
                words[0],
                words,
                variables,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(inner)],
                setsid=True,
                setsigdef=[signal.SIGPIPE],
            )
        except BaseException:
            for fd in outer:
                os.close(fd)
            raise
        finally:
            for fd in inner:
                os.close(fd)
        self._pidfd = os.pidfd_open(self.pid)
        agent.watch(self._pidfd, select.EPOLLIN, self)
        self._stdin: Sink | None = Sink(self, outer[0], 0)
        self._sources = [Source(self, outer[1], 0), Source(self, outer[2], 1)]
        self._exit: int | None = None

    def data(self, payload: bytes) -> None:
        if self._stdin is not None:
            self._stdin.feed(payload)
        else:
            self.agent.mux.consumed(self.stream, 0, len(payload))

    def eof(self) -> None:
        if self._stdin is not None:
            self._stdin.ended = True
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin is not None and self._stdin.done:
            self.agent.forget(self._stdin.fd)
            self._stdin = None

    def signal(self, number: int) -> None:
        if self._exit is None:
            try:
                os.killpg(self.pid, number)
            except OSError:
                # Between its end and our notice, or not a signal.
                return

    def event(self, fd: int, mask: int) -> None:
        if fd == self._pidfd and self._exit is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                return
            self._exit = os.waitstatus_to_exitcode(status)
            self.agent.watch(fd, 0, self)
        elif self._stdin is not None and fd == self._stdin.fd:
            self._stdin.flush()
            self._close_stdin()
        for source in self._sources:
            if source.fd == fd:
                source.ready()
        if self._exit is not None and not any(source.open for source in self._sources):
            self.agent.answer(self, json.dumps({"exit": self._exit}).encode())

    def pump(self) -> None:
        for source in self._sources:
            source.pump()

    def close(self) -> None:
        if self._exit is None:
            self.signal(signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.agent.forget(self._pidfd)
        if self._stdin is not None:
            self.agent.forget(self._stdin.fd)
        for source in self._sources:
            self.agent.forget(source.fd)


class Read(Request):
    """Sends a file. Regular files are always ready, so epoll is not used."""

    def __init__(self, agent: Agent, stream: int, ask: dict[str, object]) -> None:
        super().__init__(agent, stream)
        self._fd = os.open(str(ask.get("path")), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise OSError(errno.EINVAL, "not a regular file")

    @property
    def eager(self) -> bool:
        return self.agent.mux.queued(self.stream, 0) < _QUEUE

    def pump(self) -> None:
        mux = self.agent.mux
        while self.eager:
            try:
                data = os.read(self._fd, _CHUNK)
            except OSError as error:
                self.agent.answer(self, failure("read", error))
                return
            if not data:
                mux.finish(self.stream, 0)
                self.agent.answer(self, b"{}")
                return
            mux.send(self.stream, 0, data)

    def close(self) -> None:
        os.close(self._fd)


class Write(Request):
    """Writes a file of the host: a new one beside the old, then a rename."""

    def __init__(self, agent: Agent, stream: int, ask: dict[str, object]) -> None:
        super().__init__(agent, stream)
        self._path = str(ask.get("path"))
        mode = ask.get("mode")
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            # Not regular, or a file of procfs or sysfs: write in place.
            found = os.stat(self._path)
            regular = stat.S_ISREG(found.st_mode)
            in_place = not regular or found.st_dev in self._kernel_devices()
        except FileNotFoundError:
            in_place = False
        self._temporary = "" if in_place else f"{self._path}.{os.getpid()}-{stream}"
        if in_place:
            self._fd = os.open(self._path, flags)
        else:
            bits = mode & 0o7777 if isinstance(mode, int) else 0o644
            self._fd = os.open(self._temporary, flags | os.O_CREAT | os.O_EXCL, bits)
            os.fchmod(self._fd, bits)

    @staticmethod
    def _kernel_devices() -> set[int]:
        return {os.stat(path).st_dev for path in ("/proc", "/sys") if os.path.isdir(path)}

    def data(self, payload: bytes) -> None:
        rest = memoryview(payload)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self.agent.answer(self, failure(f"write {self._path}", error))
            return
        self.agent.mux.consumed(self.stream, 0, len(payload))

    def eof(self) -> None:
        try:
            if self._temporary:
                os.rename(self._temporary, self._path)
                self._temporary = ""
        except OSError as error:
            self.agent.answer(self, failure(f"rename to {self._path}", error))
        else:
            self.agent.answer(self, b"{}")

    def close(self) -> None:
        os.close(self._fd)
        if self._temporary:
            os.unlink(self._temporary)


class Dial(Request):
    """A connection to a unix stream socket."""

    def __init__(self, agent: Agent, stream: int, ask: dict[str, object]) -> None:
        super().__init__(agent, stream)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(ask.get("path")))
        except BaseException:
            self._socket.close()
            raise
        # Two descriptors, so that each direction is watched by itself.
        self._source = Source(self, os.dup(self._socket.fileno()), 0)
        self._sink = Sink(self, os.dup(self._socket.fileno()), 0)

    def data(self, payload: bytes) -> None:
        self._sink.feed(payload)

    def eof(self) -> None:
        self._sink.ended = True
        self._settle()

    def event(self, fd: int, mask: int) -> None:
        if fd == self._source.fd:
            self._source.ready()
        else:
            self._sink.flush()
        self._settle()

    def _settle(self) -> None:
        if self._sink.ended and self._sink.done:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._sink.broken = True
        if not self._source.open and self._sink.done:
            self.agent.answer(self, b"{}")

    def pump(self) -> None:
        self._source.pump()

    def close(self) -> None:
        self.agent.forget(self._source.fd)
        self.agent.forget(self._sink.fd)
        self._socket.close()


OPERATIONS = {"exec": Exec, "read": Read, "write": Write, "dial": Dial}
