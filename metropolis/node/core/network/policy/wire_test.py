# SPDX-License-Identifier: Apache-2.0
"""What is written is read back; what cannot be is refused by its path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.policy import messages, wire
from metropolis.node.core.network.policy.model import (
    Action,
    Direction,
    NamedPort,
    Networks,
    Operator,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    Tier,
    Workloads,
)
from metropolis.node.core.network.policy.spec import policy_pb2 as pb
from metropolis.node.core.network.workloads.errors import InvalidArgument

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
VALUES = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
REQUIREMENTS = st.one_of(
    st.builds(Requirement, NAMES, st.sampled_from([Operator.IN, Operator.NOT_IN]), VALUES),
    st.builds(Requirement, NAMES, st.sampled_from([Operator.EXISTS, Operator.DOES_NOT_EXIST])),
)
SELECTORS = st.lists(REQUIREMENTS, max_size=3).map(tuple)
WORKLOADS = st.builds(Workloads, SELECTORS, SELECTORS)
NETWORKS = st.sampled_from(
    [
        Networks((ip_network("0.0.0.0/0"),), (ip_network("10.0.0.0/8"),)),
        Networks((ip_network("2001:db8::/32"), ip_network("192.0.2.1/32"))),
        Networks((ip_network("::/0"),), (ip_network("fe80::/10"), ip_network("fc00::/7"))),
    ]
)
RANGES = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(sorted)
PORTS = st.one_of(
    st.builds(lambda protocol, ends: Ports(protocol, *ends), st.sampled_from(Protocol), RANGES),
    st.builds(Ports, st.sampled_from(Protocol)),
    st.builds(NamedPort, NAMES, st.sampled_from([None, *Protocol])),
)


def rules(actions: st.SearchStrategy[Action]) -> st.SearchStrategy[tuple[Rule, ...]]:
    some = [st.lists(one, max_size=3).map(tuple) for one in (st.one_of(WORKLOADS, NETWORKS), PORTS)]
    peers, ports = (st.none() | one for one in some)
    return st.lists(st.builds(Rule, peers, ports, actions, NAMES), max_size=3).map(tuple)


def in_namespaces() -> st.SearchStrategy[Policy]:
    allow = rules(st.just(Action.ACCEPT))
    isolates = st.sets(st.sampled_from(Direction), min_size=1).map(frozenset)
    return st.builds(Policy, NAMES, st.just(Tier.NAMESPACE), WORKLOADS, allow, allow, isolates)


def of_clusters() -> st.SearchStrategy[Policy]:
    some = rules(st.sampled_from(Action))
    tiers = st.sampled_from([Tier.ADMIN, Tier.BASELINE])
    priorities = st.integers(0, 1000)
    return st.builds(Policy, NAMES, tiers, WORKLOADS, some, some, priority=priorities)


@given(st.lists(in_namespaces() | of_clusters(), max_size=3, unique_by=lambda one: one.name))
def test_what_is_written_is_read(policies: list[Policy]) -> None:
    data = pb.SetPoliciesRequest(policies=map(messages.policy, policies)).SerializeToString()
    assert wire.policies(pb.SetPoliciesRequest.FromString(data).policies) == tuple(policies)


@given(in_namespaces())
def test_an_error_is_kept(policy: Policy) -> None:
    wrong = replace(policy, error="spec.ingress: what?", isolates=frozenset())
    assert wire.policies([messages.policy(wrong)]) == (wrong,)


@given(st.binary(max_size=300))
def test_garbage(data: bytes) -> None:
    """Refused, or a set of policies that can be written again."""
    try:
        request = pb.SetPoliciesRequest.FromString(data)
    except DecodeError:
        return
    try:
        source = wire.source_of(request)
    except InvalidArgument as error:
        assert str(error)
        return
    assert wire.policies(map(messages.policy, source.policies)) == source.policies


def valid() -> pb.Policy:
    return pb.Policy(
        name="default/web",
        tier=pb.Policy.NAMESPACE,
        isolates_ingress=True,
        ingress=[
            pb.Rule(
                peers=[pb.Peer(networks=pb.Networks(prefixes=["192.0.2.0/24"]))],
                ports=[pb.Port(protocol=pb.TCP, first=80)],
            )
        ],
    )


def port(policy: pb.Policy, **fields: object) -> None:
    policy.ingress[0].ports[0].CopyFrom(pb.Port(**fields))  # type: ignore[arg-type]


def networks(policy: pb.Policy, prefix: str, *excepts: str) -> None:
    policy.ingress[0].peers[0].networks.CopyFrom(pb.Networks(prefixes=[prefix], excepts=excepts))


def requirement(policy: pb.Policy, **fields: object) -> None:
    policy.subject.workloads.requirements.add(**fields)


WRONG: list[tuple[Callable[[pb.Policy], object], str]] = [
    (lambda one: setattr(one, "name", ""), "policies[0].name '': must be 1 to 512"),
    (lambda one: setattr(one, "name", "a\nb"), "policies[0].name 'a\\nb': must be"),
    (lambda one: setattr(one, "tier", 0), "policies[0].tier 0: is none"),
    (lambda one: setattr(one, "tier", 9), "policies[0].tier 9: is none"),
    (lambda one: setattr(one, "isolates_ingress", False), "policies[0].isolates_ingress"),
    (lambda one: setattr(one, "priority", 1), "policies[0].priority 1: must be at most 0"),
    (
        lambda one: setattr(one.ingress[0], "action", pb.Rule.DENY),
        "policies[0].ingress[0].action 'Deny': the tier NAMESPACE only accepts",
    ),
    (
        lambda one: setattr(one.ingress[0], "any_peer", True),
        "policies[0].ingress[0].peers: there are some with any_peer",
    ),
    (
        lambda one: setattr(one.ingress[0], "any_port", True),
        "policies[0].ingress[0].ports: there are some with any_port",
    ),
    (
        lambda one: one.ingress[0].peers.add(),
        "policies[0].ingress[0].peers[1]: has neither workloads nor networks",
    ),
    (
        lambda one: networks(one, "192.0.2.0/33"),
        "ingress[0].peers[0].networks.prefixes[0] '192.0.2.0/33': is no CIDR",
    ),
    (
        lambda one: networks(one, "192.0.2.0/24", "192.0.3.0/28"),
        "ingress[0].peers[0].networks.excepts[0] '192.0.3.0/28': lies in none",
    ),
    (
        lambda one: networks(one, "192.0.2.0/24", "::/0"),
        "ingress[0].peers[0].networks.excepts[0] '::/0': lies in none",
    ),
    (lambda one: port(one, first=65536), "ingress[0].ports[0].first 65536: must be 1 to 65535"),
    (lambda one: port(one, last=80), "ingress[0].ports[0].last 80: needs first"),
    (lambda one: port(one, first=80, last=79), "ingress[0].ports[0].last 79: is below first, 80"),
    (lambda one: port(one, first=80, name="x"), "ingress[0].ports[0].name 'x': comes in place"),
    (lambda one: port(one, protocol=9), "ingress[0].ports[0].protocol 9: is none"),
    (
        lambda one: requirement(one, key="app", operator=pb.Requirement.IN),
        "subject.workloads.requirements[0].values '': In needs values",
    ),
    (
        lambda one: requirement(one, key="app", operator=pb.Requirement.EXISTS, values=["x"]),
        "subject.workloads.requirements[0].values 'x': Exists has no values",
    ),
    (
        lambda one: requirement(one, operator=pb.Requirement.EXISTS),
        "subject.workloads.requirements[0].key '': must be",
    ),
]


@pytest.mark.parametrize(("spoil", "text"), WRONG, ids=[text for _, text in WRONG])
def test_what_is_wrong_is_named(spoil: Callable[[pb.Policy], object], text: str) -> None:
    one = valid()
    assert wire.policies([one])
    spoil(one)
    with pytest.raises(InvalidArgument) as raised:
        wire.policies([one])
    assert text in str(raised.value)


def test_names_are_unique() -> None:
    with pytest.raises(InvalidArgument, match=r"policies\[1\]\.name 'default/web': is there twice"):
        wire.policies([valid(), valid()])


@pytest.mark.parametrize("name", ["A", "-a", "a-", "a" * 64, "a/b", ".", ".."])
def test_sources(name: str) -> None:
    """They are names of files."""
    with pytest.raises(InvalidArgument, match=r"^source "):
        wire.source(name)
    assert wire.source("") == "api"
    assert wire.source("a" * 63) == "a" * 63
