# SPDX-License-Identifier: Apache-2.0
"""The guest's end: a single-threaded program on epoll.

    python3 -I -S guest.py [--device PATH | --fd N]

guest_requests has the possible requests.

The program does not use asyncio and subprocess: importing those takes a second
on an emulated CPU, and the machine under test waits for nothing else.
"""

import errno
import json
import os
import select
import stat
import struct
import sys

if __name__ == "__main__":
    # Started by path, in isolated mode: the tree's root is three levels up.
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), *[".."] * 3)))

from osbase.test.agent.frame import Frame, Type
from osbase.test.agent.guest_requests import OPERATIONS, Request, RequestError, failure
from osbase.test.agent.mux import Mux, ProtocolError

DEVICE = "/dev/virtio-ports/dev.metropolis.agent"

_CHUNK = 64 * 1024


class Agent:
    """The event loop: the pipe, and the requests of the present session."""

    def __init__(self, fd: int) -> None:
        self.mux = Mux()
        self._fd = fd
        # A port never ends; any other pipe does.
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
                # No host is connected; the next one begins a new session.
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
            if not isinstance(ask, dict) or ask.get("op") not in OPERATIONS:
                raise RequestError("want an object with a known op")
            what = f"{ask['op']} {ask.get('path') or ask.get('argv')}"
            self._requests[frame.stream] = OPERATIONS[ask["op"]](self, frame.stream, ask)
        except (OSError, ValueError, RequestError, RecursionError) as error:
            self.mux.result(frame.stream, failure(what, error))


def find_port(name: str = "dev.metropolis.agent") -> str:
    """Return the port's device, also without a rule for the named link."""
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
