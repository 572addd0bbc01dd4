# SPDX-License-Identifier: Apache-2.0
"""Elements of sets and maps, created and destroyed without libnftables.

    encode(key, data, comment)         an element
    encode_range(first, last)          one of a set of intervals
    create(sock, [Change(...), ...])   all of them, or none
    destroy(sock, [Change(...), ...])  those that exist; others are no error
    exchange(sock, destroyed, added)   both at once

A transaction is one send. libnftables first lists all sets and chains of the
host, and the elements of many sets: with the node's own rules loaded, one
element takes it 0.6 ms, and more with a firewall's. The kernel needs none of
that.

The socket is digest.open_socket's. Keep it: to close it, the kernel waits until
what was destroyed is freed. Keys and data are as the kernel has them: of
several fields each is padded to a multiple of 4 bytes; addresses and ports are
in network byte order, marks in the host's.

Source: linux/netfilter/nfnetlink.h and nf_tables.h; libnftnl/udata.h.
"""

from __future__ import annotations

import functools
import itertools
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from osbase.netlink import attrs
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Request
from osbase.netlink.transport import NetlinkSocket
from osbase.nftables.digest import FAMILIES

COMMENT_MAX: Final = 128
"""Characters, NFTNL_UDATA_COMMENT_MAXLEN."""

_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 16, 17  # NFNL_MSG_BATCH_
_NEW: Final = _SUBSYSTEM << 8 | 12  # NFT_MSG_NEWSETELEM
_DESTROY: Final = _SUBSYSTEM << 8 | 30  # NFT_MSG_DESTROYSETELEM, since Linux 6.3
_HEADER: Final = struct.Struct("=BBH")  # struct nfgenmsg; the last is big-endian

_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_
_LIST_ELEMENT: Final = 1  # NFTA_LIST_ELEM
_KEY, _DATA, _USERDATA, _END = 1, 2, 6, 10  # NFTA_SET_ELEM_
_VALUE: Final = 1  # NFTA_DATA_VALUE
_COMMENT: Final = 0  # NFTNL_UDATA_SET_ELEM_COMMENT

# The headers of an attribute and of the one in it, or of user data.
_NESTED: Final = struct.Struct("=HHHH")
_COMMENTED: Final = struct.Struct("=HHBB")
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")

# The length of an attribute is 16 bits; an element has some 200 bytes at most.
_AT_ONCE: Final = 256
# More than a socket may send by default, net.core.wmem_default.
_LARGE: Final = 100_000


@dataclass(frozen=True, slots=True)
class Change:
    """Elements of one set or map. family: "inet", "ip", ... elements: as from
    `encode`.
    """

    family: str
    table: str
    name: str
    elements: Sequence[bytes]

    def __str__(self) -> str:
        return f"{len(self.elements)} elements of {self.family} {self.table} {self.name}"


def encode(key: bytes, data: bytes = b"", comment: str = "") -> bytes:
    """Return an element. data: of a map. comment: of at most COMMENT_MAX ASCII
    characters.
    """
    # An attach with a port makes four, between much else: so without calls.
    size = len(key)
    body = _NESTED.pack(8 + (size + 3 & ~3), _KEY | attrs.NESTED, 4 + size, _VALUE) + key
    body += _PADDING[size & 3]
    if data:
        size = len(data)
        body += _NESTED.pack(8 + (size + 3 & ~3), _DATA | attrs.NESTED, 4 + size, _VALUE) + data
        body += _PADDING[size & 3]
    if comment:
        text = comment.encode() + b"\0"
        size = len(text)
        body += _COMMENTED.pack(6 + size, _USERDATA, _COMMENT, size) + text
        body += _PADDING[size + 2 & 3]
    return attrs.HEADER.pack(4 + len(body), _LIST_ELEMENT | attrs.NESTED) + body


def encode_range(first: bytes, last: bytes) -> bytes:
    """Return an element of a set with concatenated keys and intervals: each
    field is between those of both keys, which are included. Not for sets with
    one field, whose intervals the kernel has as two elements.
    """
    body = b"".join(
        attrs.nested(kind, attrs.attr(_VALUE, key)) for kind, key in ((_KEY, first), (_END, last))
    )
    return attrs.nested(_LIST_ELEMENT, body)


def create(sock: NetlinkSocket, changes: Sequence[Change]) -> None:
    """Create all elements, in one transaction.

    Raises BatchError, and none is created then: EEXIST, a key exists, whatever
    its data; ENOENT, a set does not; ENFILE, a set has no room; EINVAL, a key
    has another length. Other NetlinkErrors: it is not known.
    """
    flags = NLM_F_CREATE | NLM_F_EXCL
    _commit(sock, [one for change in changes for one in _requests(_NEW, flags, change, "create")])


def destroy(sock: NetlinkSocket, changes: Sequence[Change]) -> None:
    """Destroy those of the elements that exist, by their keys, in one
    transaction. Raises as `create`.
    """
    _commit(sock, [one for change in changes for one in _requests(_DESTROY, 0, change, "destroy")])


def exchange(
    sock: NetlinkSocket,
    destroyed: Sequence[Change],
    added: Sequence[Change],
    emptied: Sequence[Change] = (),
) -> None:
    """Destroy elements, then add others, in one transaction: a packet sees what
    was before, or what is after. emptied: sets of which all elements are
    destroyed, first; their `elements` do not matter.

    What is destroyed need not exist. What is added may exist as it is: so a
    transaction whose end is not known can be repeated. Raises as `create`, but
    EEXIST: a key exists with other data; ENOTEMPTY: an interval overlaps
    another in a part.
    """
    requests = [
        Request(_DESTROY, 0, _start(one.family, one.table, one.name), "empty {}", (one,))
        for one in emptied
    ]
    requests += [one for change in destroyed for one in _requests(_DESTROY, 0, change, "destroy")]
    requests += [one for change in added for one in _requests(_NEW, NLM_F_CREATE, change, "add")]
    _commit(sock, requests)


def _requests(kind: int, flags: int, change: Change, verb: str) -> Iterator[Request]:
    start = _start(change.family, change.table, change.name)
    for some in itertools.batched(change.elements, _AT_ONCE, strict=False):
        body = start + attrs.nested(_ELEMENTS, b"".join(some))
        yield Request(kind, flags, body, f"{verb} {{}}", (change,))


@functools.lru_cache(maxsize=64)
def _start(family: str, table: str, name: str) -> bytes:
    """Return the start of a message about elements of a set."""
    named = attrs.text(_TABLE, table.encode()) + attrs.text(_SET, name.encode())
    return _HEADER.pack(FAMILIES[family], 0, 0) + named


def _commit(sock: NetlinkSocket, requests: Sequence[Request]) -> None:
    if not requests:
        return
    bound = _HEADER.pack(socket.AF_UNSPEC, 0, socket.htons(_SUBSYSTEM))
    begin = Request(_BATCH_BEGIN, 0, bound, "begin a transaction of nftables")
    # Acknowledged after the commit, if that succeeds; since Linux 6.10.
    end = Request(_BATCH_END, 0, bound, "commit a transaction of nftables")
    size = sum(len(one.body) for one in requests)
    if size > _LARGE:
        sock.make_room(2 * size)
    sock.batch([begin, *requests, end], whole=True)
