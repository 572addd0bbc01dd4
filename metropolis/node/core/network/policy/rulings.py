# SPDX-License-Identifier: Apache-2.0
"""What policies say about a class: its programs, and what they say about the
world. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count

from metropolis.node.core.network.policy.classes import Class
from metropolis.node.core.network.policy.errors import PolicyError
from metropolis.node.core.network.policy.intervals import (
    LAST_ADDRESS,
    NOTHING,
    elementary,
    storable,
)
from metropolis.node.core.network.policy.model import Direction, Peer, Policy
from metropolis.node.core.network.policy.pairs import Member, Region
from metropolis.node.core.network.policy.peers import Peers
from metropolis.node.core.network.policy.programs import (
    CLOSED,
    CompiledPolicy,
    Named,
    Program,
    compile_policy,
    names_of,
)

type _Peers = dict[int, Peer]
type _Versions = tuple[int, ...]
"""The uids of the policies of a subject, in their order."""


class Rulings:
    """The policies, compiled, and the programs that subjects have of them."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._uids = count(1)
        self._policies: dict[str, CompiledPolicy] = {}
        self._subjects: dict[int, dict[str, CompiledPolicy]] = {}  # by bit, by name
        self._names: Counter[str] = Counter()
        self._programs: dict[tuple[Direction, _Versions], Program] = {}
        self._regions: dict[tuple[Direction, _Versions, Named], tuple[Region, ...]] = {}

    def __bool__(self) -> bool:
        """Return whether there are policies."""
        return bool(self._policies)

    def names(self) -> frozenset[str]:
        """Return the names of ports that policies use."""
        return frozenset(self._names)

    def change(self, policies: Iterable[Policy]) -> tuple[set[int], _Peers, _Peers]:
        """Replace the policies. Return the bits of subjects whose policies
        changed, and the peers that are gone and new, by bit.

        Raises PolicyError for a name that two of them have.
        """
        after: dict[str, Policy] = {}
        for policy in policies:
            if policy.name in after:
                raise PolicyError(f"two policies have the name {policy.name}: rename one")
            after[policy.name] = policy
        removed = [
            one
            for name, one in self._policies.items()
            if (other := after.get(name)) is not one.policy and other != one.policy
        ]
        for one in removed:
            self._remove(one)
        self._forget({one.uid for one in removed})
        added = [policy for name, policy in after.items() if name not in self._policies]
        gone, new = self._peers.change((one.policy for one in removed), added)
        subjects = {one.subject for one in removed}
        subjects |= {self._add(policy).subject for policy in added}
        self._names = +self._names
        return subjects, gone, new

    def member(self, one: Class) -> Member:
        """Return a class as its pairs need it."""
        known, bits, named, version = one.key
        programs: dict[Direction, Program | None] = dict.fromkeys(Direction)
        regions: dict[Direction, tuple[Region, ...]] = dict.fromkeys(Direction, ())
        if not known:
            if self._policies:
                programs = dict.fromkeys(Direction, CLOSED)
            return Member(bits, one.bits, named, version, programs, regions)
        subjects = [self._subjects[bit] for bit in one.bits if bit in self._subjects]
        policies = sorted((p for found in subjects for p in found.values()), key=_order)
        for direction in Direction:
            deciding = [p for p in policies if p.rules[direction] is not None]
            if deciding:
                versions = tuple(p.uid for p in deciding)
                programs[direction] = self._program(direction, versions, deciding)
                regions[direction] = self._of_world(direction, versions, named)
        return Member(bits, one.bits, named, version, programs, regions)

    def _add(self, policy: Policy) -> CompiledPolicy:
        one = compile_policy(next(self._uids), policy, self._peers.bits)
        self._policies[policy.name] = one
        self._subjects.setdefault(one.subject, {})[policy.name] = one
        self._names.update(names_of(policy))
        return one

    def _remove(self, one: CompiledPolicy) -> None:
        del self._policies[one.policy.name]
        subjects = self._subjects[one.subject]
        del subjects[one.policy.name]
        if not subjects:
            del self._subjects[one.subject]
        self._names.subtract(names_of(one.policy))

    def _forget(self, uids: set[int]) -> None:
        """Forget the programs with policies that are gone."""
        for key in [key for key in self._programs if not uids.isdisjoint(key[1])]:
            del self._programs[key]
        for region in [key for key in self._regions if not uids.isdisjoint(key[1])]:
            del self._regions[region]

    def _program(
        self, direction: Direction, versions: _Versions, policies: Iterable[CompiledPolicy]
    ) -> Program:
        key = direction, versions
        if (program := self._programs.get(key)) is None:
            program = self._programs[key] = Program(
                (one.policy.tier, one.rules[direction] or ()) for one in policies
            )
        return program

    def _of_world(
        self, direction: Direction, versions: _Versions, named: Named
    ) -> tuple[Region, ...]:
        # The world names no ports, so only ingress depends on names.
        named = named if direction is Direction.INGRESS else ()
        key = direction, versions, named
        if (regions := self._regions.get(key)) is None:
            program = self._programs[direction, versions]
            regions = self._regions[key] = tuple(self._regions_of(program, named))
        return regions

    def _regions_of(self, program: Program, named: Named) -> Iterator[Region]:
        """Yield the addresses with equal ports that lie side by side as one."""
        for version, last in LAST_ADDRESS.items():
            open_region: Region | None = None
            for start, end, bits in elementary(self._peers.networks(program.bits, version), last):
                ports = storable(program.ports(bits, named))
                if open_region is not None and open_region[3] == ports:
                    open_region = (version, open_region[1], end, ports)
                    continue
                if open_region is not None and open_region[3] != NOTHING:
                    yield open_region
                open_region = (version, start, end, ports)
            if open_region is not None and open_region[3] != NOTHING:
                yield open_region


def _order(one: CompiledPolicy) -> tuple[int, int, str]:
    return one.order
