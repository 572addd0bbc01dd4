# SPDX-License-Identifier: Apache-2.0
"""The state of a table as hashes of the kernel's dump, and events of commits.

    digest("t")  ->  {"inet table t": 8a.., "inet chain t c": 01.., ...}

Equal tables have equal digests. The module does not interpret rules: it hashes
the bytes of the kernel's answer, without the attributes that change by
themselves (counters, use counts, handles, expirations). Rules count with their
chain, in order; elements with their set, in any order. Sets whose elements come
and go with packets (timeouts, dynamic) count without elements; all sets do, if
the caller says so.

Not seen: flow tables, and state that the kernel does not show, such as that of
a limit.

Why not the text that nft prints: it is for people, differs from version to
version, and takes libnftables several milliseconds where this takes one.

    generation(sock)     a number that grows with each commit in the namespace
    generation_events    a callback at each commit, and by which program
    element_comment      the comment of one element, by its key
    element_comments     the comments of a set's elements: by them a caller
                         finds its elements, without their encoding

Source: linux/netfilter/nf_tables.h, nfnetlink.h.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from osbase.netlink import attrs, bpf
from osbase.netlink.errors import BatchError, ProtocolError
from osbase.netlink.events import Events
from osbase.netlink.message import Message, Request
from osbase.netlink.transport import (
    DUMP_ATTEMPTS,
    NETLINK_CAP_ACK,
    SOL_NETLINK,
    NetlinkSocket,
    open_raw,
)

NETLINK_NETFILTER: Final = 12

type Digest = Mapping[str, bytes]
"""Hashes by family, kind and name."""

_SUBSYSTEM: Final = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_TABLE: Final = _SUBSYSTEM | 1
_GET_CHAIN: Final = _SUBSYSTEM | 4
_GET_RULE: Final = _SUBSYSTEM | 7
_GET_SET: Final = _SUBSYSTEM | 10
_GET_ELEMENTS: Final = _SUBSYSTEM | 13
_NEW_GENERATION: Final = _SUBSYSTEM | 15
_GET_GENERATION: Final = _SUBSYSTEM | 16
_GET_OBJECT: Final = _SUBSYSTEM | 19
_NFNLGRP_NFTABLES: Final = 7

_HEADER = struct.Struct("=BBH")  # struct nfgenmsg: family, version, resource
_UNSPEC: Final = 0
_FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
FAMILIES: Final = {name: number for number, name in _FAMILIES.items()}
"""Numbers of families, by name: NFPROTO_."""

_TABLE: Final = 1  # NFTA_..._TABLE, NFTA_TABLE_NAME: the same in all messages

_CHAIN_HOOK: Final = 4
_CHAIN_NAME: Final = 3
_CHAIN_POLICY: Final = 5
_CHAIN_USE: Final = 6
_CHAIN_TYPE: Final = 7
_HOOK_NUMBER: Final = 1
_RULE_CHAIN: Final = 2
_RULE_EXPRESSIONS: Final = 4
_SET_NAME: Final = 2
_SET_FLAGS: Final = 3
_SET_TIMEOUT_OR_DYNAMIC: Final = 0x10 | 0x20  # NFT_SET_TIMEOUT, NFT_SET_EVAL
_ELEMENTS_SET: Final = 2
_ELEMENTS: Final = 3
_ELEMENT_KEY: Final = 1
_ELEMENT_USERDATA: Final = 6
_LIST_ELEMENT: Final = 1
_DATA_VALUE: Final = 1
_UDATA_COMMENT: Final = 0  # libnftnl/udata.h: NFTNL_UDATA_SET_ELEM_COMMENT
_OBJECT_NAME: Final = 2
_OBJECT_TYPE: Final = 3
_OBJECT_DATA: Final = 4
_STATEFUL_OBJECTS: Final = {1, 2, 5}  # counter, quota, connection limit
_GEN_ID, _GEN_PROC_PID, _GEN_PROC_NAME = 1, 2, 3
_EXPR_NAME, _EXPR_DATA = 1, 2
_STATEFUL_EXPRESSIONS: Final = {b"counter", b"quota", b"connlimit", b"last"}

# Attributes that change by themselves, or with an object's place in the kernel.
_CHANGES: Final = {
    _GET_TABLE: {3, 4, 5},  # use, handle, padding
    _GET_CHAIN: {2, 6, 8, 9},  # handle, use, counters, padding
    _GET_RULE: {3, 6, 8},  # handle, position, padding
    _GET_SET: {14, 16, 20},  # padding, handle, count
    _GET_ELEMENTS: {5, 7, 8, 11},  # of an element: expiration, expressions, padding
    _GET_OBJECT: {5, 6, 7},  # use, handle, padding
}


def open_socket() -> NetlinkSocket:
    """Open a socket for the functions below. Raises OSError."""
    raw = open_raw(NETLINK_NETFILTER)
    # A refusal does not repeat the request, which may have 64 kB: many of them
    # have no room, and one is more than a read takes.
    raw.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    return NetlinkSocket(raw)


def digest(sock: NetlinkSocket, name: str, *, elements: bool = True) -> Digest:
    """Digest the tables with that name, of every family; {}: there is none.
    elements: those of sets count, too.

    A change meanwhile may be included in part; `generation` shows that. An
    object that is removed meanwhile is not an error. Raises NetlinkError.
    """
    while True:
        try:
            return _digest(sock, name, elements)
        except BatchError as error:
            # A listed object has been removed. The next listing lacks it.
            if error.errors[0].errno != errno.ENOENT:
                raise


def _digest(sock: NetlinkSocket, name: str, elements: bool) -> Digest:
    own = attrs.text(_TABLE, name.encode())
    found: dict[str, hashlib.blake2b] = {}

    def add(family: int, kind: str, what: str, data: bytes) -> None:
        key = f"{_FAMILIES.get(family, family)} {kind} {name}" + (f" {what}" if what else "")
        if key not in found:
            found[key] = hashlib.blake2b(digest_size=16)
        found[key].update(data)

    families = []
    for family, body in _dump(sock, _GET_TABLE, _UNSPEC):
        if body.startswith(own):
            families.append(family)
            add(family, "table", "", _stable(_GET_TABLE, body))
    for family in families:
        for _, body in _dump(sock, _GET_CHAIN, family):
            if body.startswith(own):
                chain = _text(attrs.parse(body).get(_CHAIN_NAME, b""))
                add(family, "chain", chain, _stable(_GET_CHAIN, body))
        for _, body in _dump(sock, _GET_RULE, family, own):
            chain = _text(attrs.parse(body).get(_RULE_CHAIN, b""))
            add(family, "chain", chain, _stable_rule(body))
        for _, body in _dump(sock, _GET_OBJECT, family, own):
            what, data = _stable_object(body)
            add(family, "object", what, data)
        for _, body in _dump(sock, _GET_SET, family, own):
            parsed = attrs.parse(body)
            label = parsed.get(_SET_NAME, b"")
            add(family, "set", _text(label), _stable(_GET_SET, body))
            flags = int.from_bytes(parsed.get(_SET_FLAGS, b""))
            if elements and not flags & _SET_TIMEOUT_OR_DYNAMIC:
                asked = own + attrs.attr(_ELEMENTS_SET, label)
                members = sorted(_elements(_dump(sock, _GET_ELEMENTS, family, asked)))
                add(family, "set", _text(label), b"".join(members))
    return {key: hashed.digest() for key, hashed in found.items()}


def differences(before: Digest, now: Digest) -> list[str]:
    """Return the changes, in words. Pure."""
    found = []
    for key, value in before.items():
        if key not in now:
            found.append(f"{key} is gone")
        elif now[key] != value:
            found.append(f"{key} differs")
    return found + [f"{key} was added" for key in now if key not in before]


@dataclass(frozen=True)
class BaseChain:
    """A chain on a hook. hook: NF_INET_ (family arp: NF_ARP_). accepts: its
    policy is accept. rules: the number of rules.
    """

    family: str
    table: str
    name: str
    kind: str
    hook: int
    accepts: bool
    rules: int


def base_chains(sock: NetlinkSocket) -> list[BaseChain]:
    """Return all base chains of the namespace. Raises NetlinkError."""
    found = []
    for family, body in _dump(sock, _GET_CHAIN, _UNSPEC):
        parsed = attrs.parse(body)
        if _CHAIN_HOOK not in parsed:
            continue
        hook = attrs.parse(parsed[_CHAIN_HOOK])
        found.append(
            BaseChain(
                _FAMILIES.get(family, str(family)),
                _text(parsed.get(_TABLE, b"")),
                _text(parsed.get(_CHAIN_NAME, b"")),
                _text(parsed.get(_CHAIN_TYPE, b"")),
                int.from_bytes(hook.get(_HOOK_NUMBER, b"")),
                int.from_bytes(parsed.get(_CHAIN_POLICY, b"\1")) == 1,
                int.from_bytes(parsed.get(_CHAIN_USE, b"")),
            )
        )
    return found


def generation(sock: NetlinkSocket) -> int:
    """Return the number of the namespace's last commit. Raises NetlinkError."""
    message = sock.get(Request(_GET_GENERATION, 0, _header(_UNSPEC), "get nftables generation"))
    return int.from_bytes(_body(message, _GEN_ID))


