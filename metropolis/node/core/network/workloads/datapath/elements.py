# SPDX-License-Identifier: Apache-2.0
"""The nftables elements that attachments have.

An element is a key of a set or a map; others make its table. This module
creates the elements of all parts of an attachment in one transaction, finds
them, and removes them in one transaction.

The comment of an element names its attachment:

    mw2e.INDEX.DIGEST.KEY   INDEX: of the link on the host, hex. DIGEST: 8 hex
                            digits of the key and the data, as they were made:
                            an element that the attachment would now make with
                            other data is not taken for its own. KEY: as the
                            kernel has it, hex, so that it can be removed

A program that gives an element other data and copies the comment is not
noticed, since that takes the encoding of keys and data.

So one dump of a set, without parsing keys or data, shows which elements belong
to no attachment, and which of the expected ones may be missing: these are
looked up, since a dump during commits may lack some. Elements without such a
comment are other programs': they are left alone.

An element is created so that the kernel refuses a key that exists, whatever its
data, and with it the whole transaction. It is destroyed by its key, and one
that is gone is no error. That removes any element with the key: so only the
attachment that holds the resource (see the ledger) may remove it. If a
transaction of removals is refused, they are removed one by one.

Why not one element at a time: a failure would leave a part of them.
"""

import errno
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from metropolis.node.core.network.workloads.datapath.host import refusals
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    KernelRefused,
    WorkloadError,
)
from osbase.netlink.errors import BatchError, NetlinkError, errno_name
from osbase.netlink.transport import NetlinkSocket, SocketPool

if TYPE_CHECKING:
    from osbase.nftables.elements import Change

_COMMENT = re.compile(r"mw2e\.([0-9a-f]{1,8})\.[0-9a-f]{8}\.((?:[0-9a-f]{2})+)")


@dataclass(frozen=True, slots=True, eq=False)
class NftSet:
    """A set or a map. family: `inet`. key, data: the types of the fields of its
    keys and its data, of FIELDS. All are constants of the tree, so each is only
    equal to itself.
    """

    family: str
    table: str
    name: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


@dataclass(frozen=True, slots=True)
class Element:
    """An element. key, data: as the kernel has them, see `pack`; data b"": of a
    set.
    """

    set: NftSet
    key: bytes
    data: bytes = b""

    def __str__(self) -> str:
        return f"element {unpack(self.set.key, self.key)} of {self.set}"

    @property
    def value(self) -> str:
        """Its data for people; "there": it has none."""
        return unpack(self.set.data, self.data) if self.data else "there"


@dataclass(frozen=True, slots=True)
class Found:
    """An element, by its comment. ifindex: of the link on the host. key: what
    the comment says; other programs can write comments, too.
    """

    set: NftSet
    comment: str
    ifindex: int
    key: bytes

    def __str__(self) -> str:
        return f"element {unpack(self.set.key, self.key)} of {self.set}"


# ---- Text and keys, pure ----------------------------------------------------


def comment_of(ifindex: int, element: Element) -> str:
    """Return the comment of an element of this link's attachment."""
    digest = blake2b(element.key + element.data, digest_size=4).hexdigest()
    return f"mw2e.{ifindex:x}.{digest}.{element.key.hex()}"


def parse_comment(in_set: NftSet, comment: str) -> Found | None:
    """Return the element with this comment; None: it is not ours."""
    found = _COMMENT.fullmatch(comment)
    if found is None:
        return None
    return Found(in_set, comment, int(found[1], 16), bytes.fromhex(found[2]))


def found_of(ifindex: int, element: Element) -> Found:
    """Return an element of this link's attachment as `present` finds it."""
    return Found(element.set, comment_of(ifindex, element), ifindex, element.key)


@dataclass(frozen=True, slots=True)
class _Field:
    size: int  # bytes
    pack: Callable[[str], bytes]
    unpack: Callable[[bytes], str]


_PROTOCOLS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
_PROTOCOL_NAMES: Final = {number: name for name, number in _PROTOCOLS.items()}

