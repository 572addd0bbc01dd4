# SPDX-License-Identifier: Apache-2.0
"""The names written on a host-side link, and their parser. Pure.

    name        wlXXXXXXXXXXXXX   a hash of workload id and interface name, so
                                  that the kernel allows each pair once
    alias       the workload id, for people
    altnames    mw3k.NETNS.IF     the key, so that the kernel allows each
                                  (namespace, interface) once, too. NETNS:
                                  cookie, 16 hex digits, the lowest first
                mw2p.INDEX.LNM.TEXT
                                  a text, in pieces. L: a letter, which text it
                                  is; N: number of the piece, from 1; M: how
                                  many there are; one digit each
                mw3r.INDEX.MAC.DIGEST.IPV4.IPV6.MTU
                                  the record: host index, MAC of the end
                                  inside, digest of the request, addresses,
                                  MTU; all hex, an absent address empty

Letters of texts:

    i   the workload id: an alias can be changed by anybody, by mistake
    o   who asked for the attachment: `api`, or `cni NETWORK`
    b   bandwidth limits: see datapath.bandwidth
    h   host ports: see datapath.host_ports
    n   reserved: what network policy knows the workload as
    all others are those of the parts of attachments (see workloads.parts) that
    the datapath is given

A text of which a piece is missing is lost as a whole: the attachment is without
that part then, and a repeated request is refused with that reason.

`mw3` is the version of the format; texts are as in version 2, so they have its
number. An alternative name has at most 127 bytes,
of any characters but NUL and `/`; keys have at most 36, records 93, pieces of
texts 127. INDEX makes them unique on the host. All of them are added by one
message, the key first, since it is the one that can be refused, and the record
last: where it is, all is.

A name that begins as these do and is not understood, be it of another version
or a text with an unknown letter, says that a newer version made the link, and
that there is more to it than can be seen: such a link is left alone.

The kernel finds a name by a hash of its first 16 bytes (dev_name_hash,
net/core/dev.c), and compares it with all others of the same hash. So these have
to differ: by index, or by the lowest digits of the cookie. The kernel counts
cookies, so the highest digits are 0 everywhere.

Version 2 has the highest digit of the cookie first: `mw2k.NETNS.IF`,
`mw2r.INDEX…`. Version 1 does that, too, and has no texts and no MTU:
`mw1k.NETNS.IF`, `mw1r.INDEX.MAC.DIGEST.IPV4.IPV6`. Both take a newer version's
keys and records as what they must leave alone. Links that they made keep their
names: they are adopted with what they have.
"""

import hashlib
import re
import struct
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import IPAddress, PartText
from metropolis.node.core.network.workloads.parts import TEXT_MAX
from osbase.netlink.ifla import ALTIFNAMSIZ

VERSION = 3
_TEXTS_VERSION = 2  # of pieces of texts

ID_PART = "i"
OWNER_PART = "o"
OWN_LETTERS = frozenset((ID_PART, OWNER_PART))

# Length of a piece's text, with the longest index before it.
PIECE_MAX = ALTIFNAMSIZ - 1 - len("mw2p.ffffffff.i11.")
_OWN_TEXT_MAX = 255  # characters of ASCII, in at most three pieces

_KEY = re.compile(r"mw([123])k\.([0-9a-f]{16})\.(.{1,15})", re.DOTALL)
_RECORD = re.compile(
    r"mw([123])r\.([0-9a-f]{1,8})\.([0-9a-f]{12})\.([0-9a-f]{16})"
    r"\.([0-9a-f]{8})?\.([0-9a-f]{32})?(?:\.([0-9a-f]{1,8}))?"
)
_PART = re.compile(r"mw2p\.([0-9a-f]{1,8})\.([a-z])([1-9])([1-9])\.(.*)", re.DOTALL)
_ANY = re.compile(r"mw([0-9]+)([a-z]+)\.", re.DOTALL)
_HOST_INTERFACE = re.compile(r"wl[0-9a-f]{13}")


def host_interface(workload_id: str, if_name: str) -> str:
    """Return the link's name on the host: 15 characters, 52 bits of hash."""
    # The length first, so that no two pairs have the same text.
    text = struct.pack(">H", len(workload_id)) + workload_id.encode() + if_name.encode()
    return "wl" + hashlib.blake2b(text, digest_size=8).hexdigest()[:13]