def generation_events(
    on_commit: Callable[[str, int], None], on_overrun: Callable[[], None], *, pause_s: float = 0.0
) -> Events:
    """Subscribe to commits; see Events. on_commit: gets the program's name and
    process id, as the kernel has them. Raises OSError.
    """

    def on_message(message: Message) -> None:
        name = attrs.to_text(_body(message, _GEN_PROC_NAME)).decode(errors="replace")
        on_commit(name, int.from_bytes(_body(message, _GEN_PROC_PID)))

    return Events(
        on_message,
        on_overrun,
        groups=(_NFNLGRP_NFTABLES,),
        matches=(bpf.Match(_NEW_GENERATION),),
        protocol=NETLINK_NETFILTER,
        name="nftables-events",
        pause_s=pause_s,
    )


def element_comments(sock: NetlinkSocket, family: str, table: str, name: str) -> list[str] | None:
    """Return the comments of the elements of a set or map, each once, as far
    as they have any; None: there is no such set. family: "inet", "ip", ...
    Raises NetlinkError.

    A commit changes the order in which the kernel lists elements, and it does
    not say so: some are missing then, or come twice. A set without a size may
    also be reordered some time after a commit, which nothing shows. If there is
    a commit during each of ten lists, it returns what was in any of them: few
    elements are missing in one, so none that stayed is likely to miss in all.
    """
    found: dict[str, None] = {}
    asked = attrs.text(_TABLE, table.encode()) + attrs.text(_ELEMENTS_SET, name.encode())
    for _ in range(DUMP_ATTEMPTS):
        before = generation(sock)
        try:
            bodies = [body for _, body in _dump(sock, _GET_ELEMENTS, FAMILIES[family], asked)]
        except BatchError as error:
            if error.errors[0].errno == errno.ENOENT:
                return None
            raise
        quiet = generation(sock) == before
        if quiet:
            found.clear()
        for body in bodies:
            for _, element in attrs.walk(attrs.parse(body).get(_ELEMENTS, b"")):
                found[_comment(attrs.parse(element).get(_ELEMENT_USERDATA, b""))] = None
        if quiet:
            break
    found.pop("", None)
    return list(found)


