# SPDX-License-Identifier: Apache-2.0
"""Policies as protobuf messages; `wire` reads them back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    Rule,
    Selector,
    Tier,
    Verdict,
    Workloads,
)
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.spec import policy_pb2 as pb

_TIERS: Final = {
    Tier.ADMIN: pb.Policy.ADMIN,
    Tier.NAMESPACE: pb.Policy.NAMESPACE,
    Tier.BASELINE: pb.Policy.BASELINE,
}
_OPERATORS: Final = {
    Operator.IN: pb.Requirement.IN,
    Operator.NOT_IN: pb.Requirement.NOT_IN,
    Operator.EXISTS: pb.Requirement.EXISTS,
    Operator.DOES_NOT_EXIST: pb.Requirement.DOES_NOT_EXIST,
}
_ACTIONS: Final = {
    Action.ACCEPT: pb.Rule.ACCEPT,
    Action.DENY: pb.Rule.DENY,
    Action.PASS: pb.Rule.PASS,
}
_PROTOCOLS: Final = {
    None: pb.PROTOCOL_UNSPECIFIED,
    Protocol.TCP: pb.TCP,
    Protocol.UDP: pb.UDP,
    Protocol.SCTP: pb.SCTP,
}


def policy(one: Policy) -> pb.Policy:
    """Return the message of a policy."""
    return pb.Policy(
        name=one.name,
        tier=_TIERS[one.tier],
        priority=one.priority,
        subject=_workloads(one.subject),
        isolates_ingress=Direction.INGRESS in one.isolates,
        isolates_egress=Direction.EGRESS in one.isolates,
        ingress=map(_rule, one.ingress),
        egress=map(_rule, one.egress),
        error=one.error,
    )


def request(source: Source) -> pb.SetPoliciesRequest:
    """Return the request that sets a source's policies."""
    return pb.SetPoliciesRequest(
        source=source.name,
        generation=source.generation,
        policies=map(policy, source.policies),
        namespaces=namespaces(source.namespaces),
    )


def namespaces(labels: Mapping[str, Mapping[str, str]]) -> Iterable[pb.Namespace]:
    """Yield the messages of namespaces."""
    for name, one in labels.items():
        yield pb.Namespace(name=name, labels=one)


def explained(version: int, verdict: Verdict) -> pb.Explained:
    """Return the answer of Explain for an IP version."""
    return pb.Explained(
        ip_version=version,
        allowed=verdict.allowed,
        reason=verdict.reason,
        policy=verdict.policy,
        tier=_TIERS[verdict.tier] if verdict.tier else pb.Policy.TIER_UNSPECIFIED,
        direction=verdict.direction.value if verdict.direction else "",
        rule=0 if verdict.rule is None else verdict.rule + 1,
    )


def _rule(one: Rule) -> pb.Rule:
    return pb.Rule(
        peers=map(_peer, one.peers or ()),
        any_peer=one.peers is None,
        ports=map(_port, one.ports or ()),
        any_port=one.ports is None,
        action=_ACTIONS[one.action],
        name=one.name,
    )


def _peer(one: Peer) -> pb.Peer:
    if isinstance(one, Networks):
        prefixes, excepts = map(str, one.prefixes), map(str, one.excepts)
        return pb.Peer(networks=pb.Networks(prefixes=prefixes, excepts=excepts))
    return pb.Peer(workloads=_workloads(one))


def _workloads(one: Workloads) -> pb.Workloads:
    return pb.Workloads(namespaces=_selector(one.namespaces), workloads=_selector(one.workloads))


def _selector(selector: Selector) -> pb.Selector:
    return pb.Selector(
        requirements=[
            pb.Requirement(key=one.key, operator=_OPERATORS[one.operator], values=one.values)
            for one in selector
        ]
    )


def _port(one: Ports | NamedPort) -> pb.Port:
    protocol = _PROTOCOLS[one.protocol]
    if isinstance(one, NamedPort):
        return pb.Port(protocol=protocol, name=one.name)
    # 0 to 65535 is the whole protocol.
    last = one.last if one.first else 0
    return pb.Port(protocol=protocol, first=one.first, last=last)
