# SPDX-License-Identifier: Apache-2.0
"""Filters, run by an interpreter here; events_test runs them in the kernel."""

from __future__ import annotations

import struct

import pytest

from osbase.netlink import bpf
from osbase.netlink.bpf import Byte, Match, Program
from osbase.netlink.message import HEADER


def passes(program: bytes, data: bytes) -> bool:
    """Run the program as the kernel does (net/core/filter.c)."""
    code = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    while True:
        kind, yes, no, k = code[at]
        at += 1
        if kind in (0x28, 0x30):
            size = 2 if kind == 0x28 else 1
            if k + size > len(data):
                return False
            value = int.from_bytes(data[k : k + size])
        elif kind == 0x54:
            value &= k
        elif kind == 0x15:
            at += yes if value == k else no
        elif kind == 0x25:
            at += yes if value > k else no
        elif kind == 0x35:
            at += yes if value >= k else no
        elif kind == 0x06:
            return bool(k)
        else:
            raise AssertionError(f"instruction {kind:#x}")


def message(kind: int, *, flags: int = 0, body: bytes = b"") -> bytes:
    """Return a datagram of one message."""
    return HEADER.pack(16 + len(body), kind, flags, 0, 0) + body


def u32(value: int) -> bytes:
    """Encode in the host's order."""
    return struct.pack("=I", value)


@pytest.mark.parametrize(
    ("matches", "data", "expected"),
    [
        ([], message(16), False),
        ([Match(16)], message(16), True),
        ([Match(16)], message(17), False),
        ([Match(16)], message(0x1000), False),
        ([Match(0x0A0F)], message(0x0A0F), True),
        ([Match(16), Match(17)], message(17), True),
        ([Match(16), Match(17)], message(18), False),
        # The range includes its ends.
        *[([Match(25, (Byte(20, low=76, high=78),))], message(25, body=bytes([0] * 4 + [value])),
           76 <= value <= 78) for value in (0, 75, 76, 77, 78, 79, 255)],
        # Bytes without a condition do not matter.
        ([Match(25, (Byte(17, mask=0x0F, low=5, high=5),))], message(25, body=b"\xff\xf5"), True),
        # All conditions of a match count; after a failed one the next follows.
        ([Match(16, (Byte(16, low=1), Byte(17, low=1)))], message(16, body=b"\1\0"), False),
        ([Match(16, (Byte(16, low=1),)), Match(16, (Byte(17, low=1),))],
         message(16, body=b"\0\1"), True),
        # A missing byte.
        ([Match(16, (Byte(40),))], message(16), False),
        # Bits of numbers in the host's order.
        ([Match(24, (bpf.bit_set(6, 2, 0x100),))], message(24, flags=0x100), True),
        ([Match(24, (bpf.bit_set(6, 2, 0x100),))], message(24, flags=0x601), False),
        ([Match(16, (bpf.bit_clear(16, 4, 1),))], message(16, body=u32(0x1002)), True),
        ([Match(16, (bpf.bit_clear(16, 4, 1),))], message(16, body=u32(0x1003)), False),
        ([Match(16, (bpf.bit_set(16, 4, 0x10000),))], message(16, body=u32(0x10000)), True),
        ([Match(80, (Byte(bpf.low_byte(0, 4), high=36),))], message(80, body=bytes(20)), True),
        ([Match(80, (Byte(bpf.low_byte(0, 4), high=36),))], message(80, body=bytes(24)), False),
    ],
)  # fmt: skip
def test_what_passes(matches: list[Match], data: bytes, expected: bool) -> None:
    assert passes(bpf.assemble(matches), data) is expected


def test_a_filter_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="instructions"):
        bpf.assemble(Match(kind) for kind in range(2000))


def test_a_program_jumps_to_its_labels() -> None:
    """It jumps over zero, one and several instructions."""
    program = Program()
    program.load_half(4)
    program.jump_unless_equal(0x1011, "other")
    program.load_byte(6)
    program.mask(0xF0)
    program.jump_if_equal(0x20, "drop")
    program.end(accept=True)
    program.label("other")
    program.jump_if_greater(0x1011, "drop")
    program.end(accept=True)
    program.label("drop")
    program.end(accept=False)
    code = program.assemble()
    for data, expected in (
        (b"\x10\x11\x1f", True),
        (b"\x10\x11\x2f", False),
        (b"\x10\x10\x2f", True),
        (b"\x10\x12\x1f", False),
        (b"\x10", False),
    ):
        assert passes(code, bytes(4) + data) == expected


def test_a_label_that_is_nowhere_is_refused() -> None:
    program = Program()
    program.jump_if_equal(1, "nowhere")
    with pytest.raises(KeyError):
        program.assemble()
