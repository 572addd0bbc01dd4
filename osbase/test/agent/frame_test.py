# SPDX-License-Identifier: Apache-2.0
"""The frame codec with anything that a pipe may hold."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from osbase.test.agent.frame import (
    HEADER_SIZE,
    MAGIC,
    MAX_PAYLOAD,
    PADDING,
    Decoder,
    Frame,
    Type,
    encode,
)

_U32 = st.integers(0, 2**32 - 1)
FRAMES = st.builds(
    Frame,
    st.sampled_from(Type),
    _U32,
    _U32,
    st.integers(0, 255),
    st.binary(max_size=300) | st.just(MAGIC) | st.just(bytes(MAX_PAYLOAD)),
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut data into pieces."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 10**6), max_size=8))
def test_round_trip_in_any_pieces(frames: list[Frame], cuts: list[int]) -> None:
    decoder = Decoder()
    wire = b"".join(map(encode, frames))
    assert [f for piece in split(wire, cuts) for f in decoder.feed(piece)] == frames


@given(st.lists(st.binary(max_size=200) | st.just(MAGIC), max_size=20))
def test_garbage_never_raises(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        decoder.feed(piece)
        assert len(decoder._buffer) <= HEADER_SIZE + MAX_PAYLOAD


@given(FRAMES, st.integers(0, 10**6), st.binary(max_size=100), st.lists(FRAMES, min_size=1))
def test_resync_after_a_cut_off_frame(
    broken: Frame, cut: int, garbage: bytes, frames: list[Frame]
) -> None:
    wire = encode(broken)
    decoder = Decoder()
    got = decoder.feed(wire[: cut % len(wire)] + garbage + PADDING)
    assert len(got) <= 1
    assert decoder.feed(b"".join(map(encode, frames))) == frames


@given(FRAMES, st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_noticed(frame: Frame, position: int, flip: int) -> None:
    wire = bytearray(encode(frame))
    wire[position % len(wire)] ^= flip
    assert frame not in Decoder().feed(bytes(wire) + PADDING)
