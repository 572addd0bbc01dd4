# SPDX-License-Identifier: Apache-2.0
"""The elements of the tables, kept up to date class by class. Pure.

Most pairs of classes are neither stored nor looked at: between classes that no
policy isolates there is nothing to say, and a subject that is isolated allows
nothing to peers that none of its rules has. So a class that is new, or has
other rules, is compared only with

    the peers of its rules, if these have it as a peer or are not isolated; all
    classes are peers if the program is dense
    if it is not isolated: subjects whose rules have it as a peer

and a class that only gained or lost bits only with subjects whose rules have
these.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from metropolis.node.core.network.policy.errors import PAIRS_MAX, RANGES_MAX, PolicyError
from metropolis.node.core.network.policy.intervals import (
    EVERYTHING,
    NOTHING,
    Intervals,
    bits_of,
    intersect,
    to_ports,
)
from metropolis.node.core.network.policy.model import Direction
from metropolis.node.core.network.policy.programs import Named, Program
from metropolis.node.core.network.policy.tables import Identity, PairPorts, WorldRange

type Region = tuple[int, int, int, Intervals]
"""Addresses of the world, and their ports: IP version, first, last, ports."""


@dataclass(frozen=True, slots=True)
class Member:
    """A class, as its pairs need it. bits: as a mask; positions: of the bits.
    version: the IP version of all its addresses, 0: both are possible.
    programs: None: not isolated in that direction. regions: of the world, by
    direction.
    """

    bits: int
    positions: tuple[int, ...]
    named: Named
    version: int
    programs: Mapping[Direction, Program | None]
    regions: Mapping[Direction, tuple[Region, ...]]


@dataclass(slots=True)
class _Subjects:
    """Isolated classes of one direction. dense: those that all peers matter to.
    by_peer: the others, by the bits of their rules. world: the elements of each
    number, of which all is the set.
    """

    numbers: set[Identity] = field(default_factory=set)
    dense: set[Identity] = field(default_factory=set)
    by_peer: dict[int, set[Identity]] = field(default_factory=dict)
    world: dict[Identity, list[WorldRange]] = field(default_factory=dict)
    all: set[WorldRange] = field(default_factory=set)

    def add(self, number: Identity, program: Program) -> None:
        self.numbers.add(number)
        if program.dense:
            self.dense.add(number)
        for bit in program.bits:
            self.by_peer.setdefault(bit, set()).add(number)

    def remove(self, number: Identity, program: Program) -> None:
        self.numbers.remove(number)
        self.dense.discard(number)
        for bit in program.bits:
            self.by_peer[bit].remove(number)
        self.all.difference_update(self.world.pop(number, ()))


class Pairs:
    """Elements of the tables, as sets that change."""

    def __init__(self) -> None:
        self.pairs: set[tuple[Identity, Identity]] = set()
        self.pair_ports: set[PairPorts] = set()
        self._subjects = {direction: _Subjects() for direction in Direction}
        self._members: dict[Identity, Member] = {}
        self._with_bit: dict[int, set[Identity]] = {}
        # By source and destination. () is the whole pair.
        self._rows: dict[Identity, dict[Identity, tuple[PairPorts, ...]]] = {}
        self._sources: dict[Identity, set[Identity]] = {}

    def isolated(self, direction: Direction) -> set[Identity]:
        """Return the numbers of the classes that are isolated."""
        return self._subjects[direction].numbers

    def world(self, direction: Direction) -> set[WorldRange]:
        """Return the elements about the world."""
        return self._subjects[direction].all

    def replace(self, removed: Set[Identity], added: Mapping[Identity, Member]) -> None:
        """Remove classes, then add some; a changed one is both.

        Raises PolicyError if there are too many elements; then this object is
        of no more use.
        """
        whole = dict(added)
        touched: dict[tuple[Identity, Identity], None] = {}
        with_other_bits = {n for n in removed if n in added and self._keeps_rules(n, added[n])}
        for number in removed - with_other_bits:
            self._remove(number)
        others = {number: self._change(number, whole.pop(number)) for number in with_other_bits}
        for number, member in whole.items():
            self._add(number, member)
        for number, bits in others.items():
            touched.update(dict.fromkeys(self._concerned(number, bits, whole.keys())))
        # First all that goes, so that no limit is exceeded on the way.
        for source, destination in touched:
            if destination in self._rows.get(source, ()):
                self._forget(source, destination)
        for number, member in whole.items():
            for peer in self._candidates(member, Direction.EGRESS):
                self._store(number, peer)
            for peer in self._candidates(member, Direction.INGRESS):
                if peer not in whole:
                    self._store(peer, number)
        for source, destination in touched:
            self._store(source, destination)

    def _keeps_rules(self, number: Identity, member: Member) -> bool:
        before = self._members[number]
        return (before.programs, before.named, before.version, before.regions) == (
            member.programs,
            member.named,
            member.version,
            member.regions,
        )

    def _change(self, number: Identity, member: Member) -> int:
        """Replace a class that keeps its rules. Return the bits that differ."""
        differing = self._members[number].bits ^ member.bits
        self._members[number] = member
        for bit in bits_of(differing):
            with_bit = self._with_bit.setdefault(bit, set())
            if member.bits >> bit & 1:
                with_bit.add(number)
            else:
                with_bit.remove(number)
        return differing

    def _concerned(
        self, number: Identity, bits: int, but: Container[Identity]
    ) -> Iterator[tuple[Identity, Identity]]:
        """Yield the pairs of a class that may differ as its bits do."""
        for bit in bits_of(bits):
            for source in self._subjects[Direction.EGRESS].by_peer.get(bit, ()):
                if source not in but:
                    yield source, number
            for destination in self._subjects[Direction.INGRESS].by_peer.get(bit, ()):
                if destination not in but:
                    yield number, destination

    def _add(self, number: Identity, member: Member) -> None:
        self._members[number] = member
        for bit in member.positions:
            self._with_bit.setdefault(bit, set()).add(number)
        for direction, program in member.programs.items():
            if program is not None:
                subjects = self._subjects[direction]
                subjects.add(number, program)
                elements = list(_ranges(number, member, direction))
                subjects.world[number] = elements
                subjects.all.update(elements)
        count = sum(len(subjects.all) for subjects in self._subjects.values())
        if count > RANGES_MAX:
            raise PolicyError(
                f"the policies need at least {count} address ranges of the world, and the limit"
                f" is {RANGES_MAX}: use fewer prefixes and ports in rules about networks, or"
                " share policies among more workloads"
            )

    def _remove(self, number: Identity) -> None:
        member = self._members.pop(number)
        for bit in member.positions:
            self._with_bit[bit].remove(number)
        for direction, program in member.programs.items():
            if program is not None:
                self._subjects[direction].remove(number, program)
        for peer in list(self._rows.get(number, ())):
            self._forget(number, peer)
        for peer in list(self._sources.get(number, ())):
            self._forget(peer, number)

    def _candidates(self, member: Member, direction: Direction) -> set[Identity]:
        """Return the peers of a subject with which a pair may be stored."""
        opposite = Direction.INGRESS if direction is Direction.EGRESS else Direction.EGRESS
        peers = self._subjects[opposite]
        agreeing = _merged(peers.by_peer, member.positions) | peers.dense
        program = member.programs[direction]
        if program is None:
            return agreeing
        if program.dense:
            return agreeing | (self._members.keys() - peers.numbers)
        wanted = _merged(self._with_bit, program.bits)
        return (wanted & agreeing) | (wanted - peers.numbers)

    def _store(self, source: Identity, destination: Identity) -> None:
        ports = _allowed(self._members[source], self._members[destination])
        if ports == EVERYTHING:
            self.pairs.add((source, destination))
            elements: tuple[PairPorts, ...] = ()
        else:
            elements = tuple(
                PairPorts(source, destination, *interval) for interval in to_ports(ports)
            )
            if not elements:
                return
            self.pair_ports.update(elements)
        self._rows.setdefault(source, {})[destination] = elements
        self._sources.setdefault(destination, set()).add(source)
        if len(self.pairs) + len(self.pair_ports) > PAIRS_MAX:
            raise PolicyError(
                f"the policies need more than {PAIRS_MAX} pairs of classes of workloads and their"
                f" ports, which is the limit, among {len(self._members)} classes: use fewer"
                " different labels in selectors, or fewer policies that isolate all workloads"
            )

    def _forget(self, source: Identity, destination: Identity) -> None:
        elements = self._rows[source].pop(destination)
        self._sources[destination].remove(source)
        if elements:
            self.pair_ports.difference_update(elements)
        else:
            self.pairs.remove((source, destination))


def _merged(index: Mapping[int, set[Identity]], bits: Iterable[int]) -> set[Identity]:
    return set().union(*(index[bit] for bit in bits if bit in index))


def _allowed(source: Member, destination: Member) -> Intervals:
    if source.version and destination.version and source.version != destination.version:
        return NOTHING
    egress = source.programs[Direction.EGRESS]
    ingress = destination.programs[Direction.INGRESS]
    result = EVERYTHING
    if egress is not None:
        result = egress.ports(destination.bits, destination.named)
    if ingress is not None and result != NOTHING:
        result = intersect(result, ingress.ports(source.bits, destination.named))
    return result


def _ranges(number: Identity, member: Member, direction: Direction) -> Iterator[WorldRange]:
    for version, first, last, ports in member.regions[direction]:
        if member.version not in (0, version):
            continue
        make = IPv4Address if version == 4 else IPv6Address
        if ports == EVERYTHING:
            yield WorldRange(number, make(first), make(last))
            continue
        for protocol, start, end in to_ports(ports):
            yield WorldRange(number, make(first), make(last), protocol, start, end)
