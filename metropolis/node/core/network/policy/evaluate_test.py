# SPDX-License-Identifier: Apache-2.0
"""The rules of Kubernetes' NetworkPolicy and ClusterNetworkPolicy, by example.

Each test is a sentence of their texts, or of the docstrings of the model. The
world has clients and a database in the namespace default, and a guest in the
namespace web.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from metropolis.node.core.network.policy.evaluate import Evaluator
from metropolis.node.core.network.policy.model import (
    NAMESPACE_NAME,
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
    Selector,
    Tier,
    Workload,
    Workloads,
    World,
)
from metropolis.node.core.network.workloads.model import IPAddress

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
INGRESS, EGRESS = frozenset({Direction.INGRESS}), frozenset({Direction.EGRESS})
BOTH = INGRESS | EGRESS
ALL = Workloads()


def label(key: str, value: str) -> Selector:
    return (Requirement(key, Operator.IN, (value,)),)


IN_DEFAULT = label(NAMESPACE_NAME, "default")
DB = Workloads(IN_DEFAULT, label("app", "db"))
CLIENTS = Workloads(IN_DEFAULT, label("app", "client"))
WEB = Workloads(label("team", "web"))
OUTSIDE = ip_address("192.0.2.9")

WORKLOADS = (
    Workload(
        "db",
        (ip_address("10.0.0.1"), ip_address("fd00::1")),
        "default",
        {"app": "db"},
        {"sql": (TCP, 5432), "dns": (UDP, 53)},
    ),
    Workload(
        "client", (ip_address("10.0.0.2"), ip_address("fd00::2")), "default", {"app": "client"}
    ),
    Workload("guest", (ip_address("10.0.0.3"), ip_address("fd00::3")), "web", {"app": "client"}),
    Workload("bare", (ip_address("10.0.0.4"),)),
    Workload("unknown", (ip_address("10.0.0.5"),), known=False),
)


def evaluator(*policies: Policy) -> Evaluator:
    return Evaluator(World(policies, {"web": {"team": "web"}}, WORKLOADS))


def isolating(
    subject: Workloads,
    directions: frozenset[Direction] = INGRESS,
    ingress: tuple[Rule, ...] = (),
    egress: tuple[Rule, ...] = (),
    name: str = "default/p",
) -> Policy:
    return Policy(name, Tier.NAMESPACE, subject, ingress, egress, directions)


def cluster(
    *ingress: Rule,
    tier: Tier = Tier.ADMIN,
    subject: Workloads = DB,
    egress: tuple[Rule, ...] = (),
    priority: int = 0,
    name: str = "admin",
) -> Policy:
    return Policy(name, tier, subject, ingress, egress, priority=priority)


def networks(*prefixes: str, excepts: tuple[str, ...] = ()) -> Networks:
    return Networks(
        tuple(ip_network(text) for text in prefixes), tuple(ip_network(text) for text in excepts)
    )


def passes(
    judge: Evaluator,
    source: str | IPAddress,
    destination: str | IPAddress,
    protocol: Protocol | None = TCP,
    port: int = 5432,
    version: int | None = None,
) -> bool:
    return judge.verdict(source, destination, protocol, port, version).allowed


# NetworkPolicy.


def test_without_policies_everything_passes() -> None:
    verdict = evaluator().verdict("client", "db", TCP, 1)
    assert (verdict.allowed, verdict.policy, verdict.direction) == (True, "", None)
    assert verdict.reason == "allowed: no policy decides about it"
    assert passes(evaluator(), "unknown", "db")
    assert passes(evaluator(), OUTSIDE, "unknown")


def test_a_selected_workload_is_isolated_in_the_directions_named() -> None:
    judge = evaluator(isolating(DB))
    verdict = judge.verdict("client", "db", TCP, 5432)
    assert verdict.reason == (
        "denied: db is isolated for ingress by policy default/p, and no rule allows it"
    )
    assert (verdict.direction, verdict.tier, verdict.policy, verdict.rule) == (
        Direction.INGRESS,
        Tier.NAMESPACE,
        "default/p",
        None,
    )
    assert not passes(judge, OUTSIDE, "db")
    assert passes(judge, "db", "client")
    assert passes(judge, "db", OUTSIDE)
    assert passes(judge, "client", "guest")


def test_rules_of_a_direction_that_does_not_isolate_mean_nothing() -> None:
    judge = evaluator(isolating(DB, INGRESS, egress=(Rule((CLIENTS,), None),)))
    assert passes(judge, "db", "guest")


def test_a_workload_reaches_itself_always() -> None:
    judge = evaluator(isolating(ALL, BOTH), cluster(Rule(None, None, Action.DENY)))
    assert passes(judge, "db", "db")
    assert passes(judge, ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert passes(judge, "unknown", "unknown")


def test_policies_add_up() -> None:
    judge = evaluator(
        isolating(DB, name="default/a", ingress=(Rule((CLIENTS,), None),)),
        isolating(DB, name="default/b", ingress=(Rule((WEB,), None, name="web"),)),
    )
    assert passes(judge, "client", "db")
    verdict = judge.verdict("guest", "db", TCP, 1)
    assert (verdict.policy, verdict.rule) == ("default/b", 0)
    assert verdict.reason == 'allowed: ingress rule 1 "web" of policy default/b of db'
    assert not passes(judge, "bare", "db")


def test_both_ends_must_allow() -> None:
    sends = isolating(CLIENTS, EGRESS, egress=(Rule((DB,), None),), name="default/sends")
    assert passes(evaluator(sends), "client", "db")
    judge = evaluator(sends, isolating(DB))
    assert judge.verdict("client", "db", TCP, 1).direction is Direction.INGRESS
    judge = evaluator(
        isolating(CLIENTS, EGRESS), isolating(DB, ingress=(Rule(None, None),), name="default/q")
    )
    assert judge.verdict("client", "db", TCP, 1).direction is Direction.EGRESS


def test_an_allowed_verdict_names_the_last_end_that_decided() -> None:
    sends = isolating(CLIENTS, EGRESS, egress=(Rule((DB,), None),), name="default/sends")
    gets = isolating(DB, ingress=(Rule(None, None),), name="default/gets")
    assert evaluator(sends, gets).verdict("client", "db", TCP, 1).policy == "default/gets"
    verdict = evaluator(sends).verdict("client", "db", TCP, 1)
    assert (verdict.policy, verdict.direction) == ("default/sends", Direction.EGRESS)


def test_a_peer_needs_both_its_selectors() -> None:
    judge = evaluator(isolating(DB, ingress=(Rule((CLIENTS,), None),)))
    assert passes(judge, "client", "db")
    assert not passes(judge, "guest", "db")  # the label, in another namespace


def test_everybody_and_nobody() -> None:
    judge = evaluator(isolating(DB, ingress=(Rule(None, None),)))
    for source in ("client", "guest", "bare", OUTSIDE):
        assert passes(judge, source, "db")
    judge = evaluator(isolating(DB, ingress=(Rule((), None), Rule(None, ()))))
    for source in ("client", "guest", "bare", OUTSIDE):
        assert not passes(judge, source, "db")


@pytest.mark.parametrize(
    ("protocol", "port", "allowed"),
    [
        (TCP, 79, False),
        (TCP, 80, True),
        (TCP, 90, True),
        (TCP, 91, False),
        (UDP, 85, False),
        (SCTP, 85, False),
        (None, 85, False),
    ],
)
def test_ports_are_ranges_of_one_protocol(
    protocol: Protocol | None, port: int, allowed: bool
) -> None:
    judge = evaluator(isolating(DB, ingress=(Rule(None, (Ports(TCP, 80, 90),)),)))
    assert passes(judge, "client", "db", protocol, port) is allowed


def test_a_rule_without_ports_allows_protocols_without_ports() -> None:
    judge = evaluator(isolating(DB, ingress=(Rule((CLIENTS,), None),)))
    assert passes(judge, "client", "db", None)
    assert not passes(judge, "guest", "db", None)


def test_a_named_port_is_the_destinations_with_its_protocol() -> None:
    judge = evaluator(isolating(DB, ingress=(Rule(None, (NamedPort("sql"), NamedPort("dns"))),)))
    assert passes(judge, "client", "db", TCP, 5432)
    assert not passes(judge, "client", "db", UDP, 5432)
    assert not passes(judge, "client", "db", UDP, 53)  # the rule says TCP
    judge = evaluator(isolating(DB, ingress=(Rule(None, (NamedPort("dns", None),)),)))
    assert passes(judge, "client", "db", UDP, 53)
    judge = evaluator(isolating(CLIENTS, EGRESS, egress=(Rule(None, (NamedPort("sql"),)),)))
    assert passes(judge, "client", "db", TCP, 5432)
    assert not passes(judge, "client", "guest", TCP, 5432)
    assert not passes(judge, "client", OUTSIDE, TCP, 5432)


def test_networks_without_their_excepts() -> None:
    peer = networks("192.0.2.0/24", excepts=("192.0.2.8/30",))
    judge = evaluator(isolating(DB, BOTH, (Rule((peer,), None),), (Rule((peer,), None),)))
    for text, allowed in (("192.0.2.7", True), ("192.0.2.9", False), ("198.51.100.1", False)):
        assert passes(judge, ip_address(text), "db") is allowed
        assert passes(judge, "db", ip_address(text)) is allowed


def test_networks_match_workloads_by_the_address_of_the_connection() -> None:
    judge = evaluator(isolating(DB, ingress=(Rule((networks("10.0.0.0/24"),), None),)))
    assert passes(judge, "client", "db")
    assert passes(judge, "client", "db", version=4)
    assert not passes(judge, "client", "db", version=6)
    assert not passes(judge, ip_address("fd00::2"), "db")
    assert passes(judge, "bare", "db")


def test_a_workload_without_namespace_is_matched_by_networks_only() -> None:
    judge = evaluator(isolating(ALL, BOTH, ingress=(Rule((ALL,), None),)))
    assert not passes(judge, "bare", "db")
    assert passes(judge, OUTSIDE, "bare")
    assert passes(judge, "bare", OUTSIDE)


def test_unknown_labels_isolate_as_soon_as_there_is_a_policy() -> None:
    everybody = (Rule(None, None), Rule((networks("0.0.0.0/0"),), None))
    judge = evaluator(isolating(DB, BOTH, everybody, everybody))
    for source, destination in (("unknown", "db"), ("db", "unknown"), (OUTSIDE, "unknown")):
        verdict = judge.verdict(source, destination, TCP, 1)
        assert not verdict.allowed
        assert verdict.policy == ""
        assert "labels of unknown are not known" in verdict.reason
    broken = Policy("broken", Tier.NAMESPACE, DB, error="bad")
    assert not passes(evaluator(broken), "unknown", "client")


# Policies that cannot be read.


def test_a_broken_policy_isolates_in_both_directions_and_allows_nothing() -> None:
    rules = (Rule(None, None),)
    broken = Policy("default/x", Tier.NAMESPACE, DB, rules, rules, error="unknown field spec.x")
    judge = evaluator(broken)
    verdict = judge.verdict("client", "db", TCP, 1)
    assert not verdict.allowed
    assert "default/x of db cannot be read (unknown field spec.x)" in verdict.reason
    assert not passes(judge, "db", OUTSIDE)
    assert passes(judge, "client", "guest")
    other = isolating(DB, ingress=(Rule((CLIENTS,), None),), name="default/y")
    assert passes(evaluator(broken, other), "client", "db")


@pytest.mark.parametrize("tier", [Tier.ADMIN, Tier.BASELINE])
def test_a_broken_cluster_policy_denies(tier: Tier) -> None:
    rules = (Rule(None, None),)
    judge = evaluator(Policy("x", tier, DB, rules, rules, error="bad"))
    verdict = judge.verdict("client", "db", TCP, 1)
    assert (verdict.allowed, verdict.tier, verdict.rule) == (False, tier, None)
    assert not passes(judge, "db", "client", None)


# ClusterNetworkPolicy.


def test_the_first_rule_that_matches_decides() -> None:
    judge = evaluator(cluster(Rule((CLIENTS,), None, Action.ACCEPT), Rule(None, None, Action.DENY)))
    assert passes(judge, "client", "db")
    verdict = judge.verdict("guest", "db", TCP, 1)
    assert (verdict.allowed, verdict.policy, verdict.rule) == (False, "admin", 1)
    assert verdict.reason == "denied: ingress rule 2 of policy admin of db"


def test_lower_priority_numbers_go_first_and_then_names() -> None:
    accept, deny = Rule(None, None, Action.ACCEPT), Rule(None, None, Action.DENY)
    assert passes(
        evaluator(cluster(deny, priority=5, name="a"), cluster(accept, priority=4, name="b")),
        "client",
        "db",
    )
    assert not passes(evaluator(cluster(accept, name="b"), cluster(deny, name="a")), "client", "db")


def test_the_admin_tier_is_before_network_policies() -> None:
    accept, deny = Rule(None, None, Action.ACCEPT), Rule(None, None, Action.DENY)
    assert passes(evaluator(cluster(accept), isolating(DB)), "client", "db")
    allows = isolating(DB, ingress=(Rule(None, None),))
    assert not passes(evaluator(cluster(deny), allows), "client", "db")


def test_the_baseline_tier_decides_only_without_network_policies() -> None:
    deny = cluster(Rule(None, None, Action.DENY), tier=Tier.BASELINE)
    assert not passes(evaluator(deny), "client", "db")
    assert passes(evaluator(deny, isolating(DB, ingress=(Rule(None, None),))), "client", "db")
    accept = cluster(Rule(None, None, Action.ACCEPT), tier=Tier.BASELINE)
    assert not passes(evaluator(accept, isolating(DB)), "client", "db")


def test_pass_skips_the_rest_of_the_tier() -> None:
    skip, deny = Rule((CLIENTS,), None, Action.PASS), Rule(None, None, Action.DENY)
    admin = cluster(skip, deny)
    lower = cluster(deny, priority=9, name="later")
    assert passes(evaluator(admin, lower), "client", "db")
    assert not passes(evaluator(admin, lower), "guest", "db")
    assert not passes(evaluator(admin, isolating(DB)), "client", "db")
    baseline = cluster(deny, tier=Tier.BASELINE, name="baseline")
    assert not passes(evaluator(admin, baseline), "client", "db")


def test_what_no_tier_decides_passes() -> None:
    judge = evaluator(cluster(Rule((WEB,), None, Action.DENY)))
    assert passes(judge, "client", "db")
    assert not passes(judge, "guest", "db")


def test_cluster_policies_do_not_isolate_in_the_other_direction() -> None:
    judge = evaluator(cluster(egress=(Rule((CLIENTS,), None, Action.DENY),)))
    assert not passes(judge, "db", "client")
    assert passes(judge, "client", "db")


def test_a_denied_prefix_denies_workloads_in_it() -> None:
    deny = Rule((networks("10.0.0.0/24", "192.0.2.0/24"),), None, Action.DENY)
    judge = evaluator(cluster(egress=(deny,)))
    assert not passes(judge, "db", "client")
    assert not passes(judge, "db", OUTSIDE)
    assert passes(judge, "db", "client", version=6)


# The question.


def test_an_address_of_a_workload_is_the_workload() -> None:
    judge = evaluator(isolating(DB, ingress=(Rule((CLIENTS,), None),)))
    assert passes(judge, ip_address("10.0.0.2"), ip_address("10.0.0.1"))
    assert not passes(judge, ip_address("fd00::3"), "db")


def test_the_world_and_the_world() -> None:
    judge = evaluator(isolating(ALL, BOTH))
    assert passes(judge, OUTSIDE, ip_address("192.0.2.10"))


@pytest.mark.parametrize(
    ("source", "destination", "version", "pattern"),
    [
        ("nobody", "db", None, "no workload has the key 'nobody'"),
        (ip_address("10.0.0.2"), ip_address("fd00::1"), None, "one IP version"),
        (ip_address("10.0.0.2"), "db", 6, "one IP version"),
        ("bare", ip_address("fd00::1"), None, "bare has no IPv6 address"),
        ("bare", "db", 6, "bare has no IPv6 address"),
    ],
)
def test_questions_without_an_answer(
    source: str | IPAddress, destination: str | IPAddress, version: int | None, pattern: str
) -> None:
    with pytest.raises(ValueError, match=pattern):
        evaluator().verdict(source, destination, TCP, 1, version)


def test_workloads_without_a_common_version() -> None:
    world = World(
        workloads=(
            Workload("four", (ip_address("10.0.0.1"),)),
            Workload("six", (ip_address("fd00::1"),)),
        )
    )
    with pytest.raises(ValueError, match="no addresses of one IP version"):
        Evaluator(world).verdict("four", "six", TCP, 1)
