# SPDX-License-Identifier: Apache-2.0
"""Attributes survive encoding and parsing; garbage is an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError

KINDS = st.integers(0, attrs.TYPE_MASK)
ATTRIBUTES = st.lists(st.tuples(KINDS, st.binary(max_size=40)))


@given(ATTRIBUTES)
def test_walk_finds_what_was_encoded(pairs: list[tuple[int, bytes]]) -> None:
    encoded = b"".join(attrs.attr(kind, payload) for kind, payload in pairs)
    assert len(encoded) % 4 == 0
    assert list(attrs.walk(encoded)) == pairs


@given(KINDS, ATTRIBUTES)
def test_nested_holds_its_children(kind: int, pairs: list[tuple[int, bytes]]) -> None:
    encoded = attrs.nested(kind, *(attrs.attr(k, p) for k, p in pairs))
    ((found, payload),) = attrs.walk(encoded)
    assert (found, list(attrs.walk(payload))) == (kind, pairs)


@given(st.binary(max_size=200))
def test_garbage_is_parsed_or_refused(data: bytes) -> None:
    try:
        found = list(attrs.walk(data))
    except ProtocolError:
        return
    assert sum(4 + len(payload) for _, payload in found) <= len(data)


@pytest.mark.parametrize(
    "data",
    [b"\x03\0\0\0", b"\x08\0\x01\0\0\0", b"\xff\xff\x01\0\0\0"],
    ids=["shorter than its header", "longer than the rest", "far too long"],
)
def test_bad_lengths_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="bad length"):
        list(attrs.walk(data))


def test_numbers_must_have_four_bytes() -> None:
    assert attrs.to_u32(b"\x01\0\0\0") == 1
    with pytest.raises(ProtocolError, match="of 3 bytes"):
        attrs.to_u32(b"\x01\0\0")


def test_a_payload_must_fit() -> None:
    attrs.attr(1, bytes(attrs.MAX_PAYLOAD))
    with pytest.raises(ValueError, match="do not fit"):
        attrs.attr(1, bytes(attrs.MAX_PAYLOAD + 1))
