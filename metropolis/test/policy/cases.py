# SPDX-License-Identifier: Apache-2.0
"""The cases of the matrix: every way to write a NetworkPolicy, by category.

    peers       selectors of namespaces and of pods, each form with each, and
                blocks of addresses
    ports       numbers, names, ranges, none; TCP, UDP, SCTP; several
    direction   which of ingress and egress a policy is about
    rules       several in one policy
    target      the pods that a policy is for
    conflict    several policies
    example     what users write
    action      sequences of changes (`sequences`)
    cluster     ClusterNetworkPolicies (`tiers`), beside other tags

A case has the tag of its category, those of the directions that it is about,
and further ones by which to select. Most policies are for x/a, so that the
other pods show what a policy must leave alone. What a case must show is not
written here: the oracle says it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from metropolis.test.policy import sequences, tiers
from metropolis.test.policy.manifests import (
    ALL,
    DIRECTIONS,
    Part,
    absent,
    block,
    exists,
    is_in,
    labels,
    network_policy,
    not_in,
    peer,
    port,
    rule,
)
from metropolis.test.policy.scene import (
    ANYWHERE,
    FULL,
    OUTSIDE,
    PORTS,
    PROTOCOLS,
    VERSIONS,
    Case,
    Step,
)

_TARGET: Final = labels(pod="a")

NAMESPACE_FORMS: Final[Mapping[str, Part | None]] = {
    "none": None,
    "empty": ALL,
    "label": labels(ns="x"),
    "labels": labels(team="blue", env="prod"),
    "In": is_in("ns", "x", "y"),
    "NotIn": not_in("env", "prod"),
    "Exists": exists("env"),
    "DoesNotExist": absent("env"),
    "name": labels(**{"kubernetes.io/metadata.name": "z"}),
}
POD_FORMS: Final[Mapping[str, Part | None]] = {
    "none": None,
    "empty": ALL,
    "label": labels(pod="b"),
    "labels": labels(pod="a", tier="web"),
    "In": is_in("pod", "b", "c"),
    "NotIn": not_in("tier", "web"),
    "Exists": exists("tier"),
    "DoesNotExist": absent("tier"),
}


def cases() -> list[Case]:
    """Return all cases, each with a name of its own."""
    return [
        *_peers(),
        *_blocks(),
        *_ports(),
        *_several_ports(),
        *_directions(),
        *_rules(),
        *_targets(),
        *_conflicts(),
        *_examples(),
        *sequences.cases(),
        *tiers.cases(),
    ]


def _case(name: str, tags: str, *policies: Part) -> Case:
    """Return a case of one step. name: `CATEGORY/...`."""
    category = name.partition("/")[0]
    return Case(name, frozenset({category, *tags.split()}), (Step("created", policies),))


def _one(name: str, tags: str, direction: str, *rules: Part) -> Case:
    """Return a case of one policy for x/a, about one direction."""
    policy = network_policy(pods=_TARGET, types=direction, rules={direction: rules})
    return _case(name, f"{direction} {tags}", policy)


# ---- Peers ------------------------------------------------------------------


def _peers() -> Iterator[Case]:
    forms = itertools.product(DIRECTIONS, NAMESPACE_FORMS.items(), POD_FORMS.items())
    for direction, (of_namespace, namespaces), (of_pod, pods) in forms:
        if namespaces is not None or pods is not None:
            name = f"peers/{direction}/namespace {of_namespace}, pod {of_pod}"
            yield _one(name, "selector", direction, rule(direction, [peer(pods, namespaces)]))


def _blocks() -> Iterator[Case]:
    for direction, version in itertools.product(DIRECTIONS, VERSIONS):
        for what, given in _of_blocks(version).items():
            name = f"peers/{direction}/ipv{version} block, {what}"
            yield _one(name, "ipblock", direction, rule(direction, given))
    for direction in DIRECTIONS:
        both = [block(ANYWHERE[version], _alone("y/b", version)) for version in VERSIONS]
        name = f"peers/{direction}/blocks of both families"
        yield _one(name, "ipblock", direction, rule(direction, both))


def _alone(name: str, version: int) -> str:
    return f"@{name}:{version}/{FULL[version]}"


def _of_blocks(version: int) -> dict[str, list[Part]]:
    """Return lists of peers by what they are."""
    full, everything = FULL[version], ANYWHERE[version]
    near = f"@y/b:{version}/{full - 2}"
    return {
        "one pod": [block(_alone("y/b", version))],
        "the target itself": [block(_alone("x/a", version))],
        "some pods": [block(near)],
        "some pods but one": [block(near, _alone("y/b", version))],
        "a wide one": [block(f"@y/b:{version}/{full // 2}")],
        "a wide one but some": [block(f"@y/b:{version}/{full // 2}", near)],
        "everything": [block(everything)],
        "all but one pod": [block(everything, _alone("y/b", version))],
        "all but several": [
            block(everything, _alone("x/b", version), near, _alone("z/c", version))
        ],
        "all but the outside": [block(everything, _alone(OUTSIDE, version))],
        "the outside": [block(_alone(OUTSIDE, version))],
        "but one, which a selector has": [
            block(everything, near),
            peer(labels(pod="b"), labels(ns="y")),
        ],
    }


# ---- Ports ------------------------------------------------------------------


def _ports() -> Iterator[Case]:
    for direction, protocol in itertools.product(DIRECTIONS, PROTOCOLS):
        for what, given in _of_port(protocol).items():
            name = f"ports/{direction}/{protocol} {what}"
            yield _one(name, protocol.lower(), direction, rule(direction, ports=[given]))


def _of_port(protocol: str) -> dict[str, Part]:
    suffix = protocol.lower()
    return {
        "without port": port(protocol),
        **{f"{number}": port(protocol, number) for number in PORTS},
        **{f"by name {n}": port(protocol, f"serve-{n}-{suffix}") for n in PORTS},
        "by a name that differs": port(protocol, "mixed"),
        "80 to 81": port(protocol, 80, 81),
        "79 to 80": port(protocol, 79, 80),
        "81 to 81": port(protocol, 81, 81),
        "1 to 79": port(protocol, 1, 79),
    }


def _several_ports() -> Iterator[Case]:
    forms: dict[str, list[Part]] = {
        "empty list": [],
        "an empty port": [port()],
        "without protocol": [port(number=80)],
        "a range without protocol": [port(number=81, end=65535)],
        "an unknown name": [port(number="unknown")],
        "a name of another protocol": [port("UDP", "serve-80-tcp")],
        "both of TCP": [port("TCP", 80), port("TCP", 81)],
        "TCP and UDP": [port("TCP", 80), port("UDP", 81)],
        "TCP and SCTP": [port("TCP", 81), port("SCTP", 80)],
        "all protocols": [port(one) for one in PROTOCOLS],
        "a name and a number": [port("TCP", "mixed"), port("UDP", 81)],
        "ranges that overlap": [port("UDP", 1, 80), port("UDP", 80, 100)],
    }
    for direction, (what, given) in itertools.product(DIRECTIONS, forms.items()):
        yield _one(f"ports/{direction}/{what}", "", direction, rule(direction, ports=given))


# ---- Directions, rules ------------------------------------------------------


def _directions() -> Iterator[Case]:
    opened = [rule("ingress")]
    forms: dict[str, tuple[str, dict[str, list[Part]]]] = {
        "deny ingress": ("ingress", {}),
        "deny egress": ("egress", {}),
        "deny both": ("ingress egress", {}),
        "allow ingress": ("ingress", {"ingress": opened}),
        "allow egress": ("egress", {"egress": opened}),
        "allow both": ("ingress egress", {"ingress": opened, "egress": opened}),
        "allow ingress, deny egress": ("ingress egress", {"ingress": opened}),
        "no types": ("", {}),
        "no types, ingress": ("", {"ingress": opened}),
        "no types, egress": ("", {"egress": opened}),
        "no types, both": ("", {"ingress": opened, "egress": opened}),
        "no types, empty egress": ("", {"egress": []}),
        "no types, empty ingress": ("", {"ingress": []}),
        "egress rules, ingress type": ("ingress", {"egress": opened}),
        "ingress rules, egress type": ("egress", {"ingress": opened}),
    }
    for what, (types, rules) in forms.items():
        tags = types or "ingress egress"
        yield _case(
            f"direction/{what}", tags, network_policy(pods=_TARGET, types=types, rules=rules)
        )
    for direction in DIRECTIONS:
        name = f"direction/allow {direction}, empty peers"
        yield _one(name, "", direction, rule(direction, []))


def _rules() -> Iterator[Case]:
    b, y = peer(labels(pod="b")), peer(namespaces=labels(ns="y"))
    b_of_z, http = peer(labels(pod="b"), labels(ns="z")), port("TCP", 80)
    for direction in DIRECTIONS:
        forms: dict[str, list[Part]] = {
            "a port and a peer": [rule(direction, [y], [http])],
            "each its own port": [
                rule(direction, [b], [http]),
                rule(direction, [y], [port("UDP", 81)]),
            ],
            "same peer, two ports": [
                rule(direction, [y], [http]),
                rule(direction, [y], [port("SCTP", 81)]),
            ],
            "AND in one peer": [rule(direction, [b_of_z])],
            "OR of two peers": [rule(direction, [b, peer(namespaces=labels(ns="z"))])],
            "narrow and wide": [rule(direction, [y], [http]), rule(direction)],
            "wide peer, narrow port": [
                rule(direction, [b]),
                rule(direction, [peer(ALL, ALL)], [http]),
            ],
            "the same twice": [rule(direction, [y], [http])] * 2,
            "many": [
                rule(direction, [peer(labels(pod=pod), labels(ns=ns))], [port("TCP", number)])
                for ns, pod, number in itertools.product("xyz", "bc", PORTS)
            ],
            "a block and a port": [rule(direction, [block(_alone("z/c", 4))], [http])],
        }
        for what, given in forms.items():
            yield _one(f"rules/{direction}/{what}", "", direction, *given)


# ---- Targets, several policies ----------------------------------------------


def _targets() -> Iterator[Case]:
    for namespace, (what, pods) in itertools.product("xy", POD_FORMS.items()):
        if pods is not None:
            policy = network_policy(
                namespace=namespace, pods=pods, types="ingress egress",
                ingress=[rule("ingress", [peer(labels(pod="c"), ALL)])],
            )  # fmt: skip
            yield _case(f"target/{namespace}, pod {what}", "ingress egress", policy)
    nothing = network_policy(pods=labels(pod="nothing"), types="ingress egress")
    yield _case("target/no pod", "ingress egress", nothing)
    elsewhere = network_policy(namespace="elsewhere", types="ingress egress")
    yield _case("target/no namespace", "ingress egress", elsewhere)
    everywhere = [network_policy(namespace=one, types="ingress egress") for one in "xyz"]
    yield _case("target/all namespaces", "ingress egress", *everywhere)
    left_out = network_policy()
    del left_out["spec"]["podSelector"]
    yield _case("target/no selector", "ingress", left_out)


def _conflicts() -> Iterator[Case]:
    y, b = peer(namespaces=labels(ns="y")), peer(labels(pod="b"), ALL)
    for direction in DIRECTIONS:

        def made(
            name: str, *rules: Part, pods: Part = _TARGET, namespace: str = "x",
            direction: str = direction,
        ) -> Part:  # fmt: skip
            given = {direction: rules}
            return network_policy(
                name, namespace=namespace, pods=pods, types=direction, rules=given
            )

        deny, narrow = made("deny"), rule(direction, [y], [port("TCP", 80)])
        forms: dict[str, list[Part]] = {
            "deny and allow all": [deny, made("allow", rule(direction))],
            "deny and allow some": [deny, made("allow", rule(direction, [y]))],
            "two peers": [made("one", rule(direction, [y])), made("two", rule(direction, [b]))],
            "peer and port": [
                made("one", rule(direction, [y])),
                made("two", rule(direction, ports=[port("UDP", 81)])),
            ],
            "narrow and wide": [made("one", narrow), made("two", rule(direction, [y]))],
            "the same": [made("one", narrow), made("two", narrow)],
            "targets that overlap": [
                made("one", rule(direction, [y]), pods=is_in("pod", "a", "b")),
                made("two", rule(direction, [b]), pods=is_in("pod", "b", "c")),
            ],
            "deny all, allow one": [made("deny", pods=ALL), made("allow", rule(direction))],
            "one name in two namespaces": [
                made("one", rule(direction, [y])),
                made("one", rule(direction, [b]), namespace="y"),
            ],
            "block and selector": [
                made("one", rule(direction, [block(ANYWHERE[4], _alone("y/b", 4))])),
                made("two", rule(direction, [peer(labels(pod="b"), labels(ns="y"))])),
            ],
        }
        for what, policies in forms.items():
            yield _case(f"conflict/{direction}/{what}", direction, *policies)
    yield from _both_ends()


def _both_ends() -> Iterator[Case]:
    """Yield cases in which one end's egress meets the other's ingress."""
    y = peer(namespaces=labels(ns="y"))
    out = network_policy("out", types="egress", egress=[rule("egress", [y])])
    deny = network_policy("in", namespace="y", types="ingress")
    allow = network_policy(
        "in", namespace="y", types="ingress",
        ingress=[rule("ingress", [peer(labels(pod="a"), ALL)], [port("TCP", 80)])],
    )  # fmt: skip
    tags = "ingress egress"
    yield _case("conflict/both/egress allows, ingress denies", tags, out, deny)
    yield _case("conflict/both/each allows some", tags, out, allow)
    shut = network_policy("out", types="egress")
    yield _case("conflict/both/egress denies, ingress allows", tags, shut, allow)


# ---- What users write -------------------------------------------------------


def _examples() -> Iterator[Case]:
    web, everyone = labels(tier="web"), peer(namespaces=ALL)
    dns = [port("UDP", 80), port("TCP", 80)]
    forms: dict[str, list[Part]] = {
        "deny all in a namespace": [network_policy(types="ingress egress")],
        "allow all in a namespace": [
            network_policy("deny"),
            network_policy("allow", ingress=[rule("ingress")]),
        ],
        "deny other namespaces": [
            network_policy(types="ingress", ingress=[rule("ingress", [peer(ALL)])])
        ],
        "web for all namespaces": [
            network_policy("deny"),
            network_policy("web", pods=web, ingress=[rule("ingress", [everyone])]),
        ],
        "web for everybody": [
            network_policy("deny"),
            network_policy("web", pods=web, ingress=[rule("ingress")]),
        ],
        "web for the outside, by port": [
            network_policy("web", pods=web, ingress=[rule("ingress", [], [port("TCP", 80)])])
        ],
        "one namespace by label": [
            network_policy(ingress=[rule("ingress", [peer(namespaces=labels(env="prod"))])])
        ],
        "some pods of one namespace": [
            network_policy(ingress=[rule("ingress", [peer(web, labels(env="prod"))])])
        ],
        "database for web only": [
            network_policy(
                pods=labels(tier="db"),
                ingress=[rule("ingress", [peer(web)], [port("TCP", "serve-80-tcp")])],
            )
        ],
        "names only, else nothing out": [
            network_policy(types="egress", egress=[rule("egress", [everyone], dns)])
        ],
        "nothing to the outside": [
            network_policy(types="egress", egress=[rule("egress", [everyone])])
        ],
        "only to the outside": [
            network_policy(types="egress", egress=[rule("egress", [
                block(ANYWHERE[version], *(_alone(f"{ns}/{pod}", version)
                                           for ns in "xyz" for pod in "abc"))
                for version in VERSIONS
            ])])
        ],
        "the documentation's": [
            network_policy(
                pods=labels(tier="db"), types="ingress egress",
                ingress=[rule("ingress", [
                    block("@y/b:4/16", "@y/b:4/32"),
                    peer(namespaces=labels(env="prod")),
                    peer(web),
                ], [port("TCP", 80)])],
                egress=[rule("egress", [block("@z/a:4/24")], [port("TCP", 81)])],
            )
        ],
        "tenants apart": [
            network_policy(
                "tenant", namespace=one, types="ingress egress",
                ingress=[rule("ingress", [peer(ALL)])], egress=[rule("egress", [peer(ALL)])],
            )
            for one in "xyz"
        ],
    }  # fmt: skip
    for what, policies in forms.items():
        yield _case(f"example/{what}", "", *policies)
