# SPDX-License-Identifier: Apache-2.0
"""The elements of network policy in the kernel.

    kernel = PolicyKernel()
    kernel.apply(removed, added, policed=True)    one transaction
    kernel.replace(tables, policed=True)          the same, whatever is loaded
    kernel.read()                                 what is loaded

`rules.policy` has the sets and the rules that look into them, and explains
them; here are the encodings of keys. Rules are never parsed: after a restart
the sets are listed, by name.

    identities4, identities6   address -> identity
    isolated                   source << 16 if isolated in egress; destination
                               if isolated in ingress
    isolated_back              the same of the other direction: destination if
                               isolated in egress, source << 16 if in ingress
    pairs                      source << 16 | destination
    pair_protocols             the same . protocol            all of its ports
    pair_ports, pair_ranges    the same . protocol . port, or first to last
    world4, world6             source << 16 . its destinations in the world, or
                               destination . its sources
    world_ports4, _ports6      the same . protocol . ports
    policed                    the group of workloads' links: there are policies

`isolated_back` follows from `isolated`, so it is not read.

A packet looks into several sets, and each look is into what is committed then.
If a transaction comes between, the packet has a former identity, and is judged
by the present rows. So the rows of an identity must outlive its last address:
without them it would not be isolated. They are removed by a second transaction;
`retire` separates them.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.policy.model import Protocol
from metropolis.node.core.network.policy.tables import (
    IDENTITY_MAX,
    WORLD,
    Identity,
    PairPorts,
    Tables,
    WorldRange,
)
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.netlink.errors import BatchError
from osbase.netlink.transport import NetlinkSocket, SocketPool
from osbase.nftables import digest, elements, listing
from osbase.nftables.elements import Change, encode, encode_range
from osbase.nftables.listing import Listed

IDENTITIES: Final = {4: "identities4", 6: "identities6"}
_WORLD: Final = {4: "world4", 6: "world6"}
_WORLD_PORTS: Final = {4: "world_ports4", 6: "world_ports6"}
SETS: Final = (
    *IDENTITIES.values(), "isolated", "isolated_back", "pairs", "pair_protocols", "pair_ports",
    "pair_ranges", *_WORLD.values(), *_WORLD_PORTS.values(), "policed",
)  # fmt: skip
"""Names of the sets, all in the table allocs.NFTABLES_WORKLOADS."""

_MARK: Final = struct.Struct("=I")
# In sets of intervals; see osbase.nftables.elements.
_MARK_BE: Final = struct.Struct(">I")
_PROTOCOL: Final = struct.Struct(">B3x")
_PORT: Final = struct.Struct(">H2x")
_NUMBERS: Final = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
PROTOCOLS: Final = {number: protocol for protocol, number in _NUMBERS.items()}
"""Protocols by their numbers in IP."""
_LAST_PORT: Final = 65535
_POLICED: Final = encode(_MARK.pack(allocs.LINK_GROUP_WORKLOAD))

type Encoded = dict[str, list[bytes]]
"""Elements by the name of their set."""


class PolicyKernelError(Exception):
    """What is loaded cannot be changed or read. `full`: since a set has no more
    room; the message names it.
    """

    def __init__(self, message: str, *, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


class PolicyKernel:
    """The sets of the calling thread's network namespace. Calls block; threads
    may call at once, but then the order of changes is theirs.
    """

    def __init__(self, sockets: SocketPool | None = None) -> None:
        """sockets: of digest.open_socket, which the caller closes."""
        self._sockets = SocketPool(1, digest.open_socket) if sockets is None else sockets

    def apply(
        self,
        removed: Tables,
        added: Tables,
        *,
        policed: bool,
        present: Collection[Identity] | None = None,
    ) -> None:
        """Remove and add, in one transaction. policed: whether there are
        policies then; if not, every flow passes. present: the identities that
        addresses have then; rows of others are removed by a second transaction.
        None: all are present.

        What is removed may be gone, and what is added may be there: it can be
        repeated. An address whose identity changes need not be in `removed`.
        Raises PolicyKernelError, and nothing has changed then: a set is full,
        or the table is missing. Other NetlinkErrors, OSError: not known.
        """
        later = Tables()
        if present is not None:
            removed, later = retire(removed, present)
        gone, new = encode_tables(removed), encode_tables(added)
        # Data does not count where elements are destroyed.
        for name, some in _identities(added.identities):
            gone.setdefault(name, []).append(some)
        (new if policed else gone).setdefault("policed", []).append(_POLICED)
        self._exchange(gone, new, ())
        if later != Tables():
            self._exchange(encode_tables(later), {}, ())

    def replace(self, tables: Tables, *, policed: bool) -> None:
        """Make the kernel's elements these, in one transaction, whatever they
        are. Raises as `apply`.
        """
        new = encode_tables(tables)
        if policed:
            new["policed"] = [_POLICED]
        self._exchange({}, new, SETS)

    def read(self) -> Tables:
        """Return what is loaded. Raises PolicyKernelError if the table is
        missing or there are elements that no Tables has, of another program:
        then `replace`. Raises NetlinkError and OSError.
        """
        with self._sockets.socket() as sock:
            return decode_tables({name: _listed(sock, name) for name in SETS})

    def policed(self) -> bool:
        """Return whether flows are judged. Raises as `read`."""
        with self._sockets.socket() as sock:
            return bool(_listed(sock, "policed"))

    def _exchange(self, gone: Encoded, new: Encoded, emptied: Iterable[str]) -> None:
        try:
            with self._sockets.socket() as sock:
                elements.exchange(
                    sock,
                    [_change(name, some) for name, some in gone.items()],
                    [_change(name, some) for name, some in new.items()],
                    [_change(name, []) for name in emptied],
                )
        except BatchError as error:
            raise _refusal(error) from error


def _change(name: str, some: list[bytes]) -> Change:
    return Change("inet", allocs.NFTABLES_WORKLOADS, name, some)


def _refusal(error: BatchError) -> PolicyKernelError:
    first = error.errors[0]
    if first.errno == errno.ENFILE:
        return PolicyKernelError(f"load policies: {first}: the set is full", full=True)
    return PolicyKernelError(f"load policies: {first}")


def _listed(sock: NetlinkSocket, name: str) -> list[Listed]:
    found = listing.elements(sock, "inet", allocs.NFTABLES_WORKLOADS, name)
    if found is None:
        raise PolicyKernelError(f"read policies: there is no set {name}")
    return found


def retire(removed: Tables, present: Collection[Identity]) -> tuple[Tables, Tables]:
    """Return what to remove now, and later: rows of identities that no address
    has any more. Pure.
    """
    kept = {WORLD, *present}

    def parts[T](rows: frozenset[T], ends: Callable[[T], Iterable[Identity]]) -> list[frozenset[T]]:
        now = frozenset(one for one in rows if kept.issuperset(ends(one)))
        return [now, rows - now]

    def of_world(one: WorldRange) -> Iterable[Identity]:
        return (one.identity,)

    def of_ports(one: PairPorts) -> Iterable[Identity]:
        return (one.source, one.destination)

    egress = parts(removed.isolated_egress, lambda one: (one,))
    ingress = parts(removed.isolated_ingress, lambda one: (one,))
    pairs = parts(removed.pairs, lambda one: one)
    ports = parts(removed.pair_ports, of_ports)
    to_world = parts(removed.world_egress, of_world)
    from_world = parts(removed.world_ingress, of_world)
    now, later = (
        Tables(
            removed.identities if not at else {},
            egress[at],
            ingress[at],
            pairs[at],
            ports[at],
            to_world[at],
            from_world[at],
        )
        for at in (0, 1)
    )
    return now, later


# ---- Tables to elements, pure -----------------------------------------------


def encode_tables(tables: Tables) -> Encoded:
    """Return the elements of tables; `policed` is apart."""
    found: Encoded = {}
    for made in (
        _identities(tables.identities),
        _isolated(tables),
        (("pairs", encode(_MARK.pack(_pair(*one)))) for one in tables.pairs),
        map(_pair_ports, tables.pair_ports),
        (_world(one, one.identity << 16) for one in tables.world_egress),
        (_world(one, one.identity) for one in tables.world_ingress),
    ):
        for name, element in made:
            found.setdefault(name, []).append(element)
    return found


def _identities(identities: Mapping[IPAddress, Identity]) -> Iterator[tuple[str, bytes]]:
    for ip, identity in identities.items():
        yield IDENTITIES[ip.version], encode(ip.packed, _MARK.pack(identity))


def _isolated(tables: Tables) -> Iterator[tuple[str, bytes]]:
    for identity in tables.isolated_egress:
        yield "isolated", encode(_MARK.pack(identity << 16))
        yield "isolated_back", encode(_MARK.pack(identity))
    for identity in tables.isolated_ingress:
        yield "isolated", encode(_MARK.pack(identity))
        yield "isolated_back", encode(_MARK.pack(identity << 16))


def _pair(source: Identity, destination: Identity) -> int:
    return source << 16 | destination


def _pair_ports(one: PairPorts) -> tuple[str, bytes]:
    mark, protocol = _pair(one.source, one.destination), _PROTOCOL.pack(_NUMBERS[one.protocol])
    if (one.first, one.last) == (0, _LAST_PORT):
        return "pair_protocols", encode(_MARK.pack(mark) + protocol)
    if one.first == one.last:
        return "pair_ports", encode(_MARK.pack(mark) + protocol + _PORT.pack(one.first))
    key = _MARK_BE.pack(mark) + protocol
    return "pair_ranges", encode_range(key + _PORT.pack(one.first), key + _PORT.pack(one.last))


def _world(one: WorldRange, mark: int) -> tuple[str, bytes]:
    first, last = (_MARK_BE.pack(mark) + ip.packed for ip in (one.first_ip, one.last_ip))
    if one.protocol is None:
        return _WORLD[one.first_ip.version], encode_range(first, last)
    protocol = _PROTOCOL.pack(_NUMBERS[one.protocol])
    element = encode_range(
        first + protocol + _PORT.pack(one.first), last + protocol + _PORT.pack(one.last)
    )
    return _WORLD_PORTS[one.first_ip.version], element


# ---- Elements to tables, pure -----------------------------------------------


def decode_tables(found: Mapping[str, Iterable[Listed]]) -> Tables:
    """Return the tables whose elements these are. Raises PolicyKernelError for
    elements that no tables have.
    """
    identities: dict[IPAddress, Identity] = {}
    isolated: dict[bool, set[Identity]] = {True: set(), False: set()}
    ports: set[PairPorts] = set()
    world: dict[bool, set[WorldRange]] = {True: set(), False: set()}
    for version, name in IDENTITIES.items():
        for one in _read(found, name, _decode_identity):
            if one[0].version != version:
                raise PolicyKernelError(f"read policies: {name} has {one[0]}")
            identities.update([one])
    for egress, identity in _read(found, "isolated", _decode_isolated):
        isolated[egress].add(identity)
    pairs = _read(found, "pairs", lambda one: _decode_pair(one.key, _MARK))
    for name in ("pair_protocols", "pair_ports", "pair_ranges"):
        ports.update(_read(found, name, _decode_pair_ports))
    for version in (4, 6):
        for name, size in ((_WORLD[version], 0), (_WORLD_PORTS[version], 8)):
            for egress, span in _read(found, name, _world_decoder(version, size)):
                world[egress].add(span)
    return Tables(
        identities,
        frozenset(isolated[True]),
        frozenset(isolated[False]),
        frozenset(pairs),
        frozenset(ports),
        frozenset(world[True]),
        frozenset(world[False]),
    )


def _read[T](
    found: Mapping[str, Iterable[Listed]], name: str, decode: Callable[[Listed], T]
) -> Iterator[T]:
    for one in found.get(name, ()):
        try:
            yield decode(one)
        except (ValueError, KeyError, struct.error) as error:
            text = f"{one.key.hex()} {one.last.hex()} {one.data.hex()}"
            raise PolicyKernelError(f"read policies: element {text} of {name}: {error}") from error


def _decode_identity(one: Listed) -> tuple[IPAddress, Identity]:
    (identity,) = _MARK.unpack(one.data)
    return ip_address(one.key), _checked(identity)


def _checked(identity: int) -> Identity:
    if not 0 < identity <= IDENTITY_MAX:
        raise ValueError(f"{identity} is no identity")
    return identity


def _end(key: bytes, mark: struct.Struct) -> tuple[bool, Identity]:
    """Return which end a mark is of, with the world: the source's?"""
    (value,) = mark.unpack_from(key)
    source, destination = value >> 16, value & IDENTITY_MAX
    if bool(source) == bool(destination):
        raise ValueError(f"{value:#x} is a mark of two ends")
    return bool(source), source or destination


