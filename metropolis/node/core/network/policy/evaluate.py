# SPDX-License-Identifier: Apache-2.0
"""The verdict of one connection, and why. Pure.

It asks policy by policy and rule by rule, as the texts of Kubernetes read, and
is the measure for the compiler. It also answers people ("why is this denied?")
and judges single flows.

Limit: the tables have no place for "protocols without ports, but not all
ports". So a connection without ports (ICMP) passes only where every port of
every protocol passes, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from metropolis.node.core.network.policy.model import (
    Action,
    Direction,
    NamedPort,
    Networks,
    Peer,
    Policy,
    Ports,
    Protocol,
    Rule,
    Tier,
    Verdict,
    Workload,
    World,
)
from metropolis.node.core.network.policy.selectors import selects
from metropolis.node.core.network.workloads.model import IPAddress


@dataclass(frozen=True, slots=True)
class _End:
    """workload None: an address of the world. address None: only of a workload
    that talks to itself.
    """

    workload: Workload | None
    address: IPAddress | None

    def __str__(self) -> str:
        return self.workload.key if self.workload is not None else str(self.address)


@dataclass(frozen=True, slots=True)
class _Connection:
    source: _End
    destination: _End
    protocol: Protocol | None
    port: int

    def ends(self, direction: Direction) -> tuple[_End, _End]:
        """Return the subject and the peer."""
        if direction is Direction.EGRESS:
            return self.source, self.destination
        return self.destination, self.source


class Evaluator:
    """Judges connections in a world. It remembers the policies of subjects, so
    a changed world needs a new one.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_key = {workload.key: workload for workload in world.workloads}
        self._by_ip = {ip: workload for workload in world.workloads for ip in workload.ips}
        self._tiers = {
            tier: sorted(
                (policy for policy in world.policies if policy.tier is tier),
                key=lambda policy: (
                    0 if policy.tier is Tier.NAMESPACE else policy.priority,
                    policy.name,
                ),
            )
            for tier in Tier
        }
        self._asked: dict[tuple[str, Direction], dict[Tier, list[Policy]]] = {}

    def verdict(
        self,
        source: str | IPAddress,
        destination: str | IPAddress,
        protocol: Protocol | None,
        port: int = 0,
        version: int | None = None,
    ) -> Verdict:
        """Judge a new connection.

        source, destination: the key of a workload, or an address; one that a
        workload has stands for the workload. protocol None: one without ports,
        then `port` does not matter. port: the destination's.

        version: 4 or 6, the IP version of the connection. Networks may match
        a workload's one address and not the other, so it matters. None: the
        version of an address that is given; else IPv4 if both workloads have
        it, else IPv6.

        Raises ValueError for a key without a workload, and for ends that have
        no address of that version.
        """
        found = self._workload(source), self._workload(destination)
        if found[0] is not None and found[0] == found[1]:
            return Verdict(True, reason=f"allowed: {found[0].key} talks to itself")
        version = _version(source, destination, version, found)
        connection = _Connection(
            _end(source, found[0], version), _end(destination, found[1], version), protocol, port
        )
        verdict = self._judge(connection)
        if protocol is None and verdict.allowed:
            return self._all_ports(connection) or verdict
        return verdict

    def _workload(self, end: str | IPAddress) -> Workload | None:
        if not isinstance(end, str):
            return self._by_ip.get(end)
        if end not in self._by_key:
            raise ValueError(f"no workload has the key {end!r}")
        return self._by_key[end]

    def _judge(self, connection: _Connection) -> Verdict:
        decided: Verdict | None = None
        for direction in (Direction.EGRESS, Direction.INGRESS):
            verdict = self._ask(connection, direction)
            if verdict is None:
                continue
            if not verdict.allowed:
                return verdict
            decided = verdict
        return decided or Verdict(True, reason="allowed: no policy decides about it")

    def _all_ports(self, connection: _Connection) -> Verdict | None:
        """Return why not all ports pass, if so."""
        for protocol in Protocol:
            for port in self._bounds(connection, protocol):
                with_port = _Connection(connection.source, connection.destination, protocol, port)
                verdict = self._judge(with_port)
                if not verdict.allowed:
                    return Verdict(
                        False,
                        verdict.direction,
                        verdict.tier,
                        verdict.policy,
                        verdict.rule,
                        "denied: a protocol without ports passes only if all ports do, and for"
                        f" {protocol.value} port {port}: {verdict.reason}",
                    )
        return None

    def _bounds(self, connection: _Connection, protocol: Protocol) -> list[int]:
        """Return the ports at which a verdict may begin."""
        bounds = {0}
        for direction in Direction:
            subject = connection.ends(direction)[0].workload
            if subject is None:
                continue
            for policies in self._policies(subject, direction).values():
                for policy in policies:
                    for rule in _rules(policy, direction):
                        for first, last in _numbers(rule, protocol, connection.destination):
                            bounds |= {first, last + 1}
        return sorted(bound for bound in bounds if bound <= 65535)

    def _ask(self, connection: _Connection, direction: Direction) -> Verdict | None:
        """Ask one end; None: no policy decides."""
        subject = connection.ends(direction)[0].workload
        if subject is None or not self._world.policies:
            return None
        if not subject.known:
            reason = f"denied: the labels of {subject.key} are not known, and there are policies"
            return Verdict(False, direction, reason=reason)
        policies = self._policies(subject, direction)
        for tier in Tier:
            judge = self._isolation if tier is Tier.NAMESPACE else self._first_match
            verdict = judge(policies[tier], connection, direction)
            if verdict is not None:
                return verdict
        return None

    def _policies(self, subject: Workload, direction: Direction) -> dict[Tier, list[Policy]]:
        """Return the policies that decide about the subject, in their order."""
        key = subject.key, direction
        if key not in self._asked:
            for one in Direction:
                self._asked[subject.key, one] = {tier: [] for tier in Tier}
            for tier, policies in self._tiers.items():
                for policy in policies:
                    if selects(policy.subject, subject, self._world.namespaces):
                        for one in Direction:
                            if tier is not Tier.NAMESPACE or _isolates(policy, one):
                                self._asked[subject.key, one][tier].append(policy)
        return self._asked[key]

    def _first_match(
        self, policies: list[Policy], connection: _Connection, direction: Direction
    ) -> Verdict | None:
        for policy in policies:
            if policy.error:
                return _broken(policy, connection, direction)
            for index, rule in enumerate(_rules(policy, direction)):
                if not self._matches(rule, connection, direction):
                    continue
                if rule.action is Action.PASS:
                    return None
                allowed = rule.action is Action.ACCEPT
                return _by_rule(allowed, policy, index, connection, direction)
        return None

    def _isolation(
        self, policies: list[Policy], connection: _Connection, direction: Direction
    ) -> Verdict | None:
        for policy in policies:
            for index, rule in enumerate(_rules(policy, direction)):
                if rule.action is Action.ACCEPT and self._matches(rule, connection, direction):
                    return _by_rule(True, policy, index, connection, direction)
        if not policies:
            return None
        if policies[0].error:
            return _broken(policies[0], connection, direction)
        subject = connection.ends(direction)[0]
        reason = (
            f"denied: {subject} is isolated for {direction.value.lower()} by policy"
            f" {policies[0].name}, and no rule allows it"
        )
        return Verdict(False, direction, Tier.NAMESPACE, policies[0].name, None, reason)

    def _matches(self, rule: Rule, connection: _Connection, direction: Direction) -> bool:
        peer = connection.ends(direction)[1]
        if rule.peers is not None and not any(self._is_peer(one, peer) for one in rule.peers):
            return False
        if rule.ports is None:
            return True
        if connection.protocol is None:
            return False
        numbers = _numbers(rule, connection.protocol, connection.destination)
        return any(first <= connection.port <= last for first, last in numbers)

    def _is_peer(self, peer: Peer, end: _End) -> bool:
        if isinstance(peer, Networks):
            if end.workload is not None and not end.workload.known:
                return False
            return any(end.address in prefix for prefix in peer.prefixes) and not any(
                end.address in prefix for prefix in peer.excepts
            )
        return end.workload is not None and selects(peer, end.workload, self._world.namespaces)