def is_host_interface(name: str) -> bool:
    """Return whether a link's name has the form of host_interface's."""
    return _HOST_INTERFACE.fullmatch(name) is not None


def key_altname(record: Record) -> str:
    """Return the name that two attachments cannot share."""
    cookie = _digits(f"{record.netns_cookie:016x}", record.version)
    return f"mw{record.version}k.{cookie}.{record.if_name}"


def _digits(cookie: str, version: int) -> str:
    """Turn a cookie's digits into those of a key, and back."""
    return cookie if version < 3 else cookie[::-1]


def record_altname(record: Record) -> str:
    """Return the name by which a restart finds the link, however changed."""
    by_version = {ip.version: ip.packed.hex() for ip in record.ips}
    packed = f"{by_version.get(4, '')}.{by_version.get(6, '')}"
    mtu = "" if record.version == 1 else f".{record.mtu:x}"
    return (
        f"mw{record.version}r.{record.host_ifindex:x}.{record.mac.hex()}.{record.request.hex()}"
        f".{packed}{mtu}"
    )


def part_altnames(ifindex: int, letter: str, text: str) -> tuple[str, ...]:
    """The names of a part. ValueError: more text than fits."""
    longest = _longest(letter)
    if not text or not is_part_text(text, longest):
        raise ValueError(f"part {letter} {text!a}: must be 1 to {longest} of printable ASCII")
    count = pieces_of(text)
    return tuple(
        [
            part_prefix(ifindex, letter, at + 1, count) + text[at * PIECE_MAX :][:PIECE_MAX]
            for at in range(count)
        ]
    )


