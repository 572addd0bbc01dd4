# SPDX-License-Identifier: Apache-2.0
"""Classes of addresses that no policy tells apart, and their numbers. Pure.

A class has a key: what policies may see of an address. A class is a new object
for each new key, but its number stays with the addresses: a change of policy
gives most classes other keys and leaves most addresses together. So classes
claim the number that most of their addresses had; see `Classes.settle`. A
number that became free is used again late, since flows in the kernel may still
carry it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from metropolis.node.core.network.policy.errors import PolicyError
from metropolis.node.core.network.policy.intervals import bits_of
from metropolis.node.core.network.policy.programs import Named
from metropolis.node.core.network.policy.tables import IDENTITY_MAX, WORLD, Identity
from metropolis.node.core.network.workloads.model import IPAddress


class Key(NamedTuple):
    """What policies see of an address.

    known: whether the labels are. bits: of selectors and networks. named: ports
    that policies name. version: the IP version if networks contain an address
    of the workload; else 0, so that both addresses are in one class. No
    connection has two versions, so classes of different ones have no pairs.
    """

    known: bool
    bits: int
    named: Named
    version: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the next compilation needs to keep numbers. identities: of each
    address. last: the latest number that was given away.
    """

    identities: Mapping[IPAddress, Identity] = field(default_factory=dict)
    last: Identity = 0


@dataclass(slots=True, eq=False)
class Class:
    """number: WORLD until it is settled. units: its addresses."""

    key: Key
    bits: tuple[int, ...]
    number: Identity = WORLD
    units: set[Unit] = field(default_factory=set)

    def first(self) -> tuple[int, int]:
        """Return the version and number of the smallest address."""
        return min(unit.order for unit in self.units)


@dataclass(slots=True, eq=False)
class Unit:
    """An address. order: its version and number. number: of its class when
    classes were last settled, WORLD before.
    """

    ip: IPAddress
    order: tuple[int, int]
    number: Identity
    placed: Class | None = None


class Classes:
    """All addresses by class."""

    def __init__(self, before: Numbers) -> None:
        self.by_number: dict[Identity, Class] = {}
        self.last = before.last
        self._held = set(before.identities.values())
        self._by_key: dict[Key, Class] = {}
        self._with_bit: dict[int, set[Class]] = {}
        self._affected: dict[Class, None] = {}

    def find(self, key: Key) -> Class | None:
        """Return the class with this key."""
        return self._by_key.get(key)

    def with_bit(self, bit: int) -> set[Class]:
        """Return the classes whose key has a bit."""
        return self._with_bit.get(bit, set())

    def __iter__(self) -> Iterator[Class]:
        return iter(self._by_key.values())

    def place(self, unit: Unit, key: Key) -> None:
        """Put an address in the class with this key."""
        if unit.placed is not None and unit.placed.key == key:
            return
        self.remove(unit)
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = Class(key, tuple(bits_of(key.bits)))
            for bit in found.bits:
                self._with_bit.setdefault(bit, set()).add(found)
        found.units.add(unit)
        unit.placed = found
        self._affected[found] = None

    def remove(self, unit: Unit) -> None:
        """Take an address out of its class, if it is in one."""
        found, unit.placed = unit.placed, None
        if found is None:
            return
        found.units.remove(unit)
        self._affected[found] = None
        if not found.units:
            del self._by_key[found.key]
            for bit in found.bits:
                self._with_bit[bit].remove(found)

    def settle(self) -> set[Identity]:
        """Number the classes that changed. Return the numbers whose class is
        another than before, or none.

        Raises PolicyError if there are more classes than numbers.
        """
        if len(self._by_key) > IDENTITY_MAX:
            raise PolicyError(
                f"policies tell {len(self._by_key)} classes of workloads apart, and the limit is"
                f" {IDENTITY_MAX}: let policies use fewer different labels, named ports or"
                " networks"
            )
        affected, self._affected = list(self._affected), {}
        before = {one.number: one for one in affected if one.number != WORLD}
        living = [one for one in affected if one.units]
        for number in before:
            del self.by_number[number]
        for one in living:
            one.number = WORLD
        self._claim(living)
        fresh = [one for one in living if one.number == WORLD]
        for one in sorted(fresh, key=Class.first):
            one.number = self._next()
            self.by_number[one.number] = one
        for one in living:
            for unit in one.units:
                unit.number = one.number
        self._held = set(self.by_number)
        after = {one.number: one for one in living}
        return {
            number
            for number in before.keys() | after.keys()
            if before.get(number) is not after.get(number)
        }

    def _claim(self, living: list[Class]) -> None:
        """Give each number to the class that most of its addresses are in."""
        claims = []
        for one in living:
            votes = Counter(unit.number for unit in one.units if unit.number != WORLD)
            if votes:
                first = one.first()
                claims += [(-count, first, number, one) for number, count in votes.items()]
        for _count, _first, number, one in sorted(claims, key=lambda claim: claim[:3]):
            if one.number == WORLD and number not in self.by_number:
                one.number = number
                self.by_number[number] = one

    def _next(self) -> Identity:
        """Return a free number, one that was not in use before if possible."""
        taken = self._held | self.by_number.keys()
        if len(taken) >= IDENTITY_MAX:
            taken = set(self.by_number)
        number = self.last
        while True:
            number = number % IDENTITY_MAX + 1
            if number not in taken:
                self.last = number
                return number
