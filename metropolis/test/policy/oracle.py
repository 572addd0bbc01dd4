# SPDX-License-Identifier: Apache-2.0
"""The verdict of Kubernetes' network policies on one connection. Pure.

Written from the text of the two APIs, and from nothing else: it shares no code
with the product, whose answers it judges. Each question reads each manifest
again, as a user writes it, so it is slow and has no state to get wrong.

networking.k8s.io/v1, NetworkPolicy, all of it:

    spec.podSelector, spec.policyTypes, spec.ingress[].{from, ports},
    spec.egress[].{to, ports}; a peer is {podSelector, namespaceSelector} or
    {ipBlock: {cidr, except}}; a port is {protocol, port, endPort}

policy.networking.k8s.io/v1alpha2, ClusterNetworkPolicy, as of v0.2.0:

    spec.tier       Admin or Baseline
    spec.priority   0 to 1000, the smallest first
    spec.subject    {namespaces: selector}, or
                    {pods: {namespaceSelector, podSelector}}
    spec.ingress[]  {name, action, from, protocols}
    spec.egress[]   {name, action, to, protocols}
    action          Accept, Deny or Pass
    from[]          one key: namespaces or pods, as in the subject
    to[]            one key: namespaces, pods, nodes (a selector), networks (a
                    list of CIDRs) or domainNames
    protocols[]     one key: tcp, udp or sctp, with {destinationPort:
                    {number} or {range: {start, end}}}; or
                    destinationNamedPort, of whatever protocol the pod's port
                    has

A selector is {matchLabels, matchExpressions}.

    source's egress:        Admin -> NetworkPolicy -> Baseline -> allowed
    destination's ingress:  Admin -> NetworkPolicy -> Baseline -> allowed

Both must allow. The API leaves these open; the oracle decides:

- A pod of the host's network is its node: no subject, and a peer by its
  addresses alone.
- A node reaches its own pods whatever the policies say. A pod's way to its own
  node is policed: types.go excepts ingress alone, though the prose of the
  documentation excepts both.
- Two policies of one tier with one priority: by name. Any order is correct, so
  that a comparison must not have such a tie.
- domainNames are not resolved. A peer without a known key, or with this one,
  fails closed, as the API says: an Accept rule with it matches nothing, any
  other is a rule that denies all.
- A peer's addresses are those of the packet at the pod, so of no Service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from metropolis.test.policy import fields
from metropolis.test.policy.fields import Invalid, Labels, Manifest

type IP = IPv4Address | IPv6Address

NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
"""The label that each namespace has, with its name."""


@dataclass(frozen=True)
class Pod:
    """A pod. ports: protocol (TCP, UDP, SCTP) and number by name. node: the
    name of the node that it is on; "": none of those that the cluster lists.
    """

    namespace: str
    name: str
    labels: Labels
    ips: tuple[IP, ...]
    ports: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    host_network: bool = False
    node: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Node:
    """A node. ips: its status.addresses."""

    name: str
    labels: Labels
    ips: tuple[IP, ...]


@dataclass(frozen=True)
class Cluster:
    """All that a verdict depends on. namespaces: labels by name, without the
    label that each one has by itself.
    """

    namespaces: Mapping[str, Labels]
    pods: Sequence[Pod]
    policies: Sequence[Manifest]
    nodes: Sequence[Node] = ()


@dataclass(frozen=True)
class Reason:
    """The decision of one direction.

    direction: egress, ingress or "". subject: the pod. tier: Admin,
    NetworkPolicy or Baseline; "": no policy decides. policies: those that
    decide, `namespace/name` or `name`; for a NetworkPolicy's refusal all that
    isolate the subject.
    """

    allowed: bool
    direction: str
    subject: str
    tier: str
    policies: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        verdict = "allowed" if self.allowed else "denied"
        by = f" by {self.tier} {', '.join(self.policies)}" if self.tier else ""
        return f"{self.direction} of {self.subject}: {verdict}{by}: {self.text}"


@dataclass(frozen=True)
class Verdict:
    """The answer, and the decisions that make it."""

    allowed: bool
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        return "\n".join(str(reason) for reason in self.reasons)


@dataclass(frozen=True)
class _End:
    """One end of a connection. pod: none of the host's network."""

    name: str
    pod: Pod | None
    address: IP
    node: str
    """The node whose address it is, or ""."""


@dataclass(frozen=True)
class _Question:
    cluster: Cluster
    source: _End
    destination: _End
    protocol: str
    port: int

    def peer(self, direction: str) -> _End:
        return self.source if direction == "ingress" else self.destination