def element_comment(
    sock: NetlinkSocket, family: str, table: str, name: str, key: bytes
) -> str | None:
    """Return the comment of one element, "" if it has none; None: there is no
    such element, or set. It is looked up, not listed, so commits do not matter.

    key: as the kernel has it, each field of it padded to a multiple of 4 bytes.
    Raises NetlinkError: a key of another length than the set's is EINVAL.
    """
    data = attrs.nested(_ELEMENT_KEY, attrs.attr(_DATA_VALUE, key))
    asked = attrs.text(_TABLE, table.encode()) + attrs.text(_ELEMENTS_SET, name.encode())
    asked += attrs.nested(_ELEMENTS, attrs.nested(_LIST_ELEMENT, data))
    what = "get an element of {}"
    request = Request(_GET_ELEMENTS, 0, _header(FAMILIES[family]) + asked, what, (name,))
    try:
        body = sock.get(request).body[_HEADER.size :]
    except BatchError as error:
        if error.errors[0].errno == errno.ENOENT:
            return None
        raise
    for _, element in attrs.walk(attrs.parse(body).get(_ELEMENTS, b"")):
        return _comment(attrs.parse(element).get(_ELEMENT_USERDATA, b""))
    return None


def _comment(userdata: bytes) -> str:
    """The comment in what libnftables keeps with an element: a type, a length
    and a value, of one byte, one byte and so many (libnftnl/udata.h).
    """
    while len(userdata) > 2:
        kind, length = userdata[0], userdata[1]
        if kind == _UDATA_COMMENT:
            return _text(userdata[2 : 2 + length])
        userdata = userdata[2 + length :]
    return ""


