# SPDX-License-Identifier: Apache-2.0
"""Frames, and a stream server as Kubernetes writes it."""

from __future__ import annotations

import io
import socket
import threading

import pytest

from metropolis.test.kubelet.port_forward import forward, frame, read_frame

MASK = b"\1\2\3\4"


def sent(channel: bytes, payload: bytes) -> bytes:
    """Return a server's frame, which is not masked."""
    return bytes([0x82, 1 + len(payload)]) + channel + payload


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_frames(size: int) -> None:
    made = frame(2, b"x" * size, MASK)
    head = len(made) - size - 4
    assert head == 2 + (0 if size < 126 else 2 if size < 65536 else 8)
    # Without the mask, which a server does not use, it is read back.
    plain = bytes(b ^ MASK[i % 4] for i, b in enumerate(made[head + 4 :]))
    bare = bytes([made[0], made[1] & 0x7F]) + made[2:head] + plain
    assert read_frame(io.BytesIO(bare)) == (2, b"x" * size)
    assert read_frame(io.BytesIO(b"")) is None


def answered(answer: bytes) -> tuple[str, threading.Thread, list[bytes]]:
    """Serve one connection; return its URL, the thread, and what it got."""
    server = socket.create_server(("127.0.0.1", 0))
    got: list[bytes] = []

    def serve() -> None:
        with server, server.accept()[0] as connection:
            stream = connection.makefile("rb")
            got.append(stream.readline())
            while stream.readline().strip():
                pass
            connection.sendall(answer)
            if b" 101 " in answer:
                got.append(stream.read(2 + 4 + 3))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/portforward/token", thread, got


def test_a_port_is_forwarded() -> None:
    port = (8080).to_bytes(2, "little")
    text = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    text += sent(b"\0", port) + sent(b"\1", port) + sent(b"\0", b"an") + sent(b"\0", b"swer")
    url, thread, got = answered(text + sent(b"\1", b"late") + b"\x88\0")
    assert forward(url, 8080, b"hi") == (b"answer", b"late")
    thread.join(10)
    assert got[0].startswith(b"GET /portforward/token?port=8080 ")
    assert got[1][:2] == bytes([0x82, 0x83])


def test_a_refusal_is_reported() -> None:
    url, _, _ = answered(b"HTTP/1.1 404 Not Found\r\n\r\nno such token")
    with pytest.raises(SystemExit, match=r"404 Not Found.*no such token"):
        forward(url, 8080, b"")
