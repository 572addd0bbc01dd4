# SPDX-License-Identifier: Apache-2.0
"""Messages survive encoding and parsing; garbage is an error."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.netlink import attrs, message
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message, Request

REQUESTS = st.lists(
    st.builds(
        Request,
        st.integers(16, 0xFFFF),
        st.integers(0, 0xFFFF).map(lambda flags: flags & ~message.NLM_F_ACK),
        st.binary(max_size=50),
        st.just("something"),
    ),
    min_size=1,
)


@given(REQUESTS, st.integers(0, 0xFFFFFFFF))
def test_a_batch_is_numbered_and_acknowledged_once(requests: list[Request], first: int) -> None:
    found = list(message.decode(message.encode(requests, first)))
    assert [(one.kind, one.body) for one in found] == [(one.kind, one.body) for one in requests]
    assert [one.sequence for one in found] == [
        (first + index) & 0xFFFFFFFF for index in range(len(requests))
    ]
    acknowledged = [bool(one.flags & message.NLM_F_ACK) for one in found]
    assert acknowledged == [False] * (len(requests) - 1) + [True]


@given(st.binary(max_size=200))
def test_garbage_is_parsed_or_refused(data: bytes) -> None:
    try:
        found = list(message.decode(data))
        for one in found:
            message.error_of(one)
    except ProtocolError:
        return


@given(st.integers(0, 0xFFFF), st.binary(max_size=100))
def test_an_acknowledgement_of_garbage_has_an_errno_or_is_refused(flags: int, body: bytes) -> None:
    try:
        number, _ = message.error_of(Message(message.NLMSG_ERROR, flags, 0, 0, body))
        assert 0 <= number <= 4095
    except ProtocolError:
        assert len(body) < 4 or not -4095 <= struct.unpack_from("=i", body)[0] <= 0


def acknowledgement(flags: int, repeated: bytes, text: bytes) -> Message:
    body = struct.pack("=i", -errno.EEXIST) + repeated + attrs.text(1, text)
    return Message(message.NLMSG_ERROR, flags | message.NLM_F_ACK_TLVS, 1, 0, body)


def test_the_kernels_words_are_found_behind_the_repeated_request() -> None:
    header = message.HEADER.pack(24, 16, 0, 1, 0)
    capped = acknowledgement(message.NLM_F_CAPPED, header, b"taken")
    whole = acknowledgement(0, header + bytes(8), b"taken")
    assert message.error_of(capped) == message.error_of(whole) == (errno.EEXIST, "taken")


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_datagram_cut_short_is_refused(cut: int) -> None:
    data = message.encode([Request(16, 0, bytes(24), "x")], 1)
    with pytest.raises(ProtocolError):
        list(message.decode(data[:cut]))


def test_words_are_put_together_from_values() -> None:
    assert Request(16, 0, b"", "set {} up", ("eth0",)).what == "set eth0 up"
