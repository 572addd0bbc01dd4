# SPDX-License-Identifier: Apache-2.0
"""Frames: what goes in comes out, and garbage is a WireError."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.cni import wire
from metropolis.node.core.network.cni.wire import Answer, Request, WireError

_raw = st.binary(max_size=40).filter(lambda b: b"\0" not in b)
_text = _raw.map(lambda b: b.decode(errors="surrogateescape"))
_name = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", max_size=20).map(lambda s: "CNI_" + s)
_requests = st.builds(
    Request,
    argv=st.lists(_text, max_size=4).map(tuple),
    env=st.dictionaries(_name, _text, max_size=6),
    stdin=st.binary(max_size=300),
)


def parse(frame: bytes) -> Request:
    lengths = wire.parse_header(frame[: wire.REQUEST_HEADER_SIZE])
    return wire.parse_body(lengths, frame[wire.REQUEST_HEADER_SIZE :])


@given(_requests)
def test_a_request_survives_the_wire(request: Request) -> None:
    assert parse(wire.encode_request(request)) == request


@given(st.binary(max_size=2000), st.integers(0, 255))
def test_an_answer_survives_the_wire(stdout: bytes, exit_code: int) -> None:
    answer = Answer(stdout, exit_code)
    assert wire.parse_answer(wire.encode_answer(answer)) == answer


@given(_requests, st.data())
def test_a_truncated_request_is_an_error(request: Request, data: st.DataObject) -> None:
    frame = wire.encode_request(request)
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(WireError):
        parse(frame[:cut])


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_garbage_is_an_error_or_a_request(header: bytes, body: bytes) -> None:
    for frame in (
        header + body,
        struct.pack("!5I", wire.MAGIC, wire.VERSION, len(header), len(body), 0) + header + body,
    ):
        try:
            request = parse(frame)
        except WireError:
            continue
        assert all(name.startswith("CNI_") for name in request.env)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((0, 1, 0, 0, 0), "magic"),
        ((wire.MAGIC, 2, 0, 0, 0), "version 2"),
        ((wire.MAGIC, 1, wire.HEAD_MAX, 1, 0), "strings, at most"),
        ((wire.MAGIC, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0), "strings, at most"),
        ((wire.MAGIC, 1, 0, 0, wire.STDIN_MAX + 1), "stdin, at most"),
    ],
)
def test_headers_are_judged_before_anything_is_read(words: tuple[int, ...], said: str) -> None:
    with pytest.raises(WireError, match=said):
        wire.parse_header(struct.pack("!5I", *words))


@pytest.mark.parametrize("env", [b"PATH=/bin\0", b"CNI_X\0", b"=\0", b"CNI_COMMAND=ADD", b"\0"])
def test_an_environment_that_is_none_is_an_error(env: bytes) -> None:
    frame = struct.pack("!5I", wire.MAGIC, wire.VERSION, 0, len(env), 0) + env
    with pytest.raises(WireError, match="request env"):
        parse(frame)


def test_the_first_of_two_variables_counts() -> None:
    env = b"CNI_A=1\0CNI_A=2\0"
    frame = struct.pack("!5I", wire.MAGIC, wire.VERSION, 0, len(env), 0) + env
    assert parse(frame).env == {"CNI_A": "1"}


def test_an_answer_has_a_bound() -> None:
    with pytest.raises(WireError, match="at most"):
        wire.encode_answer(Answer(bytes(wire.ANSWER_MAX + 1)))
