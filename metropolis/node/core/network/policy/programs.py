# SPDX-License-Identifier: Apache-2.0
"""What the policies of a subject say about its peers, in one direction. Pure.

Each selector and each `Networks` is a bit. A peer is the bits that match it, an
address of the world too. So a program maps bits to ports:

    policies of the subject, in order  +  bits of the peer  +  named ports of
    the destination  ->  the ports that the subject's end allows

Peers that differ only in bits that no rule of the program has get the same
answer, which is computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from metropolis.node.core.network.policy.intervals import (
    EVERYTHING,
    NOTHING,
    Interval,
    Intervals,
    bits_of,
    intersect,
    of_ports,
    subtract,
    union,
)
from metropolis.node.core.network.policy.model import (
    Action,
    Direction,
    NamedPort,
    Peer,
    Policy,
    Ports,
    Protocol,
    Rule,
    Tier,
)

type Named = tuple[tuple[str, Protocol, int], ...]
"""Ports that a class of destinations names, as far as policies use the name."""

_TIERS = {tier: i for i, tier in enumerate(Tier)}


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """peers: bits, one must match; None: everybody. ports: without the named
    ones.
    """

    action: Action
    peers: int | None
    ports: Intervals
    named: tuple[NamedPort, ...]

    def matched(self, named: Named) -> Intervals:
        """Return the ports of a destination that match."""
        if not self.named:
            return self.ports
        return union([*self.ports, *_resolve(self.named, named)])

    def most(self) -> Intervals:
        """Return the ports that an ACCEPT may match whatever the destination
        names, and that other actions match in any case.
        """
        return EVERYTHING if self.named and self.action is Action.ACCEPT else self.ports


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """uid: unique for each version of a policy. subject: a bit's position.
    rules: None: the policy does not decide in that direction.
    """

    uid: int
    policy: Policy
    subject: int
    rules: Mapping[Direction, tuple[CompiledRule, ...] | None]

    @property
    def order(self) -> tuple[int, int, str]:
        """Return by what policies are sorted."""
        policy = self.policy
        priority = 0 if policy.tier is Tier.NAMESPACE else policy.priority
        return _TIERS[policy.tier], priority, policy.name


def compile_policy(uid: int, policy: Policy, bits: Mapping[Peer, int]) -> CompiledPolicy:
    """Compile a policy. bits: the positions of the policy's peers and of its
    subject; see `peers_of`.
    """
    rules = {direction: _rules(policy, direction, bits) for direction in Direction}
    return CompiledPolicy(uid, policy, bits[policy.subject], rules)


def peers_of(policy: Policy) -> Iterable[Peer]:
    """Yield the subject and the peers that matter."""
    yield policy.subject
    for direction in Direction:
        for rule in _deciding(policy, direction) or ():
            yield from rule.peers or ()


def names_of(policy: Policy) -> Iterable[str]:
    """Yield the names of ports that the policy uses."""
    for direction in Direction:
        for rule in _deciding(policy, direction) or ():
            yield from (port.name for port in rule.ports or () if isinstance(port, NamedPort))


def _deciding(policy: Policy, direction: Direction) -> tuple[Rule, ...] | None:
    """Return the rules of a direction; None: it is not isolated by them."""
    if policy.error:
        return ()
    rules = policy.ingress if direction is Direction.INGRESS else policy.egress
    if policy.tier is Tier.NAMESPACE:
        if direction not in policy.isolates:
            return None
        return tuple(rule for rule in rules if rule.action is Action.ACCEPT)
    return rules or None


def _rules(
    policy: Policy, direction: Direction, bits: Mapping[Peer, int]
) -> tuple[CompiledRule, ...] | None:
    if policy.error and policy.tier is not Tier.NAMESPACE:
        return (CompiledRule(Action.DENY, None, EVERYTHING, ()),)
    rules = _deciding(policy, direction)
    return None if rules is None else tuple(_rule(rule, bits) for rule in rules)


def _rule(rule: Rule, bits: Mapping[Peer, int]) -> CompiledRule:
    peers = None if rule.peers is None else _mask(bits[peer] for peer in rule.peers)
    if rule.ports is None:
        return CompiledRule(rule.action, peers, EVERYTHING, ())
    ports = union(of_ports(port) for port in rule.ports if isinstance(port, Ports))
    named = tuple(port for port in rule.ports if isinstance(port, NamedPort))
    return CompiledRule(rule.action, peers, ports, named)


def _mask(positions: Iterable[int]) -> int:
    mask = 0
    for position in positions:
        mask |= 1 << position
    return mask


def _resolve(wanted: tuple[NamedPort, ...], named: Named) -> Iterable[Interval]:
    for port in wanted:
        for name, protocol, number in named:
            if port.name == name and port.protocol in (None, protocol):
                yield of_ports(Ports(protocol, number, number))


class Program:
    """The policies of a subject in one direction, in order.

    mask, bits: bits of all peers, and their positions. dense: peers with none
    of the bits may be allowed something, so all peers must be looked at.
    """

    def __init__(self, policies: Iterable[tuple[Tier, tuple[CompiledRule, ...]]]) -> None:
        self._policies = tuple(policies)
        self.mask = 0
        for _tier, rules in self._policies:
            for rule in rules:
                self.mask |= rule.peers or 0
        self.bits = tuple(bits_of(self.mask))
        self._answers: dict[tuple[int, Named], Intervals] = {}
        self._names = {
            port.name for _tier, rules in self._policies for rule in rules for port in rule.named
        }
        self.dense = self._ask(0, None) != NOTHING

    def ports(self, peer: int, named: Named) -> Intervals:
        """Return what the subject allows. peer: its bits. named: ports of the
        destination, which is the subject itself for ingress.
        """
        if not self._names:
            named = ()
        key = peer & self.mask, named
        if (answer := self._answers.get(key)) is None:
            answer = self._answers[key] = self._ask(*key)
        return answer

    def _ask(self, peer: int, named: Named | None) -> Intervals:
        """named None: whatever the destination names, at most."""
        undecided, allowed = EVERYTHING, NOTHING
        for tier in Tier:
            decided = [rules for one, rules in self._policies if one is tier]
            if tier is Tier.NAMESPACE:
                if not decided:
                    continue
                wanted = [
                    interval
                    for rules in decided
                    for rule in rules
                    if rule.peers is None or rule.peers & peer
                    for interval in (rule.most() if named is None else rule.matched(named))
                ]
                accepted, passed = intersect(union(wanted), undecided), NOTHING
            else:
                accepted, passed = _first_matches(decided, peer, named, undecided)
            allowed, undecided = union([*allowed, *accepted]), passed
        return union([*allowed, *undecided])


def _first_matches(
    policies: Iterable[tuple[CompiledRule, ...]],
    peer: int,
    named: Named | None,
    undecided: Intervals,
) -> tuple[Intervals, Intervals]:
    """Return what is accepted, and what the next tier decides."""
    accepted: list[Interval] = []
    passed: list[Interval] = []
    for rules in policies:
        for rule in rules:
            if undecided == NOTHING:
                break
            if rule.peers is not None and not rule.peers & peer:
                continue
            ports = rule.most() if named is None else rule.matched(named)
            matched = intersect(ports, undecided)
            undecided = subtract(undecided, matched)
            if rule.action is Action.ACCEPT:
                accepted += matched
            elif rule.action is Action.PASS:
                passed += matched
    return union(accepted), union([*passed, *undecided])


CLOSED = Program([(Tier.ADMIN, (CompiledRule(Action.DENY, None, EVERYTHING, ()),))])
"""The program of workloads whose labels are not known: it allows nothing."""
