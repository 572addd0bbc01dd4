# SPDX-License-Identifier: Apache-2.0
"""Generic netlink: headers, and a family that every kernel has."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.netlink import attrs, genl
from osbase.netlink.errors import BatchError, ProtocolError
from osbase.netlink.message import Message
from osbase.netlink.transport import NetlinkSocket


def message(body: bytes, kind: int = 16) -> Message:
    """Return an answer of the kernel."""
    return Message(kind, 0, 1, 1, body)


def test_body_and_payload() -> None:
    attribute = attrs.u32(5, 7)
    made = genl.body(3, 1, attribute)
    assert made[:4] == b"\3\1\0\0"
    assert genl.payload(message(made)) == attribute


def test_the_controller_knows_itself() -> None:
    """Its number is fixed, 16 (linux/genetlink.h, GENL_ID_CTRL)."""
    with NetlinkSocket(genl.open_generic()) as sock:
        assert genl.resolve(sock, "nlctrl") == 16
        with pytest.raises(BatchError, match="find netlink family nobody: ENOENT"):
            genl.resolve(sock, "nobody")


@given(st.binary(max_size=64), st.integers(0, 65535))
def test_garbage_is_a_protocol_error(body: bytes, kind: int) -> None:
    with contextlib.suppress(ProtocolError):
        assert genl.parse_family(message(body, kind)) < 65536