FIELDS: Final[Mapping[str, _Field]] = {
    "ipv4_addr": _Field(4, lambda word: IPv4Address(word).packed, lambda b: str(IPv4Address(b))),
    "ipv6_addr": _Field(16, lambda word: IPv6Address(word).packed, lambda b: str(IPv6Address(b))),
    "inet_proto": _Field(
        1, lambda word: bytes([_PROTOCOLS[word]]), lambda b: _PROTOCOL_NAMES.get(b[0], str(b[0]))
    ),
    "inet_service": _Field(
        2, lambda word: struct.pack(">H", int(word)), lambda b: str(int.from_bytes(b))
    ),
    "mark": _Field(
        4,
        lambda word: struct.pack("=I", int(word)),
        lambda b: str(int.from_bytes(b, sys.byteorder)),
    ),
}
"""The fields of keys and data, by type."""


def pack(types: Sequence[str], text: str) -> bytes:
    """Return a key or data as the kernel has it: of several fields each is
    padded to a multiple of 4 bytes. text: as nft(8) writes it, `tcp . 80`.
    Raises ValueError if it is none of these types.

    Parts that make many elements pack them by themselves.
    """
    try:
        words = zip(types, text.split(" . "), strict=True)
        fields = [FIELDS[kind].pack(word) for kind, word in words]
    except (ValueError, KeyError, struct.error) as error:
        raise ValueError(f"{text!a}: is no {' . '.join(types)}") from error
    if len(fields) == 1:
        return fields[0]
    return b"".join(field + bytes(-len(field) % 4) for field in fields)


def unpack(types: Sequence[str], packed: bytes) -> str:
    """Return the text of a key or of data; in hex if it has another length than
    these types have.
    """
    fields = [FIELDS[kind] for kind in types]
    rest, words = packed, []
    for field in fields:
        size = field.size if len(fields) == 1 else field.size + -field.size % 4
        if len(rest) < size:
            break
        words.append(field.unpack(rest[: field.size]))
        rest = rest[size:]
    return " . ".join(words) if len(words) == len(fields) and not rest else packed.hex()


# ---- The kernel -------------------------------------------------------------


