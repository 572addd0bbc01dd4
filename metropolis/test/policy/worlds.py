# SPDX-License-Identifier: Apache-2.0
"""Random clusters, policies and questions: the input of property tests. Pure.

    cluster = random_cluster(seed)
    rng = Random(seed)
    for question in (random_question(cluster, rng) for _ in range(20)):
        oracle.allowed(cluster, *question)
    cluster = changed(cluster, rng)

A seed gives the same cluster in each run, so that a finding is its seed. The
words are few (two or three values of each label, six ports, addresses close to
each other), so that selectors, ports and blocks hit about as often as they
miss, and policies overlap. All manifests are ones that the API takes; and no
two policies of a tier have the same priority, since the API leaves their order
open.

Not strategies of hypothesis, since the worlds are also played with packets, by
programs that take a seed. `shrink` does what it would do: it finds the policies
and rules of a world that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any, Final, NamedTuple

from metropolis.test.policy.oracle import IP, Cluster, Node, Pod

PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
PORTS: Final = (79, 80, 81, 82, 443, 8080)
OUTSIDE: Final = tuple(
    ip_address(text) for text in ("203.0.113.9", "198.51.100.7", "2001:db8::9", "2001:db8:1::7")
)

_NAMESPACES: Final = ("w", "x", "y", "z")
_NAMESPACE_LABELS: Final = {"team": ("red", "blue"), "env": ("prod", "test", "dev")}
_POD_LABELS: Final = {"app": ("web", "db", "cache"), "tier": ("front", "back")}
_NODE_LABELS: Final = {"zone": ("one", "two")}
_PORT_NAMES: Final = ("web", "api", "metrics")
_ANYWHERE: Final = {4: "0.0.0.0/0", 6: "::/0"}
_LENGTHS: Final = {4: (8, 16, 24, 28, 30, 32), 6: (32, 64, 112, 120, 126, 128)}

type _Manifest = dict[str, Any]


class Question(NamedTuple):
    """What `oracle.allowed` is asked about a cluster."""

    source: Pod | IP
    destination: Pod | IP
    protocol: str
    port: int
    version: int

    def __str__(self) -> str:
        ends = f"{self.source} to {self.destination}"
        return f"{ends} {self.protocol} {self.port} IPv{self.version}"


def random_cluster(seed: int, *, tiers: bool = True, nodes: bool = False) -> Cluster:
    """Return a cluster with policies.

    tiers: with ClusterNetworkPolicies. nodes: with nodes, which pods are on,
    and pods of their network.
    """
    rng = Random(seed)
    names = rng.sample(_NAMESPACES, rng.randint(2, 3))
    namespaces = {name: _labels(rng, _NAMESPACE_LABELS) for name in names}
    hosts = [_node(rng, index) for index in range(1, 3)] if nodes else []
    pods = [
        _pod(rng, name, index, hosts) for name in names for index in range(1, rng.randint(2, 4))
    ]
    cluster = Cluster(namespaces, pods, (), hosts)
    policies = [network_policy(cluster, rng, f"np-{n}") for n in range(rng.randint(1, 8))]
    if tiers and rng.random() < 0.7:
        priorities = rng.sample(range(1001), 6)
        policies += [
            cluster_policy(cluster, rng, f"cnp-{priorities[n]}", priorities[n])
            for n in range(rng.randint(1, 4))
        ]
    rng.shuffle(policies)
    return replace(cluster, policies=policies)


def random_question(cluster: Cluster, rng: Random) -> Question:
    """Return a question; one end or both are pods, and both have the family."""
    while True:
        version = rng.choice((4, 6))
        ends: list[Pod | IP] = list(rng.sample(cluster.pods, 2))
        if rng.random() < 0.03:
            ends[1] = ends[0]
        if rng.random() < 0.25:
            outside = [*OUTSIDE, *(ip for node in cluster.nodes for ip in node.ips)]
            ends[rng.randrange(2)] = rng.choice(outside)
        if all(_has(end, version) for end in ends):
            break
    protocol, port = rng.choices(PROTOCOLS, (4, 2, 1))[0], rng.choice(PORTS)
    destination = ends[1]
    if isinstance(destination, Pod) and destination.ports and rng.random() < 0.4:
        protocol, port = rng.choice(list(destination.ports.values()))
    return Question(ends[0], destination, protocol, port, version)


def changed(cluster: Cluster, rng: Random) -> Cluster:
    """Return the cluster after one change: a policy made, updated or deleted,
    a pod made, deleted or relabelled, a namespace relabelled.
    """
    pods, policies = list(cluster.pods), list(cluster.policies)
    namespaces = dict(cluster.namespaces)
    index = rng.randrange(len(pods))
    match rng.randrange(7):
        case 0:
            policies.append(network_policy(cluster, rng, f"np-{rng.randrange(10**6, 10**9)}"))
        case 1 if policies:
            del policies[rng.randrange(len(policies))]
        case 2 if policies:
            at = rng.randrange(len(policies))
            policies[at] = _update(cluster, rng, policies[at])
        case 3:
            namespaces[rng.choice(list(namespaces))] = _labels(rng, _NAMESPACE_LABELS)
        case 4:
            taken = {pod.name for pod in pods}
            number = next(n for n in range(100, 250) if f"pod-{n}" not in taken)
            pods.append(_pod(rng, pods[index].namespace, number, cluster.nodes))
        case 5 if len(pods) > 2:
            del pods[index]
        case _:
            pods[index] = replace(pods[index], labels=_labels(rng, _POD_LABELS))
    return replace(cluster, namespaces=namespaces, pods=pods, policies=policies)


def shrink(cluster: Cluster, differs: Callable[[Cluster], bool]) -> Cluster:
    """Return a cluster with fewer policies and rules that still differs."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(cluster):
            if differs(candidate):
                cluster, smaller = candidate, True
                break
    return cluster