def allowed(
    cluster: Cluster,
    source: Pod | IP,
    destination: Pod | IP,
    protocol: str,
    port: int,
    version: int,
) -> bool:
    """Return whether the connection is allowed; as `explain`."""
    return explain(cluster, source, destination, protocol, port, version).allowed


def explain(
    cluster: Cluster,
    source: Pod | IP,
    destination: Pod | IP,
    protocol: str,
    port: int,
    version: int,
) -> Verdict:
    """Return the verdict on a connection to a port by TCP, UDP or SCTP, in
    IPv4 or IPv6. An address that a pod has is that pod.

    Raises Invalid: an end has no address of that version, or a manifest is not
    of its API.
    """
    ends = [_end(cluster, one, version) for one in (source, destination)]
    asked = _Question(cluster, ends[0], ends[1], fields.protocol(protocol), port)
    for manifest in cluster.policies:
        fields.kind(manifest)
    if exempt := _exempt(asked):
        return Verdict(True, (exempt,))
    reasons = tuple(_decide(asked, direction) for direction in ("egress", "ingress"))
    return Verdict(all(reason.allowed for reason in reasons), reasons)


def _end(cluster: Cluster, one: Pod | IP, version: int) -> _End:
    if isinstance(one, Pod):
        address = next((ip for ip in one.ips if ip.version == version), None)
        if address is None:
            raise Invalid(f"{one} has no IPv{version} address")
        pod: Pod | None = one
    elif one.version != version:
        raise Invalid(f"{one} is not IPv{version}")
    else:
        address = one
        pod = next((p for p in cluster.pods if one in p.ips and not p.host_network), None)
    node = next((node.name for node in cluster.nodes if address in node.ips), "")
    if pod is not None and pod.host_network:
        return _End(str(pod), None, address, pod.node or node)
    return _End(str(pod or address), pod, address, node)


def _exempt(asked: _Question) -> Reason | None:
    """Return why no policy applies to the connection."""
    source, destination = asked.source, asked.destination
    if source.address == destination.address:
        return Reason(True, "", source.name, "", (), "to itself")
    if source.pod is None and destination.pod is not None:
        if source.node and source.node == destination.pod.node:
            return Reason(True, "ingress", destination.name, "", (), "from its own node")
    return None


def _decide(asked: _Question, direction: str) -> Reason:
    """Return the decision for one end: the first tier that makes one."""
    end = asked.destination if direction == "ingress" else asked.source
    if end.pod is None:
        return Reason(True, direction, end.name, "", (), "no pod, so no subject")
    return (
        _tier(asked, direction, end.pod, "Admin")
        or _network_policies(asked, direction, end.pod)
        or _tier(asked, direction, end.pod, "Baseline")
        or Reason(True, direction, end.name, "", (), "no policy decides")
    )


# ---- NetworkPolicy ----------------------------------------------------------


def _network_policies(asked: _Question, direction: str, subject: Pod) -> Reason | None:
    """Return the NetworkPolicies' decision; None: the pod is not isolated."""
    isolating = []
    for manifest in asked.cluster.policies:
        if fields.kind(manifest) == "NetworkPolicy" and _isolates(manifest, direction, subject):
            isolating.append(_name(manifest))
            spec = fields.object_of(manifest, "spec")
            for index, rule in enumerate(fields.list_of(spec, direction)):
                if _rule_matches(asked, direction, manifest, rule):
                    one, why = (_name(manifest),), f"{direction}[{index}]"
                    return Reason(True, direction, str(subject), "NetworkPolicy", one, why)
    if not isolating:
        return None
    by, why = tuple(isolating), "isolated, and no rule matches"
    return Reason(False, direction, str(subject), "NetworkPolicy", by, why)


def _isolates(manifest: Manifest, direction: str, subject: Pod) -> bool:
    spec = fields.object_of(manifest, "spec")
    fields.only(spec, "podSelector", "policyTypes", "ingress", "egress")
    if _namespace(manifest) != subject.namespace:
        return False
    if direction not in _types(spec):
        return False
    return fields.selects(fields.object_of(spec, "podSelector"), subject.labels)


def _types(spec: Manifest) -> list[str]:
    """Return the directions of a policy, in lower case."""
    given = fields.list_of(spec, "policyTypes")
    for one in given:
        if one not in ("Ingress", "Egress"):
            raise Invalid(f"policyTypes: {one!r}")
    if given:
        return [str(one).lower() for one in given]
    return ["ingress", "egress"] if fields.list_of(spec, "egress") else ["ingress"]


