# SPDX-License-Identifier: Apache-2.0
"""Reads policies from protobuf messages; `messages` makes them. Pure.

What is read is checked: each error names the field by its path, and the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Final

from metropolis.node.core.network.policy.model import (
    Action,
    Direction,
    NamedPort,
    Networks,
    Operator,
    Peer,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    Selector,
    Tier,
    Workloads,
)
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.spec import policy_pb2 as pb
from metropolis.node.core.network.workloads.api.identity import TEXT_MAX, labels, text
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import IPAddress, IPNetwork
from metropolis.node.core.network.workloads.validate import show

SOURCE_API: Final = "api"
"""The source of policies whose caller names none."""

PRIORITY_MAX: Final = 1000
POLICIES_MAX: Final = 20_000

_SOURCE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PROTOCOLS: Final[Mapping[int, Protocol]] = {
    pb.TCP: Protocol.TCP,
    pb.UDP: Protocol.UDP,
    pb.SCTP: Protocol.SCTP,
}
_TIERS: Final[Mapping[int, Tier]] = {
    pb.Policy.ADMIN: Tier.ADMIN,
    pb.Policy.NAMESPACE: Tier.NAMESPACE,
    pb.Policy.BASELINE: Tier.BASELINE,
}
_OPERATORS: Final[Mapping[int, Operator]] = {
    pb.Requirement.IN: Operator.IN,
    pb.Requirement.NOT_IN: Operator.NOT_IN,
    pb.Requirement.EXISTS: Operator.EXISTS,
    pb.Requirement.DOES_NOT_EXIST: Operator.DOES_NOT_EXIST,
}
_ACTIONS: Final[Mapping[int, Action]] = {
    pb.Rule.ACTION_UNSPECIFIED: Action.ACCEPT,
    pb.Rule.ACCEPT: Action.ACCEPT,
    pb.Rule.DENY: Action.DENY,
    pb.Rule.PASS: Action.PASS,
}


# ---- Policies ----------------------------------------------------------------


def source(name: str) -> str:
    """Return the source of a request. Raises InvalidArgument."""
    if name and not _SOURCE.fullmatch(name):
        raise _wrong("source", name, "must be 1 to 63 of a-z, 0-9 and -, not at its ends")
    return name or SOURCE_API


def source_of(request: pb.SetPoliciesRequest) -> Source:
    """Read what a source sets. Raises InvalidArgument."""
    return Source(
        source(request.source),
        request.generation,
        policies(request.policies),
        namespaces(request.namespaces),
    )


def policies(messages: Iterable[pb.Policy]) -> tuple[Policy, ...]:
    """Read policies, of different names. Raises InvalidArgument."""
    found: dict[str, Policy] = {}
    for number, message in enumerate(messages):
        path = f"policies[{number}]"
        if number >= POLICIES_MAX:
            most = f"policies: at most {POLICIES_MAX} are possible"
            raise InvalidArgument(most, field="policies")
        one = _policy(path, message)
        if one.name in found:
            raise _wrong(f"{path}.name", one.name, "is there twice")
        found[one.name] = one
    return tuple(found.values())


def namespaces(messages: Iterable[pb.Namespace]) -> dict[str, dict[str, str]]:
    """Read labels of namespaces. Raises InvalidArgument."""
    found: dict[str, dict[str, str]] = {}
    for number, message in enumerate(messages):
        path = f"namespaces[{number}]"
        name = text(f"{path}.name", message.name)
        if name in found:
            raise _wrong(f"{path}.name", name, "is there twice")
        found[name] = labels(f"{path}.labels", message.labels)
    return found


def _policy(path: str, message: pb.Policy) -> Policy:
    name = text(f"{path}.name", message.name)
    tier = _one_of(f"{path}.tier", message.tier, _TIERS)
    isolates = [
        direction
        for direction, is_set in (
            (Direction.INGRESS, message.isolates_ingress),
            (Direction.EGRESS, message.isolates_egress),
        )
        if is_set
    ]
    in_namespaces = tier is Tier.NAMESPACE
    if bool(isolates) is not in_namespaces and not message.error:
        which = "one or both are of the tier NAMESPACE, and none of the others"
        raise InvalidArgument(f"{path}.isolates_ingress, isolates_egress: {which}", field=path)
    most = 0 if in_namespaces else PRIORITY_MAX
    if message.priority > most:
        raise _wrong(f"{path}.priority", message.priority, f"must be at most {most} in this tier")
    return Policy(
        name,
        tier,
        _workloads(f"{path}.subject", message.subject),
        _rules(f"{path}.ingress", message.ingress, tier),
        _rules(f"{path}.egress", message.egress, tier),
        frozenset(isolates),
        message.priority,
        message.error,
    )


def _rules(path: str, messages: Iterable[pb.Rule], tier: Tier) -> tuple[Rule, ...]:
    found = []
    for number, message in enumerate(messages):
        where = f"{path}[{number}]"
        action = _one_of(f"{where}.action", message.action, _ACTIONS)
        if tier is Tier.NAMESPACE and action is not Action.ACCEPT:
            raise _wrong(f"{where}.action", action.value, "the tier NAMESPACE only accepts")
        if message.any_peer and message.peers:
            raise _both(f"{where}.peers", "any_peer")
        if message.any_port and message.ports:
            raise _both(f"{where}.ports", "any_port")
        peers = None if message.any_peer else _each(f"{where}.peers", message.peers, _peer)
        ports = None if message.any_port else _each(f"{where}.ports", message.ports, _ports)
        found.append(Rule(peers, ports, action, message.name[:TEXT_MAX]))
    return tuple(found)


def _peer(path: str, message: pb.Peer) -> Peer:
    match message.WhichOneof("kind"):
        case "workloads":
            return _workloads(f"{path}.workloads", message.workloads)
        case "networks":
            return _networks(f"{path}.networks", message.networks)
        case _:
            raise InvalidArgument(f"{path}: has neither workloads nor networks", field=path)


def _workloads(path: str, message: pb.Workloads) -> Workloads:
    return Workloads(
        _selector(f"{path}.namespaces", message.namespaces),
        _selector(f"{path}.workloads", message.workloads),
    )


def _selector(path: str, message: pb.Selector) -> Selector:
    return _each(f"{path}.requirements", message.requirements, _requirement)


def _requirement(path: str, message: pb.Requirement) -> Requirement:
    operator = _one_of(f"{path}.operator", message.operator, _OPERATORS)
    with_values = operator in (Operator.IN, Operator.NOT_IN)
    if with_values is not bool(message.values):
        need = "needs values" if with_values else "has no values"
        raise _wrong(f"{path}.values", ", ".join(message.values), f"{operator.value} {need}")
    return Requirement(text(f"{path}.key", message.key), operator, tuple(message.values))


def _networks(path: str, message: pb.Networks) -> Networks:
    prefixes = _each(f"{path}.prefixes", message.prefixes, _network)
    excepts = _each(f"{path}.excepts", message.excepts, _network)
    known, lengths = frozenset(prefixes), {prefix.prefixlen for prefix in prefixes}
    for number, one in enumerate(excepts):
        around = (one.supernet(new_prefix=size) for size in lengths if size <= one.prefixlen)
        if known.isdisjoint(around):
            raise _wrong(f"{path}.excepts[{number}]", str(one), "lies in none of the prefixes")
    return Networks(prefixes, excepts)


def _network(path: str, text: str) -> IPNetwork:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise _wrong(path, text, "is no CIDR") from None


def _ports(path: str, message: pb.Port) -> Ports | NamedPort:
    protocol = _protocol(f"{path}.protocol", message.protocol)
    if message.name:
        if message.first or message.last:
            raise _wrong(f"{path}.name", message.name, "comes in place of numbers")
        return NamedPort(text(f"{path}.name", message.name), protocol)
    if not message.first:
        if message.last:
            raise _wrong(f"{path}.last", message.last, "needs first")
        return Ports(protocol or Protocol.TCP)
    first = _port(f"{path}.first", message.first)
    last = _port(f"{path}.last", message.last) if message.last else first
    if last < first:
        raise _wrong(f"{path}.last", last, f"is below first, {first}")
    return Ports(protocol or Protocol.TCP, first, last)


# ---- Explain -----------------------------------------------------------------


def protocol(number: int) -> Protocol | None:
    """Read the protocol of a question. Raises InvalidArgument."""
    return _protocol("protocol", number)


def address(path: str, packed: bytes) -> IPAddress:
    """Read an address. Raises InvalidArgument."""
    if len(packed) not in (4, 16):
        raise _wrong(path, packed.hex(), f"must have 4 or 16 bytes, has {len(packed)}")
    return ip_address(packed)


# ---- Fields ------------------------------------------------------------------


def _each[M, T](path: str, messages: Iterable[M], read: Callable[[str, M], T]) -> tuple[T, ...]:
    return tuple(read(f"{path}[{number}]", one) for number, one in enumerate(messages))


def _one_of[T](path: str, number: int, known: Mapping[int, T]) -> T:
    if number not in known:
        raise _wrong(path, number, "is none that this version knows, or missing")
    return known[number]


def _protocol(path: str, number: int) -> Protocol | None:
    return None if number == pb.PROTOCOL_UNSPECIFIED else _one_of(path, number, _PROTOCOLS)


def _port(path: str, number: int) -> int:
    if not 1 <= number <= 0xFFFF:
        raise _wrong(path, number, "must be 1 to 65535")
    return number


def _both(path: str, other: str) -> InvalidArgument:
    return InvalidArgument(f"{path}: there are some with {other}", field=path)


def _wrong(path: str, value: str | int, why: str) -> InvalidArgument:
    said = value if isinstance(value, int) else show(value)
    return InvalidArgument(f"{path} {said}: {why}", field=path)
