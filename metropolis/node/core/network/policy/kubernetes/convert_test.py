# SPDX-License-Identifier: Apache-2.0
"""Tests of whole texts: kinds, names, and whatever is not a policy; valid ones
and mutations of them by the thousand.
"""

import copy
import json
from ipaddress import ip_network
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from metropolis.node.core.network.policy.kubernetes.convert import Read, read, read_all
from metropolis.node.core.network.policy.kubernetes.fields import PROBLEMS_MAX
from metropolis.node.core.network.policy.model import (
    NAMESPACE_NAME,
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

V1 = "networking.k8s.io/v1"
V1ALPHA2 = "policy.networking.k8s.io/v1alpha2"
ANYTHING = Workloads()


def in_namespace(name: str) -> Selector:
    return (Requirement(NAMESPACE_NAME, Operator.IN, (name,)),)


def network_policy(name: str, spec: str = "{podSelector: {}}", version: str = V1) -> str:
    return (
        f"---\napiVersion: {version}\nkind: NetworkPolicy\n"
        f"metadata: {{name: {name}}}\nspec: {spec}\n"
    )


def cluster_policy(name: str, version: str = V1ALPHA2) -> str:
    return (
        f"---\napiVersion: {version}\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n"
        "spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}\n"
    )


def texts(found: Read) -> list[str]:
    return [str(problem) for problem in found.problems]


def names(found: Read) -> list[tuple[str, bool]]:
    return [(policy.name, bool(policy.error)) for policy in found.policies]


def test_documents_of_both_kinds() -> None:
    found = read(network_policy("a") + cluster_policy("a") + network_policy("b"), "f.yaml")
    assert texts(found) == []
    assert names(found) == [("default/a", False), ("a", False), ("default/b", False)]


def test_no_document_stops_another() -> None:
    text = (
        network_policy("a")
        + "---\nspec: [\n"
        + network_policy("b", "{podSelector: {}, ingress: [{form: []}]}")
        + "---\nkind: Pod\napiVersion: v1\n---\n- x\n"
        + network_policy("c")
    )
    found = read(text, "f.yaml")
    assert names(found) == [("default/a", False), ("default/b", True), ("default/c", False)]
    assert [(each.line, each.policy) for each in found.problems] == [
        (8, ""),
        (12, "default/b"),
        (14, ""),
        (17, ""),
    ]


def test_all_problems_at_once() -> None:
    found = read(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        "metadata:\n  name: p\n  lables: {}\n"
        "spec:\n  podSelector: {}\n  ingress:\n  - form: []\n    ports:\n    - port: 0\n",
        "dir/f.yaml",
    )
    assert texts(found)[-2:] == [
        'dir/f.yaml:9: spec.ingress[0].form: unknown field; did you mean "from"?',
        "dir/f.yaml:11: spec.ingress[0].ports[0].port: 0 is not within 1 to 65535",
    ]
    assert any(each.endswith('did you mean "labels"?') for each in texts(found))


def test_lists() -> None:
    item = {"metadata": {"name": "a"}, "spec": {"ingress": [{"x": 1}]}}
    text = json.dumps({"apiVersion": V1, "kind": "NetworkPolicyList", "items": [item]})
    found = read(text, "f.json")
    assert texts(found) == ["f.json:1: items[0].spec.ingress[0].x: unknown field"]
    full = item | {"apiVersion": V1, "kind": "NetworkPolicy"}
    found = read(json.dumps({"apiVersion": "v1", "kind": "List", "items": [full, 5, full]}), "f")
    assert [each.path for each in found.problems][:2] == [
        "items[0].spec.ingress[0].x",
        "items[1]",
    ]
    assert len(found.policies) == 2
    old = json.dumps(
        {"apiVersion": "extensions/v1beta1", "kind": "NetworkPolicyList", "items": [item]}
    )
    assert f"f:1: items[0].apiVersion: {V1} is expected" in texts(read(old, "f"))


def test_a_second_policy_of_a_name_is_refused() -> None:
    first = network_policy("a", "{podSelector: {matchLabels: {x: z}}, ingress: [{}]}")
    second = network_policy("a", "{podSelector: {matchLabels: {x: w}}, ingress: [{}]}")
    found = read(first + second + second, "f.yaml")
    assert names(found)[0] == ("default/a", False)
    assert len({policy.name for policy in found.policies}) == 3
    for policy, problem in zip(found.policies[1:], found.problems, strict=True):
        assert policy.error
        assert policy.ingress == ()
        assert policy.isolates == frozenset(Direction)
        assert policy.subject.workloads == (Requirement("x", Operator.IN, ("w",)),)
        assert problem.policy == policy.name
        assert problem.text == "default/a is there already, at f.yaml:2"


def test_policies_without_names_have_names_that_differ() -> None:
    text = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {}\nspec: {}\n"
    found = read(text + text, "f.yaml")
    assert len({policy.name for policy in found.policies}) == 2
    assert all(policy.error for policy in found.policies)
    assert all(policy.subject.namespaces == in_namespace("default") for policy in found.policies)


def test_several_texts_are_one_set() -> None:
    found = read_all([("a", network_policy("p")), ("b", network_policy("p").encode())])
    assert texts(found) == ["b:2: metadata.name: default/p is there already, at a:2"]
    assert names(found) == [("default/p", False), ("default/p(b#2)", True)]


NAMESPACE = "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: %s\n  labels: {team: %s}\n"


def test_namespaces() -> None:
    found = read(NAMESPACE % ("web", "x") + "spec: {finalizers: [kubernetes]}\n", "f")
    assert texts(found) == []
    assert found.namespaces == {"web": {"team": "x", NAMESPACE_NAME: "web"}}
    assert (found.policies, found.unreadable) == ((), False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NAMESPACE % ("web", "no"), "metadata.labels.team: no is a boolean"),
        (NAMESPACE % ("a.b", "x"), "metadata.name: a namespace's name"),
        (NAMESPACE % ("web", "x") * 2, "the Namespace web is there already, at f:2"),
        ("a: [", "not YAML"),
        ("a: \0", "not YAML"),
    ],
)
def test_what_makes_the_whole_unreadable(text: str, said: str) -> None:
    found = read(network_policy("p") + "---\n" + text, "f")
    found_alone = read(text, "f")
    assert found.unreadable
    assert found_alone.unreadable
    assert said in texts(found_alone)[0]
    assert len(found.policies) == 1