def _decode_isolated(one: Listed) -> tuple[bool, Identity]:
    if len(one.key) != _MARK.size:
        raise ValueError("its length")
    return _end(one.key, _MARK)


def _decode_pair(key: bytes, mark: struct.Struct) -> tuple[Identity, Identity]:
    (value,) = mark.unpack(key[: mark.size])
    return _checked(value >> 16), _checked(value & IDENTITY_MAX)


def _decode_ports(first: bytes, last: bytes) -> tuple[Protocol, int, int]:
    """Read a protocol and ports from the ends of two keys."""
    (number,), (port,) = _PROTOCOL.unpack(first[:4]), _PORT.unpack(first[4:])
    if last[:4] != first[:4]:
        raise ValueError("a range of protocols")
    (last_port,) = _PORT.unpack(last[4:])
    return PROTOCOLS[number], port, last_port


def _decode_pair_ports(one: Listed) -> PairPorts:
    size = _MARK.size
    last = one.last or one.key
    pair = _decode_pair(one.key, _MARK_BE if one.last else _MARK)
    if last[:size] != one.key[:size]:
        raise ValueError("a range of marks")
    if len(one.key) == size + _PROTOCOL.size:
        (number,) = _PROTOCOL.unpack(one.key[size:])
        return PairPorts(*pair, PROTOCOLS[number], 0, _LAST_PORT)
    protocol, first_port, last_port = _decode_ports(one.key[size:], last[size:])
    return PairPorts(*pair, protocol, first_port, last_port)


def _world_decoder(version: int, size: int) -> Callable[[Listed], tuple[bool, WorldRange]]:
    """size: of protocol and port behind the address."""
    end = _MARK_BE.size + {4: 4, 6: 16}[version]

    def decode(one: Listed) -> tuple[bool, WorldRange]:
        if not len(one.key) == len(one.last) == end + size:
            raise ValueError("its length")
        if one.key[:4] != one.last[:4]:
            raise ValueError("a range of marks")
        egress, identity = _end(one.key, _MARK_BE)
        ips = ip_address(one.key[4:end]), ip_address(one.last[4:end])
        if not size:
            return egress, WorldRange(identity, *ips)
        protocol, first, last = _decode_ports(one.key[end:], one.last[end:])
        return egress, WorldRange(identity, *ips, protocol, first, last)

    return decode
