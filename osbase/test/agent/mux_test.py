# SPDX-License-Identifier: Apache-2.0
"""Flow control, fairness and sessions of the mux, both ends in memory."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.test.agent.frame import Decoder, Frame, Type, encode
from osbase.test.agent.mux import WINDOW, Mux, ProtocolError


def pair(*streams: int) -> tuple[Mux, Mux]:
    """Return two ends in session 1 that carry `streams`."""
    ends = Mux(), Mux()
    for mux in ends:
        mux.reset(1)
        for stream in streams:
            mux.add(stream)
    return ends


def size(frames: Iterable[Frame], stream: int) -> int:
    """Return the bytes of data for a stream."""
    return sum(len(f.payload) for f in frames if f.stream == stream and f.type is Type.DATA)


def test_no_more_than_the_window_without_credit() -> None:
    ours, theirs = pair(1)
    ours.send(1, 0, bytes(3 * WINDOW))
    got = size(theirs.feed(ours.pull(10 * WINDOW)), 1)
    assert got == WINDOW
    assert ours.pull(10 * WINDOW) == b""
    theirs.consumed(1, 0, WINDOW)
    assert [*ours.feed(theirs.pull(1000))] == []
    assert size(theirs.feed(ours.pull(10 * WINDOW)), 1) == WINDOW


def test_a_stalled_stream_stalls_no_other() -> None:
    ours, theirs = pair(1, 2)
    ours.send(1, 0, bytes(3 * WINDOW))
    ours.send(1, 1, b"stderr")
    assert size(theirs.feed(ours.pull(10 * WINDOW)), 1) == WINDOW + len(b"stderr")
    ours.send(2, 0, b"x")
    ours.finish(2, 0)
    frames = [*theirs.feed(ours.pull(10 * WINDOW))]
    assert [(f.type, f.stream) for f in frames] == [(Type.DATA, 2), (Type.EOF, 2)]


def test_streams_take_turns() -> None:
    ours, theirs = pair(1, 2)
    ours.send(1, 0, bytes(WINDOW))
    ours.send(2, 0, bytes(WINDOW))
    frames = [*theirs.feed(ours.pull(WINDOW))]
    assert abs(size(frames, 1) - size(frames, 2)) <= 32 * 1024


def test_the_result_comes_last_and_ends_the_stream() -> None:
    ours, theirs = pair(1)
    ours.send(1, 0, bytes(2 * WINDOW))
    ours.finish(1, 0)
    ours.result(1, b"{}")
    kinds = []
    for _ in range(10):
        frames = [*theirs.feed(ours.pull(10 * WINDOW))]
        kinds += [f.type for f in frames]
        theirs.consumed(1, 0, size(frames, 1))
        assert [*ours.feed(theirs.pull(1000))] == []
    assert kinds[-2:] == [Type.EOF, Type.RESULT]
    assert not ours.has(1)


def test_frames_of_another_session_or_stream_are_ignored() -> None:
    ours, _ = pair(1)
    for session, stream in ((2, 1), (0, 1), (1, 2)):
        assert [*ours.feed(encode(Frame(Type.DATA, session, stream, 0, b"x")))] == []


def test_more_than_granted_is_an_error() -> None:
    ours, _ = pair(1)
    wire = encode(Frame(Type.DATA, 1, 1, 0, bytes(32 * 1024)))
    with pytest.raises(ProtocolError):
        size(ours.feed(wire * (WINDOW // (32 * 1024) + 1)), 1)


def test_credit_out_of_thin_air_is_capped() -> None:
    ours, _ = pair(1)
    ours.send(1, 0, b"x")
    ours.pull(1000)
    for _ in range(3):
        assert [*ours.feed(encode(Frame(Type.CREDIT, 1, 1, 0, b"\xff\xff\xff\xff")))] == []
    ours.send(1, 0, bytes(5 * WINDOW))
    sent = Decoder().feed(ours.pull(10 * WINDOW))
    assert size(sent, 1) == WINDOW


_STEPS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 1), st.integers(0, 200_000), st.booleans()),
    max_size=30,
)


@given(_STEPS)
def test_everything_arrives_in_order(steps: list[tuple[int, int, int, bool]]) -> None:
    ours, theirs = pair(1, 2, 3)
    sent: dict[tuple[int, int], bytes] = {}
    got: dict[tuple[int, int], bytes] = {}

    def move() -> bool:
        data = ours.pull(50_000)
        for frame in theirs.feed(data):
            key = (frame.stream, frame.channel)
            got[key] = got.get(key, b"") + frame.payload
            theirs.consumed(frame.stream, frame.channel, len(frame.payload))
        back = theirs.pull(50_000)
        assert [*ours.feed(back)] == []
        return bool(data or back)

    for number, (stream, channel, length, now) in enumerate(steps):
        data = bytes([number]) * length
        ours.send(stream, channel, data)
        sent[stream, channel] = sent.get((stream, channel), b"") + data
        if now:
            move()
    while move():
        pass
    assert got == {key: data for key, data in sent.items() if data}