def network_policy(cluster: Cluster, rng: Random, name: str) -> _Manifest:
    """Return a NetworkPolicy for one of the cluster's namespaces."""
    spec: _Manifest = {"podSelector": _selector(rng, _POD_LABELS, empty=0.3)}
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        if rng.random() < 0.6:
            count = rng.choices((0, 1, 2, 3), (1, 4, 3, 2))[0]
            spec[direction] = [_rule(cluster, rng, peers) for _ in range(count)]
    if rng.random() < 0.5:
        kinds = [["Ingress"], ["Egress"], ["Ingress", "Egress"]]
        spec["policyTypes"] = rng.choices(kinds, (3, 2, 2))[0]
    metadata = {"name": name, "namespace": rng.choice(list(cluster.namespaces))}
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return {**kind, "metadata": metadata, "spec": spec}


def cluster_policy(cluster: Cluster, rng: Random, name: str, priority: int) -> _Manifest:
    """Return a ClusterNetworkPolicy."""
    spec: _Manifest = {
        "tier": rng.choice(("Admin", "Baseline")),
        "priority": priority,
        "subject": _pods_peer(rng),
    }
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        if rng.random() < 0.65:
            count = rng.randint(1, 3)
            rules = [_tier_rule(cluster, rng, peers, index) for index in range(count)]
            spec[direction] = rules
    version = "policy.networking.k8s.io/v1alpha2"
    metadata = {"name": name}
    kind = {"apiVersion": version, "kind": "ClusterNetworkPolicy"}
    return {**kind, "metadata": metadata, "spec": spec}


# ---- Pods, nodes, labels ----------------------------------------------------