def test_policies_that_are_refused_are_not_unreadable() -> None:
    assert not read(network_policy("p", "[]") + "---\nkind: Pod\n", "f").unreadable


@pytest.mark.parametrize(
    "version", ["extensions/v1beta1", "networking.k8s.io/v1beta1", "v1", "1", "~", "''", "[]"]
)
def test_another_version_is_refused_and_isolates(version: str) -> None:
    found = read(network_policy("a", version=version), "f.yaml")
    assert names(found) == [("default/a", True)]
    assert texts(found) == [f"f.yaml:3: apiVersion: {V1} is expected"]
    found = read(cluster_policy("a", version="policy.networking.k8s.io/v1alpha1"), "f.yaml")
    assert names(found) == [("a", True)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy", "tier Admin"),
        ("kind: BaselineAdminNetworkPolicy", "with the tier Baseline"),
        (
            "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy",
            "projectcalico.org/v3 NetworkPol",
        ),
        ("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy", "cilium.io/v2 CiliumNetworkPolicy"),
        ("apiVersion: v1\nkind: Pod", "v1 Pod is no policy that is read here"),
        ("apiVersion: v1", "kind: required"),
        ("kind: 5", "kind: required"),
        ("kind: ''", "kind: required"),
        ("on: x", "on: the key is a boolean"),
        ("- x", "a document is a map"),
        ("x", "a document is a map"),
    ],
)
def test_what_is_no_policy(text: str, said: str) -> None:
    found = read(text, "f")
    assert found.policies == ()
    assert any(said in each for each in texts(found))