def _version(
    source: str | IPAddress,
    destination: str | IPAddress,
    version: int | None,
    found: tuple[Workload | None, Workload | None],
) -> int:
    given = {end.version for end in (source, destination) if not isinstance(end, str)}
    if version is not None:
        given.add(version)
    if len(given) > 1:
        raise ValueError(f"{source} and {destination}: a connection has one IP version")
    if given:
        return min(given)
    common = {4, 6}
    for workload in found:
        common &= {ip.version for ip in workload.ips} if workload is not None else set()
    if not common:
        raise ValueError(f"{source} and {destination} have no addresses of one IP version")
    return min(common)


def _end(end: str | IPAddress, workload: Workload | None, version: int) -> _End:
    if isinstance(end, (IPv4Address, IPv6Address)):
        return _End(workload, end)
    if workload is not None:
        for ip in workload.ips:
            if ip.version == version:
                return _End(workload, ip)
    raise ValueError(f"{end} has no IPv{version} address")


def _rules(policy: Policy, direction: Direction) -> tuple[Rule, ...]:
    if policy.error:
        return ()
    return policy.ingress if direction is Direction.INGRESS else policy.egress


def _isolates(policy: Policy, direction: Direction) -> bool:
    return bool(policy.error) or direction in policy.isolates


def _numbers(rule: Rule, protocol: Protocol, destination: _End) -> Iterator[tuple[int, int]]:
    """Yield the ports of this protocol that the rule names, first and last."""
    for port in rule.ports or ():
        match port:
            case Ports():
                if port.protocol is protocol:
                    yield port.first, port.last
            case NamedPort():
                workload = destination.workload
                named = workload.ports.get(port.name) if workload is not None else None
                if named is not None and port.protocol in (None, named[0]):
                    if named[0] is protocol:
                        yield named[1], named[1]


def _by_rule(
    allowed: bool, policy: Policy, index: int, connection: _Connection, direction: Direction
) -> Verdict:
    word = "allowed" if allowed else "denied"
    name = _rules(policy, direction)[index].name
    # From 1, as in the API: 0 is no rule there.
    rule = f"{direction.value.lower()} rule {index + 1}" + (f' "{name}"' if name else "")
    reason = f"{word}: {rule} of policy {policy.name} of {connection.ends(direction)[0]}"
    return Verdict(allowed, direction, policy.tier, policy.name, index, reason)


def _broken(policy: Policy, connection: _Connection, direction: Direction) -> Verdict:
    reason = (
        f"denied: policy {policy.name} of {connection.ends(direction)[0]} cannot be read"
        f" ({policy.error}), so it allows nothing"
    )
    return Verdict(False, direction, policy.tier, policy.name, None, reason)
