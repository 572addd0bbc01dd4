# SPDX-License-Identifier: Apache-2.0
"""Filters of a netlink socket's events, in the kernel. Pure, but for `attach`.

    attach(sock, [Match(RTM_DELROUTE, (Byte(21, low=76, high=78),))])

A datagram passes if its first message is as one of the matches says. What does
not pass wakes nobody, and takes no room in the socket's buffer.

Only bytes are compared: classic BPF loads big-endian, netlink is in the order
of the host, and one byte is the same in both. `low_byte` says which one of a
number has its lowest bits.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

_SO_ATTACH_FILTER: Final = 26
_LOAD_HALF: Final = 0x28  # BPF_LD | BPF_H | BPF_ABS
_LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_IF_NOT_LESS: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_TYPE_OFFSET: Final = 4  # of nlmsg_type
_INSTRUCTION = struct.Struct("=HBBI")
_MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS


class Byte(NamedTuple):
    """A byte of the datagram, masked, is from low to high."""

    offset: int
    mask: int = 0xFF
    low: int = 0
    high: int = 0xFF


class Match(NamedTuple):
    """A message of this type of which all bytes are so."""

    kind: int
    bytes: tuple[Byte, ...] = ()


def low_byte(offset: int, size: int) -> int:
    """Return the offset of the lowest byte of a host-order number."""
    return offset if sys.byteorder == "little" else offset + size - 1


def bit_set(offset: int, size: int, bit: int) -> Byte:
    """The bit of the host-order number at the offset is set."""
    place = low_byte(offset, size)
    step = 1 if sys.byteorder == "little" else -1
    while bit > 0xFF:
        place, bit = place + step, bit >> 8
    return Byte(place, bit, bit, bit)


def bit_clear(offset: int, size: int, bit: int) -> Byte:
    """The bit of the host-order number at the offset is not set."""
    return bit_set(offset, size, bit)._replace(low=0, high=0)


def assemble(matches: Iterable[Match]) -> bytes:
    """Return the program that passes what is as one of the matches says.

    A byte beyond the end of the datagram drops it.
    """
    program: list[tuple[int, int, int, int]] = []
    for match in matches:
        code = [
            (_LOAD_HALF, 0, 0, _TYPE_OFFSET),
            # 0xFF: to what follows this match; put in below.
            (_IF_EQUAL, 0, 0xFF, socket.htons(match.kind)),
        ]
        for test in match.bytes:
            code += [
                (_LOAD_BYTE, 0, 0, test.offset),
                (_AND, 0, 0, test.mask),
                (_IF_NOT_LESS, 0, 0xFF, test.low),
                (_IF_GREATER, 0xFF, 0, test.high),
            ]
        code.append((_RETURN, 0, 0, 0xFFFFFFFF))
        size = len(code)
        for place, (kind, yes, no, value) in enumerate(code):
            beyond = size - place - 1
            program.append(
                (kind, beyond if yes == 0xFF else yes, beyond if no == 0xFF else no, value)
            )
    program.append((_RETURN, 0, 0, 0))
    if len(program) > _MAX_INSTRUCTIONS:
        raise ValueError(f"a filter of {len(program)} instructions")
    return b"".join(_INSTRUCTION.pack(*one) for one in program)


def attach(sock: socket.socket, matches: Iterable[Match]) -> None:
    """Filter from now on. Raises OSError."""
    program = assemble(matches)
    kept = ctypes.create_string_buffer(program)
    count = len(program) // _INSTRUCTION.size
    descriptor = struct.pack("HL", count, ctypes.addressof(kept))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)
