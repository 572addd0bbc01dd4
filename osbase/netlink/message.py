# SPDX-License-Identifier: Apache-2.0
"""Netlink messages: encode requests, parse replies. Pure.

Source: linux/netlink.h (struct nlmsghdr, struct nlmsgerr).
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_I32 = struct.Struct("=i")

# Types below 16 are netlink's own.
NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_ROOT = 0x100
NLM_F_MATCH = 0x200
NLM_F_DUMP = NLM_F_ROOT | NLM_F_MATCH
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
# Flags of an NLMSG_ERROR: the request is not repeated; attributes follow.
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

_NLMSGERR_ATTR_MSG = 1
_MAX_ERRNO = 4095  # linux/err.h


class Request(NamedTuple):
    """One request: message type, flags (REQUEST and ACK are added when it is
    sent), the encoded body, and a description in words, for errors.

    The words are a format and its values, formatted only for an error:
    formatting addresses costs more than encoding them.
    """

    kind: int
    flags: int
    body: bytes
    words: str
    values: tuple[object, ...] = ()

    @property
    def what(self) -> str:
        """Return a description in words."""
        return self.words.format(*self.values)

    def saying(self, words: str, *values: object) -> Request:
        """Return the same request with another description."""
        return Request(self.kind, self.flags, self.body, words, values)


class Message(NamedTuple):
    """One message of a reply; port is the socket it answers."""

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


def encode(requests: Sequence[Request], first_sequence: int) -> bytes:
    """Encode requests as one datagram; only the last asks for an
    acknowledgement. Sequence numbers count up from `first_sequence`, modulo
    2^32.
    """
    parts: list[bytes] = []
    last = len(requests) - 1
    for index, (kind, flags, body, _, _) in enumerate(requests):
        ack = NLM_F_ACK if index == last else 0
        length = 16 + len(body)
        sequence = (first_sequence + index) & 0xFFFFFFFF
        parts.append(HEADER.pack(length, kind, flags | NLM_F_REQUEST | ack, sequence, 0))
        parts.append(body)
        if length & 3:
            parts.append(bytes(4 - (length & 3)))
    return b"".join(parts)


def decode(data: bytes) -> Iterator[Message]:
    """Yield the messages of a datagram. Raises ProtocolError if truncated."""
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < 16:
            raise ProtocolError(f"{end - offset} bytes after the last message")
        length, kind, flags, sequence, port = HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > end:
            raise ProtocolError(
                f"message {kind} at byte {offset} of {end}: bad length {length} (truncated?)"
            )
        yield Message(kind, flags, sequence, port, data[offset + 16 : offset + length])
        offset += (length + 3) & ~3


def error_of(message: Message) -> tuple[int, str]:
    """Return the positive errno (0: success) and the kernel's text of an
    NLMSG_ERROR or NLMSG_DONE. An invalid text is not an error.
    """
    body = message.body
    if len(body) < 4:
        if message.kind == NLMSG_DONE:
            return 0, ""
        raise ProtocolError(f"an acknowledgement of {len(body)} bytes")
    number = -_I32.unpack_from(body)[0]
    if not 0 <= number <= _MAX_ERRNO:
        raise ProtocolError(f"an acknowledgement with errno {number}")
    if not message.flags & NLM_F_ACK_TLVS:
        return number, ""
    offset = 4
    if message.kind == NLMSG_ERROR:
        if len(body) < 20:
            return number, ""
        repeated = HEADER.unpack_from(body, 4)[0]
        offset = 20 if message.flags & NLM_F_CAPPED else 4 + ((repeated + 3) & ~3)
    try:
        found = attrs.parse(body[offset:]).get(_NLMSGERR_ATTR_MSG, b"")
    except ProtocolError:
        return number, ""
    return number, attrs.to_text(found).decode("utf-8", "replace")
