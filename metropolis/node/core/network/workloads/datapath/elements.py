# SPDX-License-Identifier: Apache-2.0
"""The nftables elements that attachments have.

An element is a key of a set or a map; others make its table. This module
creates the elements of all parts of an attachment in one transaction, finds
them, and removes them in one transaction. If no attachment has elements,
libnftables is not loaded.

The comment of an element names its attachment:

    mw2e.INDEX.DIGEST.KEY   INDEX: of the link on the host, hex. DIGEST: 8 hex
                            digits of the key and the data, as they were made:
                            an element that the attachment would now make with
                            other data is not taken for its own. KEY: as in the
                            command, so that it can be removed

A program that gives an element other data and copies the comment is not
noticed, since that takes the encoding of keys and data.

So one dump of a set, without parsing keys or data, shows which elements belong
to no attachment, and which of the expected ones may be missing: these are
looked up, since a dump during commits may lack some. Elements without such a
comment are other programs': they are left alone.

nft's `create` is used, not `add`: the kernel refuses a key that exists,
whatever its data, and with it the whole transaction. nft's `destroy` removes
elements, and ignores keys that are gone. It removes any element with the key:
so only the attachment that holds the resource (see the ledger) may remove it.
If a destroy is refused, the elements that exist by their comments are removed
one by one.

Why not one element at a time: a failure would leave a part of them.
"""

import errno
import hashlib
import itertools
import re
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from metropolis.node.core.network.workloads.datapath.host import refusals
from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    KernelRefused,
)
from osbase.netlink.errors import BatchError

if TYPE_CHECKING:
    from osbase.netlink.transport import NetlinkSocket
    from osbase.nftables import Nftables

# A comment has at most 128 characters (NFTNL_UDATA_COMMENT_MAXLEN).
_KEY_MAX = 128 - len("mw2e.ffffffff.01234567.")
_WORDS = re.compile(r"[0-9A-Za-z.:/_ -]+")
_COMMENT = re.compile(r"mw2e\.([0-9a-f]{1,8})\.[0-9a-f]{8}\.([0-9A-Za-z.:/_ -]+)")
# strerror(EEXIST) and (ENFILE), in the text of libnftables.
_EXISTS = "File exists"
_FULL = "Too many open files in system"


@dataclass(frozen=True, slots=True)
class NftSet:
    """A set or a map. family: `inet`. key: the types of the fields of its keys,
    of KEY_TYPES. All names are constants of the tree.
    """

    family: str
    table: str
    name: str
    key: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


@dataclass(frozen=True, slots=True)
class Element:
    """An element. key, data: as nft(8) writes them, `tcp . 80`, `10.0.0.1 .
    8080`; data "": of a set.
    """

    set: NftSet
    key: str
    data: str = ""

    def __str__(self) -> str:
        return f"element {self.key} of {self.set}"


@dataclass(frozen=True, slots=True)
class Found:
    """An element, by its comment. ifindex: of the link on the host."""

    set: NftSet
    comment: str
    ifindex: int
    key: str

    def __str__(self) -> str:
        return f"element {self.key} of {self.set}"


# ---- Text, pure -------------------------------------------------------------


def comment_of(ifindex: int, element: Element) -> str:
    """Return the comment of an element of this link's attachment."""
    digest = hashlib.blake2b(f"{element.key}\0{element.data}".encode(), digest_size=4)
    return f"mw2e.{ifindex:x}.{digest.hexdigest()}.{element.key}"


def parse_comment(in_set: NftSet, comment: str) -> Found | None:
    """Return the element with this comment; None: it is not ours."""
    found = _COMMENT.fullmatch(comment)
    return None if found is None else Found(in_set, comment, int(found[1], 16), found[2])


def found_of(ifindex: int, element: Element) -> Found:
    """Return an element of this link's attachment as `present` finds it."""
    return Found(element.set, comment_of(ifindex, element), ifindex, element.key)


def create_text(ifindex: int, elements: Iterable[Element]) -> str:
    """Return the commands that create elements of this link's attachment: one
    line per set. Raises ValueError for a key or data that cannot be written.
    """
    texts: dict[NftSet, list[str]] = {}
    for one in elements:
        for word in (one.key, one.data) if one.data else (one.key,):
            if not _WORDS.fullmatch(word) or len(one.key) > _KEY_MAX:
                raise ValueError(f"{one}: cannot be written: {word!a}")
        data = f" : {one.data}" if one.data else ""
        text = f'{one.key} comment "{comment_of(ifindex, one)}"{data}'
        texts.setdefault(one.set, []).append(text)
    return _commands("create", texts)


def destroy_text(elements: Iterable[Element | Found]) -> str:
    """Return the commands that remove elements."""
    texts: dict[NftSet, list[str]] = {}
    for one in elements:
        texts.setdefault(one.set, []).append(one.key)
    return _commands("destroy", texts)


def _commands(verb: str, texts: dict[NftSet, list[str]]) -> str:
    return "\n".join(f"{verb} element {one} {{ {', '.join(some)} }}" for one, some in texts.items())


_PROTOCOLS: Final = {"tcp": 6, "udp": 17, "sctp": 132}

KEY_TYPES: Final[Mapping[str, Callable[[str], bytes]]] = {
    "ipv4_addr": lambda word: IPv4Address(word).packed,
    "ipv6_addr": lambda word: IPv6Address(word).packed,
    "inet_proto": lambda word: bytes([_PROTOCOLS[word], 0, 0, 0]),
    "inet_service": lambda word: struct.pack(">Hxx", int(word)),
    "mark": lambda word: struct.pack("=I", int(word)),
}
"""Encoders of fields, each padded to 4 bytes. Ports are in network byte order,
marks in the host's.
"""


