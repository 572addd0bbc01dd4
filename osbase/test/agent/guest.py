# SPDX-License-Identifier: Apache-2.0
"""The guest's end: a single-threaded program on epoll.

    python3 -I -S guest.py [--device PATH | --fd N]

Requests (the JSON of an OPEN frame) and what their RESULT has:

    {"op": "exec", "argv": [...], "env": {...}|null}       {"exit": n}
        channel 0 is stdin and stdout, 1 is stderr; n < 0: killed by signal -n.
        The result comes after the process ended and its output was closed.
    {"op": "read", "path": p}                              {}
    {"op": "write", "path": p, "mode": m}                  {}
        A regular file appears complete or not at all.
    {"op": "dial", "path": p}                              {}
        Bytes to and from a unix stream socket, with half-close.

A request that fails has {"error": text, "errno": n} instead.

Written without asyncio and subprocess: importing those takes a second on an
emulated CPU, and the machine under test waits for nothing else.
"""

import errno
import json
import os
import select
import signal
import socket
import stat
import struct
import sys

if __name__ == "__main__":
    # Started by path, in isolated mode: the root of the tree is three up.
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), *[".."] * 3)))

from osbase.test.agent.frame import Frame, Type
from osbase.test.agent.mux import Mux, ProtocolError

DEVICE = "/dev/virtio-ports/dev.metropolis.agent"

_CHUNK = 64 * 1024
# Bytes queued for the host on one channel before its source has to wait.
_QUEUE = 128 * 1024


class RequestError(Exception):
    """A request that is not one."""


def _failure(what: str, error: Exception) -> bytes:
    code = error.errno if isinstance(error, OSError) and error.errno else 0
    text = f"{what}: {errno.errorcode.get(code, code)}: {error}" if code else f"{what}: {error}"
    return json.dumps({"error": text, "errno": code}).encode()