def _rule_matches(asked: _Question, direction: str, manifest: Manifest, rule: Manifest) -> bool:
    peers_key = "from" if direction == "ingress" else "to"
    fields.only(rule, peers_key, "ports")
    peers, ports = fields.list_of(rule, peers_key), fields.list_of(rule, "ports")
    # All are read, so that a faulty one is found whatever the question is.
    of_peer = [_peer_matches(asked, direction, manifest, peer) for peer in peers]
    of_port = [_port_matches(asked, port) for port in ports]
    return (not peers or any(of_peer)) and (not ports or any(of_port))


def _peer_matches(asked: _Question, direction: str, manifest: Manifest, peer: Manifest) -> bool:
    fields.only(peer, "podSelector", "namespaceSelector", "ipBlock")
    end = asked.peer(direction)
    pods, namespaces = peer.get("podSelector"), peer.get("namespaceSelector")
    block = peer.get("ipBlock")
    if block is not None:
        if pods is not None or namespaces is not None:
            raise Invalid("a peer with ipBlock has no selector")
        return _in_block(block, end.address)
    if pods is None and namespaces is None:
        raise Invalid("a peer has a selector or an ipBlock")
    if end.pod is None:
        return False
    if namespaces is None:
        in_namespace = end.pod.namespace == _namespace(manifest)
    else:
        in_namespace = fields.selects(
            namespaces, _namespace_labels(asked.cluster, end.pod.namespace)
        )
    return in_namespace and (pods is None or fields.selects(pods, end.pod.labels))


def _in_block(block: Manifest, address: IP) -> bool:
    fields.only(block, "cidr", "except")
    outer = fields.network(block["cidr"])
    inner = [fields.network(one) for one in fields.list_of(block, "except")]
    for one in inner:
        if one.network_address not in outer or one.prefixlen < outer.prefixlen:
            raise Invalid(f"except {one} is not in {outer}")
    return address in outer and not any(address in one for one in inner)


def _port_matches(asked: _Question, entry: Manifest) -> bool:
    fields.only(entry, "protocol", "port", "endPort")
    protocol, port, end = entry.get("protocol"), entry.get("port"), entry.get("endPort")
    same = asked.protocol == fields.protocol("TCP" if protocol is None else protocol)
    if end is not None and (not isinstance(port, int) or end < port):
        raise Invalid(f"endPort {end} after port {port!r}")
    if port is None:
        return same
    if isinstance(port, str):
        return _has_named_port(asked, port) and same
    return same and port <= asked.port <= (port if end is None else end)


def _has_named_port(asked: _Question, name: str) -> bool:
    """Return whether the destination has the asked port by this name."""
    pod = asked.destination.pod
    if pod is None or name not in pod.ports:
        return False
    protocol, number = pod.ports[name]
    return (fields.protocol(protocol), number) == (asked.protocol, asked.port)


# ---- ClusterNetworkPolicy ---------------------------------------------------


def _tier(asked: _Question, direction: str, subject: Pod, tier: str) -> Reason | None:
    """Return the decision of a tier of ClusterNetworkPolicies, or None."""
    for manifest, index, rule in _rules(asked.cluster, direction, subject, tier):
        action = _action(asked, direction, rule)
        if action == "Pass":
            return None
        if action:
            by, why = (_name(manifest),), f"{direction}[{index}] {rule.get('name') or ''}".strip()
            return Reason(action == "Accept", direction, str(subject), tier, by, why)
    return None


def _rules(
    cluster: Cluster, direction: str, subject: Pod, tier: str
) -> Iterator[tuple[Manifest, int, Manifest]]:
    """Yield a tier's rules for a pod in this direction, in their order."""
    kept = []
    for manifest in cluster.policies:
        if fields.kind(manifest) == "ClusterNetworkPolicy":
            spec = fields.object_of(manifest, "spec")
            fields.only(spec, "tier", "priority", "subject", "ingress", "egress")
            if spec["tier"] not in ("Admin", "Baseline") or not 0 <= spec["priority"] <= 1000:
                raise Invalid(f"{_name(manifest)}: tier or priority")
            if spec["tier"] == tier and _is_subject(cluster, spec["subject"], subject):
                kept.append((spec["priority"], _name(manifest), manifest))
    for _, _, manifest in sorted(kept, key=lambda one: one[:2]):
        for index, rule in enumerate(fields.list_of(fields.object_of(manifest, "spec"), direction)):
            yield manifest, index, rule