def encode_key(types: Sequence[str], key: str) -> bytes:
    """Return a key as the kernel has it. Raises ValueError or KeyError."""
    return b"".join(
        KEY_TYPES[kind](word) for kind, word in zip(types, key.split(" . "), strict=True)
    )


def refused_key(error: str) -> str:
    """Return the key that libnftables points at, "" if it points at none, or
    at the whole command.

    error: its text, which repeats the command, and has a `^` below the element:

        Error: Could not process rule: File exists
        create element inet t s { 7 comment "x", 2 comment "y" }
                                                 ^
    """
    lines = error.split("\n")
    for command, pointer in itertools.pairwise(lines):
        at = pointer.find("^")
        if at > command.find("{ ") >= 0 and not pointer.strip("^ "):
            element = command[: at + 1].count(",")
            texts = command.partition("{ ")[2].removesuffix(" }").split(", ")
            return texts[element].partition(" comment")[0]
    return ""


# ---- The kernel -------------------------------------------------------------


class Elements:
    """The elements in the network namespace of the calling threads.

    sets: all that elements may be in. Thread-safe. `create` and `destroy` of no
    elements, and `present` without sets, do nothing.
    """

    def __init__(self, sets: Iterable[NftSet]) -> None:
        self._sets = tuple(dict.fromkeys(sets))
        self._lock = threading.Lock()
        self._context: Nftables | None = None

    def close(self) -> None:
        """Close libnftables; elements stay. The next use opens it again."""
        with self._lock:
            context, self._context = self._context, None
        if context is not None:
            context.close()

    def create(self, ifindex: int, elements: Sequence[Element]) -> None:
        """Create the elements of a link's attachment: all, or none.

        Raises AlreadyExists, which names the set and the key, Exhausted if a
        set is full, or KernelRefused.
        """
        if not elements:
            return
        if (error := self._apply(create_text(ifindex, elements))) is None:
            return
        if _FULL in error:
            raise Exhausted(f"create {_words(elements)}: the set has no room")
        if _EXISTS not in error:
            # If only the answer was lost, they are there.
            with refusals(f"create {_words(elements)}: {_one_line(error)}; then look for them"):
                there = self.made(ifindex, elements)
            self.destroy([one for one in elements if one in there])
            raise KernelRefused(f"create {_words(elements)}: {_one_line(error)}")
        key = refused_key(error)
        taken = [one for one in elements if one.key == key] or elements
        raise AlreadyExists(
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
        if not elements or self._apply(destroy_text(elements)) is None:
            return
        errors = {
            (one.set, one.key): error
            for one in self._remaining(elements)
            if (error := self._apply(destroy_text([one]))) is not None
        }
        left = [one for one in self._remaining(elements) if (one.set, one.key) in errors]
        if left:
            error = errors[left[0].set, left[0].key]
            raise KernelRefused(f"remove {_words(left)}: {_one_line(error)}")

    def _remaining(self, elements: Sequence[Element | Found]) -> list[Element | Found]:
        """Return those that exist, by the comments of attachments."""
        from osbase.nftables import digest

        with refusals(f"remove {_words(elements)}"), digest.open_socket() as sock:
            return [
                one
                for one in elements
                if parse_comment(one.set, self._comment(sock, one.set, one.key) or "")
            ]

    def made(self, ifindex: int, elements: Iterable[Element]) -> set[Element]:
        """Return those of a link's attachment that exist as they were made.
        Each is looked up. Raises NetlinkError.
        """
        from osbase.nftables import digest

        with digest.open_socket() as sock:
            return {
                one
                for one in elements
                if self._comment(sock, one.set, one.key) == comment_of(ifindex, one)
            }

    def _comment(self, sock: NetlinkSocket, one: NftSet, key: str) -> str | None:
        """Return an element's comment; None: there is none with such a key, or
        the set has other keys by now.
        """
        from osbase.nftables import digest

        try:
            packed = encode_key(one.key, key)
        except ValueError, KeyError:
            return None  # another program's comment
        try:
            return digest.element_comment(sock, one.family, one.table, one.name, packed)
        except BatchError as error:
            if error.errors[0].errno == errno.EINVAL:
                return None
            raise

    def present(self) -> list[Found]:
        """Return the elements of attachments, by a dump of each set that
        exists. Raises NetlinkError; DumpInterrupted if there was a commit
        during each dump.
        """
        return [
            found
            for one in self._sets
            for comment in self._comments(one) or ()
            if (found := parse_comment(one, comment)) is not None
        ]

    def _comments(self, one: NftSet) -> list[str] | None:
        from osbase.nftables import digest

        with digest.open_socket() as sock:
            return digest.element_comments(sock, one.family, one.table, one.name)

    def _apply(self, text: str) -> str | None:
        """Commit a transaction. Return the error of a refusal; None: done.

        The first call loads the library.
        """
        from osbase.nftables import Nftables, NftablesError

        try:
            with self._lock:
                if self._context is None:
                    self._context = Nftables()
                context = self._context
            context.apply(text)
        except NftablesError as error:
            return str(error)
        return None


def _words(elements: Sequence[Element | Found]) -> str:
    """Name the first, and say how many more there are."""
    more = f" and {len(elements) - 1} more" if len(elements) > 1 else ""
    return f"{elements[0]}{more}"


def _one_line(error: str) -> str:
    return error.partition("\n")[0].removeprefix("Error: ")