def test_the_number_of_problems_is_limited() -> None:
    ports = ", ".join(["{port: 0}"] * 1000)
    found = read(network_policy("a", f"{{ingress: [{{ports: [{ports}]}}]}}"), "f")
    assert len(found.problems) == PROBLEMS_MAX + 1
    assert found.problems[-1].text == f"{1000 - PROBLEMS_MAX} further problems"
    assert "(and 999 more)" in found.policies[0].error


def test_messages_have_no_controls() -> None:
    found = read('{"kind": "NetworkPolicy", "\\e[31m\\n": 1, "metadata": {"name": "\\a"}}', "f")
    assert all(text.isprintable() for text in texts(found))


# Policies, written as manifests and read again.

KEYS = st.sampled_from(["app", "example.com/tier", "A_b.c", "on", "1", "null"])
VALUES = st.sampled_from(["", "web", "no", "1.10", "true", "0x1", "X", "a" * 63])


def requirements(operator: Operator) -> st.SearchStrategy[Requirement]:
    with_values = operator in (Operator.IN, Operator.NOT_IN)
    values = st.lists(VALUES, min_size=1, max_size=3) if with_values else st.just([])
    return st.builds(Requirement, KEYS, st.just(operator), values.map(tuple))


SELECTORS = st.lists(st.sampled_from(Operator).flatmap(requirements), max_size=3).map(tuple)
WORKLOADS = st.builds(Workloads, SELECTORS, SELECTORS)
PREFIXES = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 30)),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 126)),
).map(lambda pair: ip_network((pair[0].packed, pair[1]), strict=False))
BLOCKS = PREFIXES.map(
    lambda prefix: Networks(
        (prefix,), (ip_network(f"{prefix.network_address}/{prefix.prefixlen + 1}"),)
    )
)
PORT_NAMES = st.sampled_from(["http", "dns-udp", "x1"])


def intervals(least: int) -> st.SearchStrategy[Ports]:
    return st.builds(
        lambda protocol, first, more: Ports(protocol, first, first + more),
        st.sampled_from(Protocol),
        st.integers(1, 60000),
        st.integers(least, 5535),
    )


def optional[T](items: st.SearchStrategy[T]) -> st.SearchStrategy[tuple[T, ...] | None]:
    return st.none() | st.lists(items, min_size=1, max_size=3).map(tuple)


NP_PORTS = (
    intervals(0)
    | st.builds(NamedPort, PORT_NAMES, st.sampled_from(Protocol))
    | st.builds(Ports, st.sampled_from(Protocol))
)
NP_RULES = st.lists(
    st.builds(Rule, optional(WORKLOADS | BLOCKS), optional(NP_PORTS)), max_size=3
).map(tuple)
NETWORK_POLICIES = st.builds(
    lambda pods, ingress, egress, isolates: Policy(
        "web/p",
        Tier.NAMESPACE,
        Workloads(in_namespace("web"), pods),
        ingress if Direction.INGRESS in isolates else (),
        egress if Direction.EGRESS in isolates else (),
        frozenset(isolates),
    ),
    SELECTORS,
    NP_RULES,
    NP_RULES,
    st.sets(st.sampled_from(Direction), min_size=1),
)

NETWORKS = st.lists(PREFIXES, min_size=1, max_size=3, unique=True).map(
    lambda prefixes: Networks(tuple(prefixes))
)


def cluster_rules(
    peers: st.SearchStrategy[Peer], ports: st.SearchStrategy[Ports | NamedPort]
) -> st.SearchStrategy[tuple[Rule, ...]]:
    rule = st.builds(
        Rule,
        st.lists(peers, min_size=1, max_size=3).map(tuple),
        optional(ports),
        st.sampled_from(Action),
        st.sampled_from(["", "a rule"]),
    )
    return st.lists(rule, max_size=3).map(tuple)