def _header(family: int) -> bytes:
    return _HEADER.pack(family, 0, 0)


def _body(message: Message, kind: int) -> bytes:
    if message.kind != _NEW_GENERATION or len(message.body) < _HEADER.size:
        raise ProtocolError(f"message {message.kind} is not an nftables generation")
    return attrs.parse(message.body[_HEADER.size :]).get(kind, b"")


def _dump(
    sock: NetlinkSocket, kind: int, family: int, asked: bytes = b""
) -> Iterator[tuple[int, bytes]]:
    what = "list nftables objects ({})"
    request = Request(kind, 0, _header(family) + asked, what, (kind & 0xFF,))
    for message in sock.dump(request):
        if len(message.body) < _HEADER.size:
            raise ProtocolError(f"nftables message {message.kind} of {len(message.body)} bytes")
        yield message.body[0], message.body[_HEADER.size :]


def _text(payload: bytes) -> str:
    return attrs.to_text(payload).decode("utf-8", "surrogateescape")


def _stable(kind: int, body: bytes) -> bytes:
    changes = _CHANGES[kind]
    return b"".join(attrs.attr(at, data) for at, data in attrs.walk(body) if at not in changes)


def _stable_rule(body: bytes) -> bytes:
    parts: list[bytes] = []
    for kind, data in attrs.walk(body):
        if kind == _RULE_EXPRESSIONS:
            parts.extend(_stable_expressions(data))
        elif kind not in _CHANGES[_GET_RULE]:
            parts.append(attrs.attr(kind, data))
    return b"".join(parts)


def _stable_expressions(data: bytes) -> Iterator[bytes]:
    for _, expression in attrs.walk(data):
        name = attrs.to_text(attrs.parse(expression).get(_EXPR_NAME, b""))
        yield name if name in _STATEFUL_EXPRESSIONS else expression


def _stable_object(body: bytes) -> tuple[str, bytes]:
    parsed = attrs.parse(body)
    kind = int.from_bytes(parsed.get(_OBJECT_TYPE, b""))
    dropped = _CHANGES[_GET_OBJECT] | ({_OBJECT_DATA} if kind in _STATEFUL_OBJECTS else set())
    kept = (attrs.attr(at, data) for at, data in attrs.walk(body) if at not in dropped)
    return _text(parsed.get(_OBJECT_NAME, b"")), b"".join(kept)


def _elements(bodies: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    for _, body in bodies:
        for _, element in attrs.walk(attrs.parse(body).get(_ELEMENTS, b"")):
            yield _stable(_GET_ELEMENTS, element)