def pieces_of(text: str) -> int:
    """Return the number of names for a text."""
    return -(-len(text) // PIECE_MAX)


def part_prefix(ifindex: int, letter: str, number: int = 1, count: int = 1) -> str:
    """Return a part's name, up to its text."""
    return f"mw2p.{ifindex:x}.{letter}{number}{count}."


def altnames_of(record: Record) -> tuple[str, ...]:
    """Return all alternative names of an attachment's link, in the order of
    adding them.
    """
    if record.version == 1:
        return key_altname(record), record_altname(record)
    index = record.host_ifindex
    parts = part_altnames(index, ID_PART, record.workload_id)
    if record.owner:
        parts += part_altnames(index, OWNER_PART, record.owner)
    for letter, text in record.parts:
        parts += part_altnames(index, letter, text)
    return key_altname(record), *parts, record_altname(record)


def is_link_of(record: Record, name: str, altnames: Iterable[str]) -> bool:
    """Return whether a link that has a record's index is the record's: by its
    name, by the record, or by the workload id. Not by the key, which the next
    interface in the namespace may have.
    """
    found = {name, *altnames}
    if record.host_interface in found or record_altname(record) in found:
        return True
    index, workload_id = record.host_ifindex, record.workload_id
    return record.version != 1 and found.issuperset(part_altnames(index, ID_PART, workload_id))


@dataclass(frozen=True, slots=True)
class LinkNames:
    """What the alternative names of a link of ours say.

    workload_id, owner: "" when the link does not say, or not all of it. mtu:
    None in version 1. parts: those that are whole, known or not, by letter.
    """

    netns_cookie: int
    if_name: str
    ifindex: int
    mac: bytes
    request: bytes
    ips: tuple[IPAddress, ...]
    version: int = VERSION
    workload_id: str = ""
    owner: str = ""
    mtu: int | None = None
    parts: tuple[PartText, ...] = ()


def parse_altnames(altnames: Iterable[str]) -> LinkNames | None:
    """None when key and record are not both there, once, of one version, and
    well-formed.
    """
    altnames = tuple(altnames)
    keys = [found for name in altnames if (found := _KEY.fullmatch(name))]
    records = [found for name in altnames if (found := _RECORD.fullmatch(name))]
    if len(keys) != 1 or len(records) != 1 or not _is_text(keys[0][3]):
        return None
    number, index, mac, request, ipv4, ipv6, mtu = records[0].groups()
    ips: list[IPAddress] = []
    if ipv4:
        ips.append(IPv4Address(bytes.fromhex(ipv4)))
    if ipv6:
        ips.append(IPv6Address(bytes.fromhex(ipv6)))
    version = int(number)
    if not ips or keys[0][1] != number or (mtu is None) is not (version == 1):
        return None
    texts = _texts(altnames, int(index, 16))
    return LinkNames(
        netns_cookie=int(_digits(keys[0][2], version), 16),
        if_name=keys[0][3],
        ifindex=int(index, 16),
        mac=bytes.fromhex(mac),
        request=bytes.fromhex(request),
        ips=tuple(ips),
        version=version,
        workload_id=texts.pop(ID_PART, ""),
        owner=texts.pop(OWNER_PART, ""),
        mtu=None if mtu is None else int(mtu, 16),
        parts=() if version == 1 else tuple(sorted(texts.items())),
    )


def _texts(altnames: Iterable[str], ifindex: int) -> dict[str, str]:
    """The texts by letter: those of which every piece is there, once."""
    pieces: dict[str, list[tuple[int, int, str]]] = {}
    for name in altnames:
        part = _PART.fullmatch(name)
        if part is not None and int(part[1], 16) == ifindex:
            pieces.setdefault(part[2], []).append((int(part[3]), int(part[4]), part[5]))
    return {letter: text for letter in pieces if (text := _joined(letter, sorted(pieces[letter])))}


def _joined(letter: str, pieces: Sequence[tuple[int, int, str]]) -> str:
    """The text of sorted pieces: number, count, text; "" unless it is whole."""
    count = len(pieces)
    if [piece[:2] for piece in pieces] != [(number, count) for number in range(1, count + 1)]:
        return ""
    text = "".join(piece for _, _, piece in pieces)
    return text if is_part_text(text, _longest(letter)) else ""


def is_letter(letter: str) -> bool:
    """Return whether it can say which text a name has: one of a to z."""
    return len(letter) == 1 and "a" <= letter <= "z"


def is_part_text(text: str, longest: int = _OWN_TEXT_MAX) -> bool:
    """Whether the text may be a workload id or an owner; or, with another
    length, that of a part.
    """
    return len(text) <= longest and text.isascii() and text.isprintable()


def _longest(letter: str) -> int:
    return _OWN_TEXT_MAX if letter in OWN_LETTERS else TEXT_MAX


def _is_text(name: str) -> bool:
    """Return False for bytes that are not UTF-8, which no request has."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def bears_record(altnames: Iterable[str]) -> bool:
    """Return whether any of the names is a key, a part or a record, of any
    version, whole or broken.
    """
    return any(_ANY.match(name) for name in altnames)


def is_newer(altnames: Iterable[str], letters: Container[str] = ()) -> bool:
    """Whether any of the names is of a version, or a part, that this version
    does not know. letters: of the parts that it knows.
    """
    return any(
        _is_unknown(name, found, letters) for name in altnames if (found := _ANY.match(name))
    )


def _is_unknown(name: str, found: re.Match[str], letters: Container[str]) -> bool:
    version, kind = found.groups()
    if version == "1":
        return False  # there will be no other of those
    if version not in (str(_TEXTS_VERSION), str(VERSION)):
        return True
    if kind == "p":
        part = _PART.fullmatch(name)
        return part is None or (part[2] not in OWN_LETTERS and part[2] not in letters)
    return (_KEY if kind == "k" else _RECORD).fullmatch(name) is None


def addresses_in(altnames: Iterable[str]) -> tuple[IPAddress, ...]:
    """Return the addresses in records, as far as this version can read them."""
    ips: list[IPAddress] = []
    for name in altnames:
        fields = name.split(".")
        if re.fullmatch(r"mw[0-9]+r", fields[0]) and len(fields) >= 6:
            for kind, digits, field in (
                (IPv4Address, 8, fields[4]),
                (IPv6Address, 32, fields[5]),
            ):
                if re.fullmatch(rf"[0-9a-f]{{{digits}}}", field):
                    ips.append(kind(bytes.fromhex(field)))
    return tuple(ips)