CLUSTER_POLICIES = st.builds(
    lambda tier, subject, ingress, egress, priority: Policy(
        "p", tier, subject, ingress, egress, priority=priority
    ),
    st.sampled_from([Tier.ADMIN, Tier.BASELINE]),
    WORKLOADS,
    cluster_rules(WORKLOADS, intervals(0) | st.builds(NamedPort, PORT_NAMES, st.none())),
    cluster_rules(WORKLOADS | NETWORKS, intervals(0)),
    st.integers(0, 1000),
)


def selector(value: Selector) -> dict[str, Any]:
    return {
        "matchExpressions": [
            {"key": each.key, "operator": each.operator.value, "values": list(each.values)}
            for each in value
        ]
    }


def np_peer(peer: Peer) -> dict[str, Any]:
    if isinstance(peer, Networks):
        excepts = [str(each) for each in peer.excepts]
        return {"ipBlock": {"cidr": str(peer.prefixes[0]), "except": excepts}}
    return {
        "namespaceSelector": selector(peer.namespaces),
        "podSelector": selector(peer.workloads),
    }


def np_port(port: Ports | NamedPort) -> dict[str, Any]:
    assert port.protocol is not None
    found: dict[str, Any] = {"protocol": port.protocol.name}
    if isinstance(port, NamedPort):
        return found | {"port": port.name}
    if (port.first, port.last) == (0, 65535):
        return found
    return found | {"port": port.first, "endPort": port.last}


def np_rule(rule: Rule, peers: str) -> dict[str, Any]:
    return {
        peers: [np_peer(peer) for peer in rule.peers or ()],
        "ports": [np_port(port) for port in rule.ports or ()],
    }


def cnp_peer(peer: Peer) -> dict[str, Any]:
    if isinstance(peer, Networks):
        return {"networks": [str(prefix) for prefix in peer.prefixes]}
    if not peer.workloads:
        return {"namespaces": selector(peer.namespaces)}
    return {"pods": np_peer(peer)}


def cnp_port(port: Ports | NamedPort) -> dict[str, Any]:
    if isinstance(port, NamedPort):
        return {"destinationNamedPort": port.name}
    where: dict[str, Any] = {"range": {"start": port.first, "end": port.last}}
    if port.first == port.last:
        where = {"number": port.first}
    return {port.protocol.value: {"destinationPort": where}}


def cnp_rule(rule: Rule, peers: str) -> dict[str, Any]:
    ports = None if rule.ports is None else [cnp_port(port) for port in rule.ports]
    return {
        "action": rule.action.value,
        peers: [cnp_peer(peer) for peer in rule.peers or ()],
        "protocols": ports,
        "name": rule.name,
    }


def manifest(policy: Policy) -> dict[str, Any]:
    """Return the manifest of a policy that has no error."""
    if policy.tier is Tier.NAMESPACE:
        namespace, _, name = policy.name.partition("/")
        return {
            "apiVersion": V1,
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "podSelector": selector(policy.subject.workloads),
                "policyTypes": sorted(each.value for each in policy.isolates),
                "ingress": [np_rule(rule, "from") for rule in policy.ingress],
                "egress": [np_rule(rule, "to") for rule in policy.egress],
            },
        }
    return {
        "apiVersion": V1ALPHA2,
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": policy.name},
        "spec": {
            "tier": policy.tier.value,
            "priority": policy.priority,
            "subject": cnp_peer(policy.subject),
            "ingress": [cnp_rule(rule, "from") for rule in policy.ingress],
            "egress": [cnp_rule(rule, "to") for rule in policy.egress],
        },
    }


POLICIES = NETWORK_POLICIES | CLUSTER_POLICIES