def _labels(rng: Random, words: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {key: rng.choice(values) for key, values in words.items() if rng.random() < 0.75}


def _node(rng: Random, index: int) -> Node:
    ips = (ip_address(f"192.0.2.{index}"), ip_address(f"2001:db8:2::{index}"))
    return Node(f"node-{index}", _labels(rng, _NODE_LABELS), ips)


def _pod(rng: Random, namespace: str, index: int, nodes: Sequence[Node]) -> Pod:
    number = 4 * _NAMESPACES.index(namespace) if index < 4 else 0
    ips: tuple[IP, ...] = (
        ip_address(f"10.192.0.{number + index}"),
        ip_address(f"fd10::{number + index:x}"),
    )
    if rng.random() < 0.1:
        ips = (rng.choice(ips),)
    ports = {
        name: (rng.choices(PROTOCOLS, (4, 2, 1))[0], rng.choice(PORTS))
        for name in _PORT_NAMES
        if rng.random() < 0.6
    }
    pod = Pod(namespace, f"pod-{index}", _labels(rng, _POD_LABELS), ips, ports)
    if not nodes:
        return pod
    node = rng.choice(nodes)
    if rng.random() < 0.1:
        return replace(pod, node=node.name, ips=node.ips, host_network=True)
    return replace(pod, node=node.name)


def _has(end: Pod | IP, version: int) -> bool:
    ips = end.ips if isinstance(end, Pod) else (end,)
    return any(ip.version == version for ip in ips)


def _selector(rng: Random, words: Mapping[str, Sequence[str]], empty: float) -> _Manifest:
    if rng.random() < empty:
        return {}
    keys = list(words)
    if rng.random() < 0.5:
        chosen = rng.sample(keys, 1 if rng.random() < 0.8 else len(keys))
        return {"matchLabels": {key: rng.choice(words[key]) for key in chosen}}
    count = 1 if rng.random() < 0.75 else 2
    selector: _Manifest = {"matchExpressions": [_expression(rng, words) for _ in range(count)]}
    if rng.random() < 0.1:
        key = rng.choice(keys)
        selector["matchLabels"] = {key: rng.choice(words[key])}
    return selector


def _expression(rng: Random, words: Mapping[str, Sequence[str]]) -> _Manifest:
    key = rng.choice(list(words))
    operator = rng.choices(("In", "NotIn", "Exists", "DoesNotExist"), (3, 3, 2, 1))[0]
    expression: _Manifest = {"key": key, "operator": operator}
    if operator in ("In", "NotIn"):
        values = [*words[key], "unused"]
        expression["values"] = rng.sample(values, rng.randint(1, 2))
    return expression


# ---- Rules ------------------------------------------------------------------


def _rule(cluster: Cluster, rng: Random, peers: str) -> _Manifest:
    rule: _Manifest = {}
    if rng.random() < 0.85:
        count = rng.choices((0, 1, 2, 3), (1, 6, 4, 2))[0]
        rule[peers] = [_peer(cluster, rng) for _ in range(count)]
    if rng.random() < 0.5:
        count = rng.choices((0, 1, 2, 3), (1, 3, 3, 2))[0]
        rule["ports"] = [_port(rng) for _ in range(count)]
    return rule


def _peer(cluster: Cluster, rng: Random) -> _Manifest:
    kind = rng.choices(("pods", "namespaces", "both", "block"), (3, 3, 3, 3))[0]
    if kind == "block":
        return {"ipBlock": _block(cluster, rng)}
    peer: _Manifest = {}
    if kind in ("pods", "both"):
        peer["podSelector"] = _selector(rng, _POD_LABELS, empty=0.25)
    if kind in ("namespaces", "both"):
        peer["namespaceSelector"] = _namespace_selector(cluster, rng)
    return peer


def _namespace_selector(cluster: Cluster, rng: Random) -> _Manifest:
    if rng.random() < 0.15:
        name = rng.choice(list(cluster.namespaces))
        return {"matchLabels": {"kubernetes.io/metadata.name": name}}
    return _selector(rng, _NAMESPACE_LABELS, empty=0.25)


def _block(cluster: Cluster, rng: Random) -> _Manifest:
    cidr = _cidr(cluster, rng)
    block: _Manifest = {"cidr": cidr}
    network = ip_network(cidr)
    inside = [ip for ip in _addresses(cluster) if ip in network]
    lengths = [one for one in _LENGTHS[network.version] if one > network.prefixlen]
    if inside and lengths and rng.random() < 0.6:
        count = rng.randint(1, 2)
        excepts = {_around(rng.choice(inside), rng.choice(lengths)) for _ in range(count)}
        block["except"] = sorted(excepts)
    return block


def _cidr(cluster: Cluster, rng: Random) -> str:
    if rng.random() < 0.25:
        return _ANYWHERE[rng.choice((4, 6))]
    address = rng.choice(_addresses(cluster))
    return _around(address, rng.choice(_LENGTHS[address.version]))


def _around(address: IP, length: int) -> str:
    return str(ip_network((address, length), strict=False))


def _addresses(cluster: Cluster) -> list[IP]:
    of_pods = [ip for pod in cluster.pods for ip in pod.ips]
    return [*OUTSIDE, *of_pods, *(ip for node in cluster.nodes for ip in node.ips)]


def _port(rng: Random) -> _Manifest:
    port: _Manifest = {}
    if rng.random() < 0.7:
        port["protocol"] = rng.choices(PROTOCOLS, (4, 2, 1))[0]
    kind = rng.choices(("none", "number", "range", "name"), (2, 4, 2, 3))[0]
    if kind == "name":
        port["port"] = rng.choice(_PORT_NAMES)
    elif kind != "none":
        port["port"] = rng.choice(PORTS)
    if kind == "range":
        port["endPort"] = rng.choice([one for one in PORTS if one >= port["port"]])
    return port


def _pods_peer(rng: Random) -> _Manifest:
    """Return a subject, or a peer of pods, of a ClusterNetworkPolicy."""
    namespaces = _selector(rng, _NAMESPACE_LABELS, empty=0.3)
    if rng.random() < 0.5:
        return {"namespaces": namespaces}
    pods = {"podSelector": _selector(rng, _POD_LABELS, empty=0.25)}
    if rng.random() < 0.9:
        pods["namespaceSelector"] = namespaces
    return {"pods": pods}


def _tier_rule(cluster: Cluster, rng: Random, peers: str, index: int) -> _Manifest:
    rule: _Manifest = {"action": rng.choices(("Accept", "Deny", "Pass"), (4, 4, 3))[0]}
    if rng.random() < 0.5:
        rule["name"] = f"rule-{index}"
    given = [_tier_peer(cluster, rng, peers) for _ in range(rng.randint(1, 2))]
    rule[peers] = given
    if rng.random() < 0.5:
        outer = any("networks" in one or "nodes" in one for one in given)
        rule["protocols"] = [_tier_port(rng, named=not outer) for _ in range(rng.randint(1, 3))]
    return rule


def _tier_peer(cluster: Cluster, rng: Random, peers: str) -> _Manifest:
    if peers == "to" and rng.random() < 0.35:
        if cluster.nodes and rng.random() < 0.4:
            return {"nodes": _selector(rng, _NODE_LABELS, empty=0.4)}
        return {"networks": sorted({_cidr(cluster, rng) for _ in range(rng.randint(1, 3))})}
    return _pods_peer(rng)


def _tier_port(rng: Random, *, named: bool) -> _Manifest:
    if named and rng.random() < 0.3:
        return {"destinationNamedPort": rng.choice(_PORT_NAMES)}
    port: _Manifest = {"number": rng.choice(PORTS)}
    if rng.random() < 0.4:
        start, end = sorted(rng.sample(PORTS, 2))
        port = {"range": {"start": start, "end": end}}
    return {rng.choices(("tcp", "udp", "sctp"), (4, 2, 1))[0]: {"destinationPort": port}}


# ---- Smaller ones -----------------------------------------------------------


def _update(cluster: Cluster, rng: Random, policy: Mapping[str, Any]) -> _Manifest:
    """Return another policy of the same name."""
    name = policy["metadata"]["name"]
    if policy["kind"] == "ClusterNetworkPolicy":
        made = cluster_policy(cluster, rng, name, policy["spec"]["priority"])
        made["spec"]["tier"] = policy["spec"]["tier"]
        return made
    return {**network_policy(cluster, rng, name), "metadata": dict(policy["metadata"])}


def _smaller(cluster: Cluster) -> Iterator[Cluster]:
    """Yield the cluster without one policy, and without one part of a rule."""
    for index, policy in enumerate(cluster.policies):
        before, after = cluster.policies[:index], cluster.policies[index + 1 :]
        yield replace(cluster, policies=[*before, *after])
        for spec in _without_one(policy["spec"]):
            yield replace(cluster, policies=[*before, {**policy, "spec": spec}, *after])


def _without_one(spec: Mapping[str, Any]) -> Iterator[_Manifest]:
    """Yield the spec without one rule, or one peer or port that has others."""
    for direction in ("ingress", "egress"):
        rules = spec.get(direction, [])
        for index, rule in enumerate(rules):
            yield {**spec, direction: [*rules[:index], *rules[index + 1 :]]}
            for key in ("from", "to", "ports", "protocols"):
                for at in range(len(rule.get(key, ()))) if len(rule.get(key, ())) > 1 else ():
                    less = {**rule, key: [*rule[key][:at], *rule[key][at + 1 :]]}
                    yield {**spec, direction: [*rules[:index], less, *rules[index + 1 :]]}
