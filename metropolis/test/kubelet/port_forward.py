# SPDX-License-Identifier: Apache-2.0
"""Send bytes to a pod's port through the runtime's stream server, print what
comes back: python3 port_forward.py URL PORT <REQUEST

A node gets this text and runs it, since the stream server listens at the node's
127.0.0.1; so it uses the standard library only.

The protocol is v4.channel.k8s.io of `k8s.io/kubelet/pkg/cri/streaming`:
messages of a WebSocket (RFC 6455), whose first byte is a channel: 0 data,
1 errors. The first message of each has the port.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import sys
from typing import BinaryIO
from urllib.parse import urlsplit

_BINARY, _CLOSE = 0x2, 0x8
_DATA, _ERROR = b"\0", b"\1"
_PROTOCOL = "v4.channel.k8s.io"
_TIMEOUT_S = 60


def frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """Return a frame of a client: final and masked."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def read_frame(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Return the next frame's opcode and payload; None: there is none."""
    head = stream.read(2)
    if len(head) < 2:
        return None
    size = head[1] & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", stream.read(2))
    elif size == 127:
        (size,) = struct.unpack("!Q", stream.read(8))
    return head[0] & 0x0F, stream.read(size)


def forward(url: str, port: int, request: bytes) -> tuple[bytes, bytes]:
    """Return what came back until the server's end: data, and errors."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 80), _TIMEOUT_S) as connection:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {parts.path}?port={port} HTTP/1.1", f"Host: {parts.netloc}",
            "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}", f"Sec-WebSocket-Protocol: {_PROTOCOL}",
            f"Origin: http://{parts.netloc}",
        ]  # fmt: skip
        connection.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        stream = connection.makefile("rb")
        answer = stream.readline()
        if answer.split()[1:2] != [b"101"]:
            raise SystemExit(f"the stream server answered {answer!r} {stream.read(500)!r}")
        while stream.readline().strip():
            pass
        connection.sendall(frame(_BINARY, _DATA + request, os.urandom(4)))
        data: list[bytes] = []
        errors: list[bytes] = []
        while (got := read_frame(stream)) is not None and got[0] != _CLOSE:
            channel, payload = got[1][:1], got[1][1:]
            if got[0] == _BINARY:
                (data if channel == _DATA else errors).append(payload)
    # The first has the port.
    return b"".join(data)[2:], b"".join(errors)[2:]


def main() -> None:
    """Forward standard input; exit with 1 on an error of the server."""
    data, errors = forward(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer.read())
    sys.stdout.buffer.write(data)
    sys.stderr.buffer.write(errors)
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
