# SPDX-License-Identifier: Apache-2.0
"""Cases of ClusterNetworkPolicies. All are of one step, and have the tag
cluster. No two policies of a tier have one priority: their order is open.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from metropolis.test.policy.manifests import (
    ALL,
    DIRECTIONS,
    Part,
    absent,
    cluster_policy,
    is_in,
    labels,
    network_policy,
    not_in,
    peer,
    rule,
    tier_pods,
    tier_port,
    tier_rule,
)
from metropolis.test.policy.scene import ANYWHERE, FULL, OUTSIDE, VERSIONS, Case, Step

TIERS: Final = ("Admin", "Baseline")
ACTIONS: Final = ("Accept", "Deny", "Pass")
_X: Final[Part] = {"namespaces": labels(ns="x")}
_Y: Final[Part] = {"namespaces": labels(ns="y")}
_EVERYONE: Final[Part] = {"namespaces": ALL}
_B: Final = tier_pods(labels(pod="b"), ALL)


def cases() -> list[Case]:
    """Return them all."""
    found = [
        *_over_network_policies(),
        *_peers(),
        *_subjects(),
        *_protocols(),
        *_networks(),
        *_orders(),
        *_whole(),
    ]
    return [
        Case(f"cluster/{name}", frozenset({"cluster", *tags.split()}), (Step("created", policies),))
        for name, tags, policies in found
    ]


type _Found = Iterator[tuple[str, str, tuple[Part, ...]]]


def _one(direction: str, *rules: Part, tier: str = "Admin", subject: Part = _X) -> Part:
    return cluster_policy(tier.lower(), tier, 10, subject, rules={direction: rules})


def _over_network_policies() -> _Found:
    """Each action of each tier, with NetworkPolicies that deny and allow, and
    without; a later rule of the tier says the opposite for everybody.
    """
    for direction, tier, action in itertools.product(DIRECTIONS, TIERS, ACTIONS):
        rules = [tier_rule(direction, action, [_Y])]
        rules.append(tier_rule(direction, "Accept" if action == "Deny" else "Deny", [_B]))
        policy = _one(direction, *rules, tier=tier)
        beneath: dict[str, list[Part]] = {
            "alone": [],
            "deny": [network_policy(types=direction)],
            "allow": [network_policy(types=direction, rules={direction: [rule(direction)]})],
            "allow some": [
                network_policy(
                    types=direction, pods=labels(pod="a"),
                    rules={direction: [rule(direction, [peer(labels(pod="c"), ALL)])]},
                )
            ],
        }  # fmt: skip
        for what, others in beneath.items():
            name = f"{direction}/{tier} {action}, NetworkPolicy {what}"
            yield name, f"{direction} {tier} {action}", (policy, *others)


def _peers() -> _Found:
    forms: dict[str, Part] = {
        "all namespaces": _EVERYONE,
        "namespaces NotIn": {"namespaces": not_in("env", "prod")},
        "namespaces by name": {"namespaces": labels(**{"kubernetes.io/metadata.name": "z"})},
        "pods everywhere": {"pods": {"podSelector": labels(pod="b")}},
        "pods of a namespace": tier_pods(labels(pod="b"), labels(ns="y")),
        "pods In": tier_pods(is_in("pod", "a", "c"), ALL),
        "pods without a label": tier_pods(absent("tier"), labels(team="blue")),
        "all pods": tier_pods(ALL, ALL),
    }
    for direction, (what, given) in itertools.product(DIRECTIONS, forms.items()):
        yield (
            f"{direction}/peer, {what}",
            f"{direction} peers",
            (_one(direction, tier_rule(direction, "Deny", [given])),),
        )
        two = [given, tier_pods(labels(pod="c"), labels(ns="z"))]
        if what == "pods of a namespace":
            policy = _one(direction, tier_rule(direction, "Deny", two))
            yield f"{direction}/two peers", f"{direction} peers", (policy,)


def _subjects() -> _Found:
    forms: dict[str, Part] = {
        "all namespaces": _EVERYONE,
        "namespaces of a label": {"namespaces": labels(team="blue")},
        "pods": tier_pods(labels(pod="a"), labels(ns="x")),
        "pods everywhere": {"pods": {"podSelector": labels(pod="a")}},
        "pods NotIn": tier_pods(not_in("tier", "web"), not_in("env", "prod")),
    }
    for direction, (what, subject) in itertools.product(DIRECTIONS, forms.items()):
        policy = _one(direction, tier_rule(direction, "Deny", [_Y]), subject=subject)
        yield f"{direction}/subject, {what}", f"{direction} subject", (policy,)


def _protocols() -> _Found:
    forms: dict[str, list[Part]] = {
        "TCP 80": [tier_port("tcp", 80)],
        "UDP 81": [tier_port("udp", 81)],
        "SCTP 80": [tier_port("sctp", 80)],
        "TCP range": [tier_port("tcp", 80, 81)],
        "UDP range at its edge": [tier_port("udp", 1, 80)],
        "SCTP range": [tier_port("sctp", 81, 65535)],
        "several": [tier_port("tcp", 80), tier_port("udp", 80), tier_port("sctp", 81)],
        "a name": [{"destinationNamedPort": "serve-81-udp"}],
        "a name that differs": [{"destinationNamedPort": "mixed"}],
        "a name and a number": [{"destinationNamedPort": "mixed"}, tier_port("sctp", 80)],
    }
    for direction, (what, given) in itertools.product(DIRECTIONS, forms.items()):
        policy = _one(direction, tier_rule(direction, "Deny", [_EVERYONE], given))
        yield f"{direction}/protocols, {what}", f"{direction} ports", (policy,)


def _networks() -> _Found:
    for version in VERSIONS:
        forms: dict[str, list[str]] = {
            "one pod": [f"@y/b:{version}/{FULL[version]}"],
            "the outside": [f"@{OUTSIDE}:{version}/{FULL[version]}"],
            "everything": [ANYWHERE[version]],
            "several": [f"@{one}:{version}/{FULL[version]}" for one in ("y/b", "z/c", OUTSIDE)],
        }
        for what, given in forms.items():
            policy = _one("egress", tier_rule("egress", "Deny", [{"networks": given}]))
            yield f"egress/networks, ipv{version} {what}", "egress networks", (policy,)
    both = [tier_rule("egress", "Deny", [{"networks": list(ANYWHERE.values())}])]
    yield "egress/networks, both families", "egress networks", (_one("egress", *both),)
    first = tier_rule("egress", "Pass", [_EVERYONE])
    yield "egress/networks after Pass of pods", "egress networks", (_one("egress", first, *both),)
    base = _one("egress", *both, tier="Baseline", subject=_EVERYONE)
    yield "egress/networks in Baseline", "egress networks", (base,)


def _orders() -> _Found:
    for direction, tier in itertools.product(DIRECTIONS, TIERS):
        deny = tier_rule(direction, "Deny", [_EVERYONE])
        for action, flipped in itertools.product(("Accept", "Pass"), (False, True)):
            other = tier_rule(direction, action, [_Y])
            rules = [deny, other] if flipped else [other, deny]
            word = "after" if flipped else "before"
            name = f"{direction}/{tier} {action} {word} Deny"
            tags = f"{direction} {tier} order"
            yield f"{name}, one policy", tags, (_one(direction, *rules, tier=tier),)
            two = (
                cluster_policy("a", tier, 700, _X, rules={direction: rules[1:]}),
                cluster_policy("b", tier, 40, _X, rules={direction: rules[:1]}),
            )
            yield f"{name}, two policies", tags, two


def _whole() -> _Found:
    """All tiers at once, both directions, and the limits of the API."""
    accept_b = _one("ingress", tier_rule("ingress", "Accept", [_B]))
    base = _one("ingress", tier_rule("ingress", "Deny", [_EVERYONE]), tier="Baseline")
    some = network_policy(
        pods=labels(pod="a"), types="ingress",
        ingress=[rule("ingress", [peer(namespaces=labels(ns="z"))])],
    )  # fmt: skip
    yield "three tiers", "ingress Admin Baseline", (accept_b, base, some)
    out = cluster_policy(
        "out", "Admin", 0, _X,
        egress=[tier_rule("egress", "Accept", [_Y]), tier_rule("egress", "Deny", [_EVERYONE])],
    )  # fmt: skip
    shut = cluster_policy(
        "in", "Admin", 1000, _Y, ingress=[tier_rule("ingress", "Deny", [_B])]
    )  # fmt: skip
    yield "both ends", "ingress egress Admin", (out, shut)
    both = cluster_policy(
        "both", "Admin", 10, _X,
        ingress=[tier_rule("ingress", "Deny", [_Y])],
        egress=[tier_rule("egress", "Deny", [{"namespaces": labels(ns="z")}])],
    )  # fmt: skip
    yield "both directions of one policy", "ingress egress Admin", (both,)
    numbers = range(57, 81)
    many = [tier_rule("ingress", "Accept", [_Y], [tier_port("tcp", one)]) for one in numbers]
    many.append(tier_rule("ingress", "Deny", [_EVERYONE]))
    yield "25 rules", "ingress Admin", (_one("ingress", *many),)
    opened = cluster_policy("x", "Admin", 10, _X)
    yield "no rules", "Admin", (opened,)
