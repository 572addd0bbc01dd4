# SPDX-License-Identifier: Apache-2.0
"""Cases of several steps: policies, labels and pods that change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from metropolis.test.policy.manifests import (
    ALL,
    Part,
    block,
    cluster_policy,
    labels,
    network_policy,
    peer,
    port,
    rule,
    tier_rule,
)
from metropolis.test.policy.scene import ANYWHERE, NAMESPACES, PODS, Case, Step

_TARGET: Final = labels(pod="a")
_Y: Final = peer(namespaces=labels(ns="y"))
_PROD: Final = peer(namespaces=labels(env="prod"))
_WEB: Final = peer(labels(tier="web"), ALL)


def cases() -> list[Case]:
    """Return them all. Each step allows other connections than the last."""
    found = [*_of_policies(), *_of_pods(), *_of_namespaces(), *_of_tiers()]
    return [
        Case(f"action/{name}", frozenset({"action", *tags.split()}), steps)
        for name, tags, steps in found
    ]


type _Found = Iterator[tuple[str, str, tuple[Step, ...]]]


def _ingress(name: str, *rules: Part, pods: Part = _TARGET) -> Part:
    return network_policy(name, pods=pods, types="ingress", ingress=rules)


def _egress(name: str, *rules: Part, pods: Part = _TARGET) -> Part:
    return network_policy(name, pods=pods, types="egress", egress=rules)


def _relabelled(name: str, **wanted: str) -> Mapping[str, Mapping[str, str]]:
    """Return the pods with these labels, and no others, on one of them."""
    return {**PODS, name: wanted}


def _namespace(name: str, **wanted: str) -> Mapping[str, Mapping[str, str]]:
    return {**NAMESPACES, name: wanted}


def _of_policies() -> _Found:
    deny, deny_out = _ingress("deny"), _egress("deny-out")
    allow_y = _ingress("allow", rule("ingress", [_Y]))
    for direction, policy in (("ingress", deny), ("egress", deny_out)):
        steps = Step("nothing"), Step("created", (policy,)), Step("deleted")
        yield f"create and delete, {direction}", direction, steps
    yield (
        "allow, then deny, then neither",
        "ingress",
        (
            Step("deny", (deny,)),
            Step("allow beside it", (deny, allow_y)),
            Step("deny alone", (deny,)),
            Step("neither"),
        ),
    )
    wider = _ingress("allow", rule("ingress", [_Y]), rule("ingress", [_WEB], [port("UDP", 81)]))
    yield (
        "update of rules",
        "ingress",
        (
            Step("one rule", (allow_y,)),
            Step("two rules", (wider,)),
            Step("one rule", (allow_y,)),
        ),
    )
    ports = [_egress("p", rule("egress", [_Y], [port("TCP", number)])) for number in (80, 81)]
    by_name = _egress("p", rule("egress", [_Y], [port("TCP", "mixed")]))
    yield (
        "update of a port",
        "egress",
        (Step("80", (ports[0],)), Step("81", (ports[1],)), Step("a name", (by_name,))),
    )
    yield (
        "update of the target",
        "ingress",
        (
            Step("a", (_ingress("p", pods=labels(pod="a")),)),
            Step("b", (_ingress("p", pods=labels(pod="b")),)),
            Step("all", (_ingress("p", pods=ALL),)),
        ),
    )
    rules: dict[str, list[Part]] = {"ingress": [rule("ingress", [_Y])], "egress": []}
    typed = [
        network_policy("p", pods=_TARGET, types=types, rules=rules)
        for types in ("ingress", "egress", "ingress egress")
    ]
    yield (
        "update of the types",
        "ingress egress",
        tuple(Step(" and ".join(one["spec"]["policyTypes"]), (one,)) for one in typed),
    )
    blocks = [
        _ingress("p", rule("ingress", [block(ANYWHERE[4], *excepts)]))
        for excepts in ((), ("@y/a:4/32",), ("@y/a:4/32", "@z/b:4/32"))
    ]
    yield (
        "update of exceptions",
        "ingress ipblock",
        tuple(Step(f"{count} excepted", (one,)) for count, one in enumerate(blocks)),
    )
    yield (
        "one replaced by another",
        "ingress",
        (
            Step("from y", (allow_y,)),
            Step("from web", (_ingress("other", rule("ingress", [_WEB])),)),
        ),
    )


def _of_pods() -> _Found:
    deny = _ingress("deny")
    from_web = _ingress("allow", rule("ingress", [_WEB]))
    to_web = _egress("allow", rule("egress", [_WEB]))
    yield (
        "pod becomes a target, and ceases to be one",
        "ingress",
        (
            Step("x/b is none", (deny,)),
            Step("x/b is one", (deny,), pods=_relabelled("x/b", pod="a")),
            Step("x/b is none", (deny,)),
        ),
    )
    for direction, policy in (("ingress", from_web), ("egress", to_web)):
        yield (
            f"pod becomes a peer, and ceases to be one, {direction}",
            direction,
            (
                Step("y/c is none", (policy,)),
                Step("y/c is one", (policy,), pods=_relabelled("y/c", pod="c", tier="web")),
                Step("y/c is none", (policy,)),
            ),
        )
    yield (
        "pod loses all labels",
        "ingress",
        (Step("x/a is a target", (deny,)), Step("no labels", (deny,), pods=_relabelled("x/a"))),
    )
    new = {**PODS, "x/d": {"pod": "a"}}
    yield (
        "new pod is a target",
        "ingress egress new-pod",
        (
            Step("without it", (deny, _egress("deny-out"))),
            Step("x/d is there", (deny, _egress("deny-out")), pods=new),
            Step("x/d is gone", (deny, _egress("deny-out"))),
        ),
    )
    yield (
        "new pod is a peer",
        "ingress new-pod",
        (
            Step("without it", (from_web,)),
            Step("y/d is there", (from_web,), pods={**PODS, "y/d": {"tier": "web"}}),
            Step("y/d is another", (from_web,), pods={**PODS, "y/d": {"tier": "db"}}),
        ),
    )
    yield (
        "new pod before the policy",
        "ingress new-pod",
        (
            Step("without it"),
            Step("x/d is there", pods=new),
            Step("policy", (deny,), pods=new),
        ),
    )


def _of_namespaces() -> _Found:
    from_prod = _ingress("allow", rule("ingress", [_PROD]))
    to_prod = _egress("allow", rule("egress", [_PROD]))
    b_of_prod = _ingress("allow", rule("ingress", [peer(labels(pod="b"), labels(env="prod"))]))
    prod_z = _namespace("z", ns="z", env="prod")
    for direction, policy in (("ingress", from_prod), ("egress", to_prod)):
        yield (
            f"namespace becomes a peer, {direction}",
            direction,
            (
                Step("z is none", (policy,)),
                Step("z is one", (policy,), namespaces=prod_z),
                Step("z is none", (policy,)),
            ),
        )
    yield (
        "namespace loses its labels",
        "ingress",
        (
            Step("y is a peer", (from_prod,)),
            Step("no labels", (from_prod,), namespaces=_namespace("y")),
        ),
    )
    yield (
        "namespace and pod at once",
        "ingress",
        (
            Step("before", (b_of_prod,)),
            Step(
                "z/c is the peer",
                (b_of_prod,),
                namespaces={**prod_z, "y": {"ns": "y"}},
                pods=_relabelled("z/c", pod="b"),
            ),
        ),
    )


def _of_tiers() -> _Found:
    subject = {"namespaces": labels(ns="x")}
    everyone = [{"namespaces": ALL}]
    y = [{"namespaces": labels(ns="y")}]

    def made(name: str, tier: str, priority: int, action: str, peers: list[Part]) -> Part:
        rules = [tier_rule("ingress", action, peers)]
        return cluster_policy(name, tier, priority, subject, ingress=rules)

    deny_np = _ingress("deny", pods=ALL)
    admin = [made("admin", "Admin", 10, action, y) for action in ("Accept", "Deny", "Pass")]
    yield (
        "action of a rule",
        "cluster ingress",
        (
            Step("Accept", (admin[0], deny_np)),
            Step("Deny", (admin[1],)),
            Step("Pass", (admin[2],)),
        ),
    )
    base = made("base", "Baseline", 10, "Deny", everyone)
    yield (
        "NetworkPolicy over Baseline",
        "cluster ingress",
        (
            Step("Baseline", (base,)),
            Step("NetworkPolicy", (base, _ingress("allow", rule("ingress", [_Y])))),
            Step("Baseline", (base,)),
        ),
    )
    low = made("two", "Admin", 30, "Deny", everyone)
    high = made("two", "Admin", 5, "Deny", everyone)
    accept = made("one", "Admin", 20, "Accept", y)
    yield (
        "priority",
        "cluster ingress",
        (
            Step("after", (accept, low)),
            Step("before", (accept, high)),
            Step("after", (accept, low)),
        ),
    )
    yield (
        "tier",
        "cluster ingress",
        (
            Step("Baseline", (made("p", "Baseline", 1, "Accept", everyone), deny_np)),
            Step("Admin", (made("p", "Admin", 1, "Accept", everyone), deny_np)),
        ),
    )
    deny_y = made("p", "Admin", 1, "Deny", y)
    deny_b = made("p", "Admin", 1, "Deny", [{"pods": {"podSelector": labels(pod="b")}}])
    yield (
        "namespace becomes a subject",
        "cluster ingress",
        (
            Step("z is none", (deny_y,)),
            Step("z is one", (deny_y,), namespaces=_namespace("z", ns="x")),
        ),
    )
    yield (
        "pod becomes a peer of Admin",
        "cluster ingress",
        (
            Step("y/c is none", (deny_b,)),
            Step("y/c is one", (deny_b,), pods=_relabelled("y/c", pod="b")),
        ),
    )
