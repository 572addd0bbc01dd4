# SPDX-License-Identifier: Apache-2.0
"""Short ways to write policies and selectors, as manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

type Part = dict[str, Any]
type Rules = Mapping[str, Sequence[Part]]
"""By direction."""

ALL: Final[Part] = {}
"""The selector that selects everything, and the rule that allows it."""


def labels(**wanted: str) -> Part:
    """Return a selector of labels."""
    return {"matchLabels": wanted}


def is_in(key: str, *values: str) -> Part:
    """Return a selector: the label has one of the values."""
    return {"matchExpressions": [{"key": key, "operator": "In", "values": [*values]}]}


def not_in(key: str, *values: str) -> Part:
    """Return a selector: no such label, or another value."""
    return {"matchExpressions": [{"key": key, "operator": "NotIn", "values": [*values]}]}


def exists(key: str) -> Part:
    """Return a selector: the label is there."""
    return {"matchExpressions": [{"key": key, "operator": "Exists"}]}


def absent(key: str) -> Part:
    """Return a selector: the label is not there."""
    return {"matchExpressions": [{"key": key, "operator": "DoesNotExist"}]}


def peer(pods: Part | None = None, namespaces: Part | None = None) -> Part:
    """Return a NetworkPolicy's peer; None: without this selector."""
    found = {"podSelector": pods, "namespaceSelector": namespaces}
    return {key: value for key, value in found.items() if value is not None}


def block(cidr: str, *excepts: str) -> Part:
    """Return a NetworkPolicy's peer by address."""
    inner = {"except": [*excepts]} if excepts else {}
    return {"ipBlock": {"cidr": cidr, **inner}}


def port(protocol: str = "", number: int | str = "", end: int = 0) -> Part:
    """Return a NetworkPolicy's port; fields that are not given are left out."""
    found = {"protocol": protocol, "port": number, "endPort": end}
    return {key: value for key, value in found.items() if value}


def rule(
    direction: str, peers: Sequence[Part] | None = None, ports: Sequence[Part] | None = None
) -> Part:
    """Return a rule for `ingress` or `egress`; None: without this list."""
    found = {PEERS[direction]: peers, "ports": ports}
    return {key: [*value] for key, value in found.items() if value is not None}


def network_policy(
    name: str = "policy",
    *,
    namespace: str = "x",
    pods: Part | None = None,
    types: str = "",
    ingress: Sequence[Part] | None = None,
    egress: Sequence[Part] | None = None,
    rules: Rules | None = None,
) -> Part:
    """Return a NetworkPolicy. types: `ingress`, `egress` or both with a blank;
    "": left out. rules: the lists by direction, if it is not known before. A
    list that is not given is left out.
    """
    spec: Part = {"podSelector": ALL if pods is None else pods}
    if types:
        spec["policyTypes"] = [one.capitalize() for one in types.split()]
    spec |= _lists(ingress, egress, rules)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def cluster_policy(
    name: str,
    tier: str,
    priority: int,
    subject: Part,
    *,
    ingress: Sequence[Part] | None = None,
    egress: Sequence[Part] | None = None,
    rules: Rules | None = None,
) -> Part:
    """Return a ClusterNetworkPolicy; rules as for a NetworkPolicy."""
    spec: Part = {"tier": tier, "priority": priority, "subject": subject}
    spec |= _lists(ingress, egress, rules)
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def tier_rule(
    direction: str, action: str, peers: Sequence[Part], protocols: Sequence[Part] = ()
) -> Part:
    """Return a ClusterNetworkPolicy's rule."""
    found: Part = {"action": action, PEERS[direction]: [*peers]}
    return found | ({"protocols": [*protocols]} if protocols else {})


def tier_port(protocol: str, first: int, last: int = 0) -> Part:
    """Return a ClusterNetworkPolicy's protocol with a port, or a range."""
    if last:
        return {protocol: {"destinationPort": {"range": {"start": first, "end": last}}}}
    return {protocol: {"destinationPort": {"number": first}}}


def tier_pods(pods: Part, namespaces: Part) -> Part:
    """Return a ClusterNetworkPolicy's subject or peer of pods."""
    return {"pods": {"namespaceSelector": namespaces, "podSelector": pods}}


PEERS: Final = {"ingress": "from", "egress": "to"}
"""The key of a rule's peers."""
DIRECTIONS: Final = tuple(PEERS)


def _lists(
    ingress: Sequence[Part] | None, egress: Sequence[Part] | None, rules: Rules | None
) -> Part:
    given = {"ingress": ingress, "egress": egress, **(rules or {})}
    return {direction: [*some] for direction, some in given.items() if some is not None}
