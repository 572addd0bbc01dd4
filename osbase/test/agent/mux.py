# SPDX-License-Identifier: Apache-2.0
"""Many streams over one pipe: sessions and flow control. Pure, no I/O.

Flow control is by credit, separately for each (stream, channel, direction): a
sender may have WINDOW bytes under way that the receiver has not consumed. So
the receiver's buffer is bounded, it can always go on reading the pipe, and an
unread stream does not block others. Frames other than DATA need no credit and
go first; streams with data alternate, a frame each.

The owner does the I/O: it passes bytes from the pipe to feed(), and writes
those of pull(). send() only queues; queued() returns how much, for back
pressure.
"""

import struct
from collections import deque
from collections.abc import Iterator

from osbase.test.agent.frame import MAX_PAYLOAD, PADDING, Decoder, Frame, Type, encode

# Bytes; a round trip through a slow guest should not stall a stream.
WINDOW = 256 * 1024
# Consumed bytes are credited in portions of at least this.
_PORTION = WINDOW // 4
_U32 = struct.Struct(">I")

type Key = tuple[int, int]  # stream, channel


class ProtocolError(Exception):
    """The peer violated the protocol; the session is not usable any more."""


class _Out:
    """The data to be sent on one channel."""

    __slots__ = ("buffer", "credit", "eof")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.credit = WINDOW
        self.eof = False


class _In:
    """The credit for data received on one channel."""

    __slots__ = ("allowed", "consumed")

    def __init__(self) -> None:
        self.allowed = WINDOW
        self.consumed = 0


class Mux:
    """One end of the pipe. The same class serves host and guest."""

    def __init__(self) -> None:
        self.session = 0
        self._decoder = Decoder()
        self._control: deque[bytes] = deque()
        self._streams: set[int] = set()
        self._out: dict[Key, _Out] = {}
        self._in: dict[Key, _In] = {}
        self._turns: deque[Key] = deque()
        self._results: dict[int, bytes] = {}

    def reset(self, session: int) -> None:
        """Drop all streams and queued frames; begin `session`."""
        self.session = session
        self._control.clear()
        self._streams.clear()
        self._out.clear()
        self._in.clear()
        self._turns.clear()
        self._results.clear()

    def announce(self, kind: Type, session: int, payload: bytes = b"") -> None:
        """Queue READY, HELLO or WELCOME, with the padding before it."""
        self._control.append(PADDING + encode(Frame(kind, session, payload=payload)))

    def add(self, stream: int) -> None:
        """Begin to carry `stream`."""
        self._streams.add(stream)

    def has(self, stream: int) -> bool:
        """Whether `stream` is carried."""
        return stream in self._streams

    def drop(self, stream: int) -> None:
        """Stop carrying `stream`; drop its queued data."""
        self._streams.discard(stream)
        self._results.pop(stream, None)
        for key in [key for key in self._out if key[0] == stream]:
            del self._out[key]
        for key in [key for key in self._in if key[0] == stream]:
            del self._in[key]

    def control(self, kind: Type, stream: int, payload: bytes = b"") -> None:
        """Queue a frame that needs no credit."""
        self._control.append(encode(Frame(kind, self.session, stream, 0, payload)))

    def send(self, stream: int, channel: int, data: bytes) -> None:
        """Queue data. Nothing happens when the stream is not carried."""
        if data and stream in self._streams:
            self._flow((stream, channel)).buffer += data

    def finish(self, stream: int, channel: int) -> None:
        """Queue the end of a channel, after its data."""
        if stream in self._streams:
            self._flow((stream, channel)).eof = True

    def result(self, stream: int, payload: bytes) -> None:
        """Queue the result, to be sent after all queued data; then drop()."""
        if stream in self._streams:
            self._results[stream] = payload
            self._settle(stream)

    def queued(self, stream: int, channel: int) -> int:
        """Return how many bytes of a channel are still to be sent."""
        out = self._out.get((stream, channel))
        return len(out.buffer) if out is not None else 0

    def consumed(self, stream: int, channel: int, size: int) -> None:
        """Report that `size` received bytes need no buffer any more."""
        flow = self._in.get((stream, channel))
        if flow is None:
            return
        flow.consumed += size
        if flow.consumed >= _PORTION:
            self._control.append(
                encode(Frame(Type.CREDIT, self.session, stream, channel, _U32.pack(flow.consumed)))
            )
            flow.allowed += flow.consumed
            flow.consumed = 0

    def _flow(self, key: Key) -> _Out:
        out = self._out.get(key)
        if out is None:
            out = self._out[key] = _Out()
        if key not in self._turns:
            self._turns.append(key)
        return out

    def _settle(self, stream: int) -> None:
        """Send the result of a stream when all its data is sent."""
        if stream in self._results and not any(key[0] == stream for key in self._turns):
            self.control(Type.RESULT, stream, self._results[stream])
            self.drop(stream)

    def pull(self, limit: int) -> bytes:
        """Return about `limit` bytes to write now; empty when none can go."""
        parts: list[bytes] = []
        size = 0
        blocked = 0
        while size < limit:
            if self._control:
                part = self._control.popleft()
            elif self._turns and blocked < len(self._turns):
                key = self._turns.popleft()
                made = self._take(key)
                if made is None:
                    blocked += 1
                    self._turns.append(key)
                    continue
                blocked = 0
                part = made
            else:
                break
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _take(self, key: Key) -> bytes | None:
        """Return the next frame of a channel; None when out of credit."""
        stream, channel = key
        out = self._out.get(key)
        if out is None:
            # Dropped meanwhile.
            return b""
        if out.buffer:
            size = min(len(out.buffer), out.credit, MAX_PAYLOAD)
            if size == 0:
                return None
            data = bytes(memoryview(out.buffer)[:size])
            del out.buffer[:size]
            out.credit -= size
            if out.buffer or out.eof:
                self._turns.append(key)
            made = encode(Frame(Type.DATA, self.session, stream, channel, data))
        elif out.eof:
            out.eof = False
            made = encode(Frame(Type.EOF, self.session, stream, channel))
        else:
            made = b""
        self._settle(stream)
        return made

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes from the pipe; yield the frames the owner acts on.

        These are READY, HELLO and WELCOME of any session; in the present
        session all frames of its streams except CREDIT (handled here), and OPEN
        of any stream. It is an iterator, since the owner's reaction to one
        frame (a new session, a new stream) decides about the next; exhaust it.
        Raises ProtocolError when the peer sent more than it may.
        """
        for frame in self._decoder.feed(data):
            if frame.type in (Type.READY, Type.HELLO, Type.WELCOME):
                yield frame
            elif frame.session != self.session or not self.session:
                continue
            elif frame.type is Type.OPEN or (frame.stream in self._streams and self._accept(frame)):
                yield frame

    def _accept(self, frame: Frame) -> bool:
        key = (frame.stream, frame.channel)
        if frame.type is Type.CREDIT:
            out = self._out.get(key)
            if out is not None and len(frame.payload) == _U32.size:
                out.credit = min(WINDOW, out.credit + _U32.unpack(frame.payload)[0])
            return False
        if frame.type is Type.DATA:
            flow = self._in.setdefault(key, _In())
            flow.allowed -= len(frame.payload)
            if flow.allowed < 0:
                raise ProtocolError(f"stream {key}: {-flow.allowed} bytes more than granted")
        return True