class Elements:
    """The elements in the network namespace of the calling threads.

    sets: all that elements may be in. Thread-safe. `create` and `destroy` of no
    elements, and `present` without sets, do nothing.

    sockets: netfilter's, also for others' requests. They stay open: to close
    one, the kernel waits until what was removed is freed, some 14 ms
    (nft_rcv_nl_event in nf_tables_api.c).
    """

    def __init__(self, sets: Iterable[NftSet]) -> None:
        self._sets = tuple(dict.fromkeys(sets))
        self.sockets = SocketPool(open_one=_open_socket)

    def close(self) -> None:
        """Close the sockets; elements stay. The next use opens new ones."""
        before, self.sockets = self.sockets, SocketPool(open_one=_open_socket)
        before.close()

    def create(self, ifindex: int, elements: Sequence[Element]) -> None:
        """Create the elements of a link's attachment: all, or none.

        Raises AlreadyExists, which names the set and the key, Exhausted if a
        set is full, or KernelRefused.
        """
        if not elements:
            return
        from osbase.nftables import elements as nft

        what = f"create {_words(elements)}"
        wanted = _by_set(
            (one.set, nft.encode(one.key, one.data, comment_of(ifindex, one))) for one in elements
        )
        try:
            with self.sockets.socket() as sock:
                nft.create(sock, wanted)
        except BatchError as error:
            raise self._refusal(what, elements, error) from error
        except (NetlinkError, OSError) as error:
            # If only the answer was lost, they are there.
            with refusals(f"{what}: {error}; then look for them"):
                there = self.made(ifindex, elements)
            self.destroy([one for one in elements if one in there])
            raise KernelRefused(f"{what}: {error}") from error

    def _refusal(self, what: str, elements: Sequence[Element], error: BatchError) -> WorkloadError:
        number = error.errors[0].errno
        if number == errno.ENFILE:
            return Exhausted(f"{what}: the set has no room")
        if number != errno.EEXIST:
            return KernelRefused(f"{what}: {errno_name(number)} ({os.strerror(number)})")
        try:
            taken = self._existing(elements) or list(elements)
        except NetlinkError, OSError:
            taken = list(elements)
        return AlreadyExists(
            f"create {_words(taken)}: exists, and no attachment that this service knows has it; "
            "remove it"
        )

    def destroy(self, elements: Sequence[Element | Found]) -> None:
        """Remove those of the elements that exist. Raises KernelRefused if one
        of them still exists; the others are gone then.

        The cause of a refusal may be one of them: its set is gone, or has
        another type by now, or its comment, by another program, has a key that
        is none.
        """
        if not elements or self._destroy(elements) is None:
            return
        left = [(one, error) for one in elements if (error := self._destroy([one])) is not None]
        with refusals(f"remove {_words(elements)}"):
            there = self._existing([one for one, _ in left])
        left = [(one, error) for one, error in left if one in there]
        if left:
            raise KernelRefused(f"remove {_words([one for one, _ in left])}: {left[0][1]}")

    def _destroy(self, elements: Sequence[Element | Found]) -> Exception | None:
        """Remove the elements in one transaction; return the error."""
        from osbase.nftables import elements as nft

        try:
            unwanted = _by_set((one.set, nft.encode(one.key)) for one in elements)
            with self.sockets.socket() as sock:
                nft.destroy(sock, unwanted)
        except (NetlinkError, OSError) as error:
            return error
        return None

    def _existing[E: Element | Found](self, elements: Iterable[E]) -> list[E]:
        """Return those whose keys exist, ours or others'."""
        with self.sockets.socket() as sock:
            return [one for one in elements if _comment(sock, one.set, one.key) is not None]

    def has(self, one: NftSet, key: bytes) -> bool:
        """Return whether a set has a key, anybody's. Raises NetlinkError."""
        with self.sockets.socket() as sock:
            return _comment(sock, one, key) is not None

    def made(self, ifindex: int, elements: Iterable[Element]) -> set[Element]:
        """Return those of a link's attachment that exist as they were made.
        Each is looked up. Raises NetlinkError.
        """
        with self.sockets.socket() as sock:
            return {
                one
                for one in elements
                if _comment(sock, one.set, one.key) == comment_of(ifindex, one)
            }

    def present(self) -> list[Found]:
        """Return the elements of attachments, by a dump of each set that
        exists. Raises NetlinkError.
        """
        if not self._sets:
            return []
        from osbase.nftables import digest

        with self.sockets.socket() as sock:
            return [
                found
                for one in self._sets
                for comment in digest.element_comments(sock, one.family, one.table, one.name) or ()
                if (found := parse_comment(one, comment)) is not None
            ]


def _open_socket() -> NetlinkSocket:
    from osbase.nftables import digest

    return digest.open_socket()


def _by_set(elements: Iterable[tuple[NftSet, bytes]]) -> list[Change]:
    from osbase.nftables.elements import Change

    encoded: dict[NftSet, list[bytes]] = {}
    for one, element in elements:
        encoded.setdefault(one, []).append(element)
    return [Change(one.family, one.table, one.name, some) for one, some in encoded.items()]


def _comment(sock: NetlinkSocket, one: NftSet, key: bytes) -> str | None:
    """Return an element's comment; None: there is none with such a key, or the
    set has other keys by now.
    """
    from osbase.nftables import digest

    try:
        return digest.element_comment(sock, one.family, one.table, one.name, key)
    except BatchError as error:
        if error.errors[0].errno == errno.EINVAL:
            return None
        raise


def _words(elements: Sequence[Element | Found]) -> str:
    """Name the first, and say how many more there are."""
    more = f" and {len(elements) - 1} more" if len(elements) > 1 else ""
    return f"{elements[0]}{more}"