def _is_subject(cluster: Cluster, subject: Manifest, pod: Pod) -> bool:
    key = fields.one_key(subject, "namespaces", "pods")
    return _selects_pod(cluster, key, subject[key], pod)


def _action(asked: _Question, direction: str, rule: Manifest) -> str:
    """Return what the rule does with the connection; "": nothing."""
    peers_key = "from" if direction == "ingress" else "to"
    fields.only(rule, "name", "action", peers_key, "protocols")
    action = str(rule["action"])
    if action not in ("Accept", "Deny", "Pass"):
        raise Invalid(f"action: {action!r}")
    peers, protocols = fields.list_of(rule, peers_key), fields.list_of(rule, "protocols")
    if not peers:
        raise Invalid(f"{peers_key} has at least one peer")
    known = _INGRESS_PEERS if direction == "ingress" else _EGRESS_PEERS
    if any(not known.keys() & peer.keys() for peer in peers):
        return "" if action == "Accept" else "Deny"
    keys = [fields.one_key(peer, *known) for peer in peers]
    named = any("destinationNamedPort" in one for one in protocols)
    if named and any(key in ("nodes", "networks") for key in keys):
        raise Invalid("nodes and networks have no named ports")
    end = asked.peer(direction)
    of_peer = [known[key](asked, peer[key], end) for key, peer in zip(keys, peers, strict=True)]
    of_protocol = [_protocol_matches(asked, one) for one in protocols]
    matches = any(of_peer) and (not protocols or any(of_protocol))
    return action if matches else ""


def _selects_pod(cluster: Cluster, key: str, selector: Manifest, pod: Pod) -> bool:
    """Return whether {namespaces: ...} or {pods: ...} selects the pod."""
    of_namespace = _namespace_labels(cluster, pod.namespace)
    if key == "namespaces":
        return fields.selects(selector, of_namespace)
    fields.only(selector, "namespaceSelector", "podSelector")
    if "podSelector" not in selector:
        raise Invalid("pods: podSelector is required")
    return fields.selects(
        fields.object_of(selector, "namespaceSelector"), of_namespace
    ) and fields.selects(fields.object_of(selector, "podSelector"), pod.labels)


def _peer_namespaces(asked: _Question, selector: Any, end: _End) -> bool:
    return end.pod is not None and _selects_pod(asked.cluster, "namespaces", selector, end.pod)


def _peer_pods(asked: _Question, selector: Any, end: _End) -> bool:
    return end.pod is not None and _selects_pod(asked.cluster, "pods", selector, end.pod)


def _peer_nodes(asked: _Question, selector: Any, end: _End) -> bool:
    return any(
        end.address in node.ips and fields.selects(selector, node.labels)
        for node in asked.cluster.nodes
    )


def _peer_networks(asked: _Question, networks: Any, end: _End) -> bool:
    return any(end.address in fields.network(one) for one in networks)


type _PeerTest = Callable[[_Question, Any, _End], bool]

_INGRESS_PEERS: Final[dict[str, _PeerTest]] = {
    "namespaces": _peer_namespaces,
    "pods": _peer_pods,
}
_EGRESS_PEERS: Final[dict[str, _PeerTest]] = {
    **_INGRESS_PEERS,
    "nodes": _peer_nodes,
    "networks": _peer_networks,
}


def _protocol_matches(asked: _Question, entry: Manifest) -> bool:
    key = fields.one_key(entry, "tcp", "udp", "sctp", "destinationNamedPort")
    if key == "destinationNamedPort":
        return _has_named_port(asked, entry[key])
    fields.only(entry[key], "destinationPort")
    if "destinationPort" not in entry[key]:
        raise Invalid(f"{key}: has at least one field")
    port = entry[key]["destinationPort"]
    if fields.one_key(port, "number", "range") == "number":
        first = last = port["number"]
    else:
        first, last = port["range"]["start"], port["range"]["end"]
        if first >= last:
            raise Invalid(f"range {first} to {last}")
    return asked.protocol == fields.protocol(key) and first <= asked.port <= last


# ---- Names ------------------------------------------------------------------


def _namespace_labels(cluster: Cluster, name: str) -> Labels:
    return {**cluster.namespaces.get(name, {}), NAMESPACE_LABEL: name}


def _namespace(manifest: Manifest) -> str:
    return str(manifest["metadata"].get("namespace") or "default")


def _name(manifest: Manifest) -> str:
    name = str(manifest["metadata"]["name"])
    return f"{_namespace(manifest)}/{name}" if fields.kind(manifest) == "NetworkPolicy" else name
