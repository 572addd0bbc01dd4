# SPDX-License-Identifier: Apache-2.0
"""Runs on a node, by its agent: a command on a terminal, or with pipes.

    python3 -I -S -c TEXT TTY ROWS COLUMNS CONTAINER EXEC-ID COMMAND...

Its stdin has frames (see terminal.py): data for the command, and sizes of the
window. Its stdout and stderr are the command's, whose status it ends with. When
stdin ends without an "end" frame the user has gone, and the command is killed.

Standard library only, and imports nothing of ours: the node gets it as text.
"""

import fcntl
import os
import select
import struct
import sys
import termios

_CTR = ("ctr", "--namespace", "k8s.io", "task")
_HEADER = struct.Struct("!cI")


def set_size(fd: int, rows: int, columns: int) -> None:
    """Set the size of a terminal's window."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def start(argv: list[str], rows: int, columns: int, tty: bool) -> tuple[int, int, int]:
    """Start the command; return its pid, and descriptors for input and output;
    output -1: it has ours.
    """
    if tty:
        pid, master = os.forkpty()
        if pid == 0:
            set_size(0, rows, columns)
            os.execvp(argv[0], argv)
        return pid, master, master
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(read, 0)
        os.close(write)
        os.execvp(argv[0], argv)
    os.close(read)
    return pid, write, -1


def feed(buffer: bytearray, into: int, tty: bool) -> bool:
    """Handle all whole frames; return whether an "end" was one of them."""
    while len(buffer) >= _HEADER.size:
        kind, size = _HEADER.unpack_from(buffer)
        if len(buffer) < _HEADER.size + size:
            break
        payload = bytes(buffer[_HEADER.size : _HEADER.size + size])
        del buffer[: _HEADER.size + size]
        if kind == b"e":
            return True
        if kind == b"w" and tty:
            set_size(into, *struct.unpack("!HH", payload))
        elif kind == b"d":
            rest = memoryview(payload)
            try:
                while rest:
                    rest = rest[os.write(into, rest) :]
            except OSError:
                # The command reads no more.
                return False
    return False


def run(argv: list[str], rows: int, columns: int, tty: bool) -> int:
    """Run a command; return its status, or -1 when the user has gone."""
    pid, into, out = start(argv, rows, columns, tty)
    ended = os.pidfd_open(pid)
    watched = [0, ended] + ([out] if tty else [])
    buffer = bytearray()
    open_in = True
    while True:
        ready, _, _ = select.select(watched, [], [])
        if out in ready:
            try:
                data = os.read(out, 65536)
            except OSError:
                data = b""
            if data:
                os.write(1, data)
            else:
                watched.remove(out)
        # A terminal first gives all its output.
        if ended in ready and out not in ready:
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status) & 0xFF
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                if open_in:
                    return -1
                watched.remove(0)
            buffer += data
            if feed(buffer, into, tty) and open_in:
                open_in = False
                if tty:
                    os.write(into, b"\x04")
                else:
                    os.close(into)


def main(arguments: list[str]) -> int:
    """Run the command in a container; return its status."""
    tty, rows, columns = arguments[0] == "1", int(arguments[1]), int(arguments[2])
    container, ident, command = arguments[3], arguments[4], arguments[5:]
    argv = [*_CTR, "exec", *(["--tty"] if tty else []), "--exec-id", ident, container, *command]
    status = run(argv, rows, columns, tty)
    if status < 0:
        os.execvp(_CTR[0], [*_CTR, "kill", "--exec-id", ident, "--signal", "SIGKILL", container])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
