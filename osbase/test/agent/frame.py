# SPDX-License-Identifier: Apache-2.0
"""Frames on a byte pipe that may hold leftovers. Pure.

A frame is a 20 byte big-endian header and a payload:

    0  magic     4 bytes
    4  type      u8, see Type
    5  channel   u8, of the stream: 0 data (stdin, stdout), 1 stderr
    6  length    u16, of the payload, at most MAX_PAYLOAD
    8  session   u32, chosen by the host; 0 before there is one
   12  stream    u32, chosen by the host, never reused in a session
   16  crc       u32, CRC-32 of bytes 0 to 15 and the payload

The decoder skips bytes that are not a frame, so it finds the next one after
garbage or the middle of another. A cut-off frame would swallow the following
bytes as its payload. So a new sender first sends PADDING, longer than any
frame, and no frame after it is lost.
"""

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

MAGIC = b"\xf5MA1"
MAX_PAYLOAD = 32 * 1024
_HEADER = struct.Struct(">4sBBHII")
_CRC = struct.Struct(">I")
HEADER_SIZE = _HEADER.size + _CRC.size

PADDING = bytes(HEADER_SIZE + MAX_PAYLOAD)


class Type(IntEnum):
    """The type of a frame. Payloads named JSON are objects in UTF-8."""

    READY = 1  # guest: has started; payload: its instance id
    HELLO = 2  # host: starts the session in the header
    WELCOME = 3  # guest: in that session now; payload: its instance id
    OPEN = 4  # host: a request, JSON, which opens a stream
    DATA = 5  # bytes of a channel
    EOF = 6  # no more bytes on a channel
    CREDIT = 7  # u32: so many more bytes may be sent on a channel
    RESULT = 8  # guest: the request's outcome, JSON; the stream is closed
    CANCEL = 9  # host: give up the request
    SIGNAL = 10  # host: u32, a signal for the process


class Frame(NamedTuple):
    """One frame, without the fields that only matter on the wire."""

    type: Type
    session: int
    stream: int = 0
    channel: int = 0
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    """Return the frame as bytes."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ValueError(f"frame payload of {len(frame.payload)} bytes, at most {MAX_PAYLOAD}")
    head = _HEADER.pack(
        MAGIC, frame.type, frame.channel, len(frame.payload), frame.session, frame.stream
    )
    crc = zlib.crc32(frame.payload, zlib.crc32(head))
    return b"".join((head, _CRC.pack(crc), frame.payload))


class Decoder:
    """Bytes in, frames out; never raises, keeps at most one frame's bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take more bytes; return the frames they complete, in order."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at = 0
        while True:
            found = buffer.find(MAGIC, at)
            if found < 0:
                # The last bytes may be the beginning of a magic.
                at = max(at, len(buffer) - len(MAGIC) + 1)
                break
            at = found
            if len(buffer) - at < HEADER_SIZE:
                break
            _, kind, channel, length, session, stream = _HEADER.unpack_from(buffer, at)
            if length > MAX_PAYLOAD:
                at += 1
                continue
            end = at + HEADER_SIZE + length
            if len(buffer) < end:
                break
            (crc,) = _CRC.unpack_from(buffer, at + _HEADER.size)
            payload = bytes(memoryview(buffer)[at + HEADER_SIZE : end])
            head = bytes(memoryview(buffer)[at : at + _HEADER.size])
            if crc != zlib.crc32(payload, zlib.crc32(head)):
                at += 1
                continue
            at = end
            try:
                frames.append(Frame(Type(kind), session, stream, channel, payload))
            except ValueError:
                # A type of a newer peer.
                continue
        del buffer[:at]
        return frames