@given(POLICIES)
@settings(deadline=None)
def test_a_policy_is_read_as_it_was_written(policy: Policy) -> None:
    written = manifest(policy)
    for text in (yaml.safe_dump(written), json.dumps(written)):
        found = read(text, "f")
        assert texts(found) == []
        assert found.policies == (policy,)


# Mutations.

GARBAGE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["\0", "\ud800", "x" * 300, "10.0.0.0/8", "Deny", "Exists", 10**30, -1, 65536, 1e308]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["namespaces", "podSelector", "key"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return all collections with each of their keys or indexes."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        found.append((value, key))
        if isinstance(item, dict | list):
            found += places(item)
    return found


def mutate(value: dict[str, Any], data: st.DataObject) -> None:
    where, key = data.draw(st.sampled_from(places(value)))
    how = data.draw(st.sampled_from(["delete", "rename", "retype", "insert", "deep", "double"]))
    if how == "delete":
        del where[key]
    elif how == "rename" and isinstance(where, dict):
        where[data.draw(st.text(max_size=8) | st.just(str(key).upper()))] = where.pop(key)
    elif how == "insert" and isinstance(where, dict):
        where[data.draw(st.text(max_size=8))] = data.draw(GARBAGE)
    elif how == "insert":
        where.insert(key, data.draw(GARBAGE))
    elif how == "deep":
        for _ in range(data.draw(st.sampled_from([1, 50, 500]))):
            where[key] = [where[key]]
    elif how == "double" and isinstance(where, list):
        where.append(copy.deepcopy(where[key]))
    else:
        where[key] = data.draw(GARBAGE)


def check(found: Read) -> None:
    """Check what holds whatever was read."""
    assert len({policy.name for policy in found.policies}) == len(found.policies)
    wrong = {problem.policy for problem in found.problems if not problem.warning}
    for policy in found.policies:
        assert bool(policy.error) == (policy.name in wrong)
        if policy.error:
            assert policy.ingress == policy.egress == ()
            assert policy.isolates == (
                frozenset(Direction) if policy.tier is Tier.NAMESPACE else frozenset()
            )
    for problem in found.problems:
        assert problem.line >= 1
        assert problem.text
        assert str(problem).isprintable()


@given(POLICIES, st.integers(1, 3), st.data())
@settings(deadline=None, max_examples=400)
def test_a_mutation_is_another_policy_or_a_problem(
    policy: Policy, count: int, data: st.DataObject
) -> None:
    value = copy.deepcopy(manifest(policy))
    for _ in range(count):
        if places(value):
            mutate(value, data)
    found = read(json.dumps(value), "f.json")
    check(found)
    assert found.policies or found.problems
    for each in found.policies:
        if not found.problems:
            again = read(json.dumps(manifest(each)), "f.json")
            assert (again.policies, again.problems) == ((each,), ())


@given(POLICIES, st.data())
@settings(deadline=None, max_examples=200)
def test_a_field_that_is_renamed_is_reported(policy: Policy, data: st.DataObject) -> None:
    value = manifest(policy)
    where, key = data.draw(
        st.sampled_from([place for place in places(value) if isinstance(place[0], dict)])
    )
    where[f"{key}s"] = where.pop(key)
    found = read(json.dumps(value), "f.json")
    check(found)
    assert any(f"{key}s" in problem.path or key == "kind" for problem in found.problems)


@given(POLICIES, st.data())
@settings(deadline=None, max_examples=300)
def test_a_text_with_other_bytes(policy: Policy, data: st.DataObject) -> None:
    text = yaml.safe_dump_all([manifest(policy)] * 2).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 5))
        piece = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"\0", b"\n---\n", b"*", b"&a "])
        )
        text = text[:at] + piece + text[at + length :]
    check(read(text, "f.yaml"))


@given(st.binary() | st.text())
@settings(deadline=None)
def test_garbage(text: bytes | str) -> None:
    found = read(text, "f")
    check(found)
    assert found.policies == ()
