# SPDX-License-Identifier: Apache-2.0
"""The elements of a set or map, with keys and data as the kernel has them.

For a program that has to know, after a restart, what it made: it decodes keys
that it encoded itself (see `elements`). Where a comment is enough to find an
element, `digest.element_comments` is less work.

Source: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from osbase.netlink import attrs
from osbase.netlink.errors import BatchError, DumpInterrupted, ProtocolError
from osbase.netlink.message import Message, Request
from osbase.netlink.transport import DUMP_ATTEMPTS, NetlinkSocket
from osbase.nftables.digest import FAMILIES, generation

_SUBSYSTEM: Final = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEW: Final = _SUBSYSTEM | 12  # NFT_MSG_NEWSETELEM
_GET: Final = _SUBSYSTEM | 13  # NFT_MSG_GETSETELEM
_HEADER_SIZE: Final = 4  # struct nfgenmsg
_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_
_KEY, _DATA, _END = 1, 2, 10  # NFTA_SET_ELEM_
_VALUE: Final = 1  # NFTA_DATA_VALUE


@dataclass(frozen=True, slots=True)
class Listed:
    """An element. last: of a set of concatenated intervals, the other end of
    the key; else b"". data: of a map; b"" for others, and for verdicts.
    """

    key: bytes
    last: bytes = b""
    data: bytes = b""


def elements(sock: NetlinkSocket, family: str, table: str, name: str) -> list[Listed] | None:
    """Return the elements of a set or map; None: there is none of the name.
    family: "inet", "ip", ... The socket is digest.open_socket's.

    A list is repeated if there was a commit meanwhile, since then elements may
    be missing in it. The set must have a size, else the kernel reorders it at
    any time. Raises NetlinkError: DumpInterrupted, others commit all the time.
    """
    named = attrs.text(_TABLE, table.encode()) + attrs.text(_SET, name.encode())
    body = bytes([FAMILIES[family], 0, 0, 0]) + named
    request = Request(_GET, 0, body, "list elements of {}", (name,))
    for _ in range(DUMP_ATTEMPTS):
        before = generation(sock)
        try:
            messages = sock.dump(request)
        except BatchError as error:
            if error.errors[0].errno == errno.ENOENT:
                return None
            raise
        if generation(sock) == before:
            return [one for message in messages for one in parse(message)]
    raise DumpInterrupted(f"list elements of {name}: commits during each of {DUMP_ATTEMPTS}")


def parse(message: Message) -> Iterator[Listed]:
    """Yield the elements of a message. Pure. Raises ProtocolError."""
    if message.kind != _NEW or len(message.body) < _HEADER_SIZE:
        raise ProtocolError(f"message {message.kind} has no elements of a set")
    body = attrs.parse(message.body[_HEADER_SIZE:])
    for _, element in attrs.walk(body.get(_ELEMENTS, b"")):
        parts = attrs.parse(element)
        values = (attrs.parse(parts.get(kind, b"")) for kind in (_KEY, _END, _DATA))
        found = Listed(*(one.get(_VALUE, b"") for one in values))
        if not found.key:
            raise ProtocolError("an element of a set without a key")
        yield found