class Request:
    """One open stream. The base has nothing and ignores everything."""

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
        """Whether pump() would do something right now."""
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
    """A descriptor that gets a channel's bytes as it takes them."""

    def __init__(self, request: Request, fd: int, channel: int) -> None:
        self.request, self.fd, self.channel = request, fd, channel
        self.broken = False
        self.ended = False
        self._buffer = bytearray()
        os.set_blocking(fd, False)

    @property
    def done(self) -> bool:
        """Whether all there will ever be was written, or cannot be."""
        return self.broken or (self.ended and not self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes to write."""
        self._buffer += data
        self.flush()

    def flush(self) -> None:
        """Write what can be; give the host credit for it."""
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
    """A file to the host. Regular files are always ready, so no epoll."""

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
                self.agent.answer(self, _failure("read", error))
                return
            if not data:
                mux.finish(self.stream, 0)
                self.agent.answer(self, b"{}")
                return
            mux.send(self.stream, 0, data)

    def close(self) -> None:
        os.close(self._fd)


class Write(Request):
    """A file from the host: a new one beside the old, then rename."""

    def __init__(self, agent: Agent, stream: int, ask: dict[str, object]) -> None:
        super().__init__(agent, stream)
        self._path = str(ask.get("path"))
        mode = ask.get("mode")
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            # Not regular, or a file of procfs or sysfs: only in place.
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
            self.agent.answer(self, _failure(f"write {self._path}", error))
            return
        self.agent.mux.consumed(self.stream, 0, len(payload))

    def eof(self) -> None:
        try:
            if self._temporary:
                os.rename(self._temporary, self._path)
                self._temporary = ""
        except OSError as error:
            self.agent.answer(self, _failure(f"rename to {self._path}", error))
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


_OPERATIONS = {"exec": Exec, "read": Read, "write": Write, "dial": Dial}


class Agent:
    """The event loop: the pipe, and the requests of the present session."""

    def __init__(self, fd: int) -> None:
        self.mux = Mux()
        self._fd = fd
        # A port is there for ever; any other pipe ends.
        self._is_port = stat.S_ISCHR(os.fstat(fd).st_mode)
        self._instance = os.urandom(8).hex().encode()
        self._epoll = select.epoll()
        self._owners: dict[int, Request] = {}
        self._masks: dict[int, int] = {}
        self._requests: dict[int, Request] = {}
        self._out = b""

    def watch(self, fd: int, mask: int, owner: Request) -> None:
        """Call owner.event() when fd is ready for `mask`; 0 stops that."""
        old = self._masks.get(fd, 0)
        if mask == old:
            return
        if not mask:
            # Not merely mask 0: that would still report a hang-up, for ever.
            self._epoll.unregister(fd)
            del self._masks[fd], self._owners[fd]
        else:
            (self._epoll.modify if old else self._epoll.register)(fd, mask)
            self._masks[fd] = mask
            self._owners[fd] = owner

    def forget(self, fd: int) -> None:
        """Stop watching fd, and close it."""
        if fd in self._masks:
            self._epoll.unregister(fd)
            del self._masks[fd], self._owners[fd]
        os.close(fd)

    def answer(self, request: Request, result: bytes) -> None:
        """Close a request with its result."""
        if self._requests.pop(request.stream, None) is not None:
            request.close()
            self.mux.result(request.stream, result)

    def run(self) -> None:
        """Serve until the pipe ends; a port never does."""
        os.set_blocking(self._fd, False)
        # Edge-triggered: a port without a host reports a hang-up all the time.
        edges = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
        self._epoll.register(self._fd, edges)
        self.mux.announce(Type.READY, 0, self._instance)
        more = True
        while more:
            self._write()
            for request in [*self._requests.values()]:
                request.pump()
            self._write()
            eager = any(request.eager for request in self._requests.values())
            for fd, mask in self._epoll.poll(0 if eager else None):
                if fd == self._fd:
                    more = self._read()
                elif (owner := self._owners.get(fd)) is not None:
                    owner.event(fd, mask)
        self._end_session(0)

    def _write(self) -> None:
        while True:
            if not self._out:
                self._out = self.mux.pull(4 * _CHUNK)
                if not self._out:
                    return
            try:
                count = os.write(self._fd, self._out)
            except BlockingIOError:
                return
            except OSError:
                # Nobody there; whoever comes next begins a new session.
                self._out = b""
                return
            self._out = self._out[count:]

    def _read(self) -> bool:
        """Read all there is; False when the pipe has ended."""
        while True:
            try:
                data = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                return True
            except OSError:
                return self._is_port
            if not data:
                return self._is_port
            try:
                for frame in self.mux.feed(data):
                    self._frame(frame)
            except ProtocolError:
                self._end_session(0)
                self.mux.announce(Type.READY, 0, os.urandom(8).hex().encode())

    def _end_session(self, session: int) -> None:
        for request in self._requests.values():
            request.close()
        self._requests.clear()
        self.mux.reset(session)

    def _frame(self, frame: Frame) -> None:
        if frame.type is Type.HELLO:
            if frame.session != self.mux.session:
                self._end_session(frame.session)
            self.mux.announce(Type.WELCOME, self.mux.session, self._instance)
        elif frame.type is Type.OPEN:
            self._open(frame)
        elif (request := self._requests.get(frame.stream)) is not None:
            if frame.type is Type.DATA:
                request.data(frame.payload)
            elif frame.type is Type.EOF:
                request.eof()
            elif frame.type is Type.SIGNAL and len(frame.payload) == 4:
                request.signal(struct.unpack(">I", frame.payload)[0])
            elif frame.type is Type.CANCEL:
                del self._requests[frame.stream]
                request.close()
                self.mux.drop(frame.stream)

    def _open(self, frame: Frame) -> None:
        if self.mux.has(frame.stream):
            return
        self.mux.add(frame.stream)
        what = "request"
        try:
            ask = json.loads(frame.payload)
            if not isinstance(ask, dict) or ask.get("op") not in _OPERATIONS:
                raise RequestError("want an object with a known op")
            what = f"{ask['op']} {ask.get('path') or ask.get('argv')}"
            self._requests[frame.stream] = _OPERATIONS[ask["op"]](self, frame.stream, ask)
        except (OSError, ValueError, RequestError, RecursionError) as error:
            self.mux.result(frame.stream, _failure(what, error))


def find_port(name: str = "dev.metropolis.agent") -> str:
    """Return the port's device, also where no rule makes the named link."""
    if os.path.exists(DEVICE):
        return DEVICE
    root = "/sys/class/virtio-ports"
    for entry in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        with open(os.path.join(root, entry, "name")) as file:
            if file.read().strip() == name:
                return f"/dev/{entry}"
    raise FileNotFoundError(errno.ENOENT, f"no virtio-serial port named {name}", DEVICE)


def main(arguments: list[str]) -> None:
    """See the module."""
    if arguments[:1] == ["--fd"]:
        fd = int(arguments[1])
    else:
        path = arguments[1] if arguments[:1] == ["--device"] else find_port()
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    os.set_inheritable(fd, False)
    Agent(fd).run()


if __name__ == "__main__":
    main(sys.argv[1:])
