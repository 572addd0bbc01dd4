# SPDX-License-Identifier: Apache-2.0
"""Filters of a socket, in the kernel: classic BPF. Pure, but for the attach.

    attach(sock, [Match(RTM_DELROUTE, (Byte(21, low=76, high=78),))])

A netlink datagram passes if its first message fits one of the matches. A
dropped one wakes no thread, and takes no room in the socket's buffer. `Program`
is for other conditions, and for packet sockets.

Matches compare bytes only: classic BPF loads big-endian, netlink is in the
order of the host, and one byte is the same in both. `low_byte` returns the
offset of a number's lowest bits. In a Program compare with socket.htonl(value).

Source: linux/filter.h, linux/bpf_common.h.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Final, NamedTuple

_SO_ATTACH_FILTER: Final = 26
_LOAD_NUMBER: Final = 0x00  # BPF_LD | BPF_IMM
_LOAD_INDEX: Final = 0x01  # BPF_LDX | BPF_IMM
_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_LOAD_WORD_INDEXED: Final = 0x40  # BPF_LD | BPF_W | BPF_IND
_INDEX_FROM_NUMBER: Final = 0x07  # BPF_MISC | BPF_TAX
_LOAD_HALF: Final = 0x28  # BPF_LD | BPF_H | BPF_ABS
_LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_IF_NOT_LESS: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_SKF_AD_NLATTR: Final = 0xFFFFF000 + 12  # linux/filter.h
_TYPE_OFFSET: Final = 4  # of nlmsg_type
_INSTRUCTION = struct.Struct("=HBBI")
_MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS


class Byte(NamedTuple):
    """A condition: a byte of the datagram, masked, is between low and high."""

    offset: int
    mask: int = 0xFF
    low: int = 0
    high: int = 0xFF


class Match(NamedTuple):
    """A condition: the message has this type, and all bytes fit."""

    kind: int
    bytes: tuple[Byte, ...] = ()


def low_byte(offset: int, size: int) -> int:
    """Return the offset of the lowest byte of a host-order number."""
    return offset if sys.byteorder == "little" else offset + size - 1


def bit_set(offset: int, size: int, bit: int) -> Byte:
    """Return the condition that a bit of a host-order number is set."""
    place = low_byte(offset, size)
    step = 1 if sys.byteorder == "little" else -1
    while bit > 0xFF:
        place, bit = place + step, bit >> 8
    return Byte(place, bit, bit, bit)


def bit_clear(offset: int, size: int, bit: int) -> Byte:
    """Return the condition that a bit of a host-order number is not set."""
    return bit_set(offset, size, bit)._replace(low=0, high=0)


def assemble(matches: Iterable[Match]) -> bytes:
    """Return the program that passes datagrams which fit one of the matches.

    It drops a datagram that ends before a compared byte.
    """
    program: list[tuple[int, int, int, int]] = []
    for match in matches:
        code = [
            (_LOAD_HALF, 0, 0, _TYPE_OFFSET),
            # 0xFF: to the instruction after this match; replaced below.
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
    """Filter a netlink socket from now on. Raises OSError."""
    attach_program(sock, assemble(matches))


def attach_program(sock: socket.socket, program: bytes) -> None:
    """Filter a socket of any family by an assembled program from now on.
    Raises OSError.
    """
    kept = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    descriptor = struct.pack("HL", count, ctypes.addressof(kept))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, descriptor)


class Program:
    """Instructions with labels, for filters that `Match` cannot express. Jumps
    go forward. Offsets are bytes from the beginning of the datagram.
    """

    def __init__(self) -> None:
        """Begin without instructions."""
        self._code: list[tuple[int, str, str, int]] = []  # then, else: labels, or next
        self._labels: dict[str, int] = {}

    def load_word(self, offset: int) -> None:
        """Load 4 bytes, as a big-endian number."""
        self._code.append((_LOAD_WORD, "", "", offset))

    def load_half(self, offset: int) -> None:
        """Load 2 bytes, as a big-endian number."""
        self._code.append((_LOAD_HALF, "", "", offset))

    def load_byte(self, offset: int) -> None:
        """Load one byte."""
        self._code.append((_LOAD_BYTE, "", "", offset))

    def load_attribute(self, offset: int, kind: int) -> None:
        """Load the first 4 bytes, like load_word, of the first netlink
        attribute of the kind; 0 if there is none. offset: where attributes
        begin. The kernel searches for it (SKF_AD_NLATTR, net/core/filter.c).
        """
        self._code += [
            (_LOAD_NUMBER, "", "", offset),
            (_LOAD_INDEX, "", "", kind),
            (_LOAD_WORD, "", "", _SKF_AD_NLATTR),  # its offset, or 0
            (_IF_EQUAL, f"none {len(self._code)}", "", 0),
            (_INDEX_FROM_NUMBER, "", "", 0),
            (_LOAD_WORD_INDEXED, "", "", 4),  # after the attribute's header
        ]
        self.label(f"none {len(self._code) - 6}")

    def mask(self, bits: int) -> None:
        """Clear all other bits of the loaded number."""
        self._code.append((_AND, "", "", bits))

    def jump_if_equal(self, value: int, label: str) -> None:
        """Go to the label if the loaded number is the value."""
        self._code.append((_IF_EQUAL, label, "", value))

    def jump_unless_equal(self, value: int, label: str) -> None:
        """Go to the label if the loaded number is not the value."""
        self._code.append((_IF_EQUAL, "", label, value))

    def jump_if_greater(self, value: int, label: str) -> None:
        """Go to the label if the loaded number is greater."""
        self._code.append((_IF_GREATER, label, "", value))

    def end(self, *, accept: bool) -> None:
        """Pass the datagram or drop it."""
        self.give(0xFFFFFFFF if accept else 0)

    def give(self, value: int) -> None:
        """End with a number, whose meaning is the kind of filter's."""
        self._code.append((_RETURN, "", "", value))

    def label(self, name: str) -> None:
        """Name the place of the next instruction."""
        self._labels[name] = len(self._code)

    def assemble(self) -> bytes:
        """Return the program for attach_program. Raises KeyError for an unknown
        label.
        """
        code = b""
        for index, (operation, then, otherwise, value) in enumerate(self._code):
            near = [self._labels[name] - index - 1 if name else 0 for name in (then, otherwise)]
            code += _INSTRUCTION.pack(operation, *near, value)
        return code
