# SPDX-License-Identifier: Apache-2.0
"""ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2. Pure.

Fields, limits and checks are those of the API's types (network-policy-api,
v0.2.0, apis/v1alpha2). A peer of a kind that is not known here, or cannot be
done, closes its rule, as the types' text has it: an Accept rule then matches
nothing, a Deny or Pass rule denies everything. That is a warning, since the
policy is in force otherwise. Peers that cannot be done:

    nodes         which addresses are nodes' is not known to policies
    domainNames   needs a look at answers of DNS

The types of v0.2.0 ask for a namespaceSelector beside each podSelector; later
text makes it optional, and absent means all namespaces. The later one is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from metropolis.node.core.network.policy.kubernetes.common import (
    PORT_MAX,
    TOP_FIELDS,
    read_metadata,
    read_port_name,
    read_prefix,
    read_selector,
)
from metropolis.node.core.network.policy.kubernetes.documents import Value, printable
from metropolis.node.core.network.policy.kubernetes.fields import (
    Fields,
    Report,
    read_choice,
    read_int,
    read_list,
    read_map,
    read_string,
    unknown,
)
from metropolis.node.core.network.policy.model import (
    Action,
    Direction,
    NamedPort,
    Networks,
    Peer,
    Policy,
    Ports,
    Protocol,
    Rule,
    Tier,
    Workloads,
)
from metropolis.node.core.network.workloads.model import IPNetwork

KIND: Final = "ClusterNetworkPolicy"
API_VERSION: Final = "policy.networking.k8s.io/v1alpha2"

PRIORITY_MAX: Final = 1000
ITEMS_MAX: Final = 25
"""Rules of a direction, peers and protocols of a rule, prefixes of a peer."""
NAME_MAX: Final = 100
_PREFIX_TEXT_MAX: Final = 43

_TIERS: Final = {tier.value: tier for tier in (Tier.ADMIN, Tier.BASELINE)}
_ACTIONS: Final = {action.value: action for action in Action}
_PEERS: Final = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
_KINDS: Final = {
    Direction.INGRESS: ("namespaces", "pods"),
    Direction.EGRESS: ("namespaces", "pods", "nodes", "networks", "domainNames"),
}
_NO_NAMED_PORTS: Final = ("networks", "nodes", "domainNames")
_PROTOCOLS: Final = {protocol.value: protocol for protocol in Protocol}
_NAMED_PORT: Final = "destinationNamedPort"
_DOMAIN_LABEL: Final = "[a-zA-Z0-9](?:[-a-zA-Z0-9_]*[a-zA-Z0-9])?"
_DOMAIN: Final = re.compile(rf"(?:\*\.)?(?:{_DOMAIN_LABEL}\.)+{_DOMAIN_LABEL}\.?")


def read(value: Value, report: Report, fallback: str) -> Policy:
    """Return the policy of a document; with an error if any is reported.

    fallback: unique in the text, names a policy whose name cannot be read.
    """
    top = Fields(value, "", report, TOP_FIELDS)
    given = top.require("metadata")
    name = read_metadata(given, report, None).name or fallback
    spec_value = top.require("spec") or Value({}, top.line)
    spec = Fields(spec_value, "spec", report, ("tier", "priority", "subject", "ingress", "egress"))
    subject = _read_subject(top, spec, report)
    tier_value, priority_value = spec.require("tier"), spec.require("priority")
    tier = priority = None
    if tier_value is not None:
        tier = read_choice(tier_value, spec.path("tier"), report, _TIERS)
    if priority_value is not None:
        where = spec.path("priority")
        priority = read_int(priority_value, where, report, 0, PRIORITY_MAX)
    rules = {direction: _read_rules(spec, direction, report) for direction in Direction}
    return Policy(
        name,
        # Isolates before all others if the tier cannot be read.
        Tier.ADMIN if tier is None else _TIERS[tier],
        subject,
        () if report.errors else rules[Direction.INGRESS],
        () if report.errors else rules[Direction.EGRESS],
        priority=priority or 0,
        error=report.summary(),
    )


def _read_subject(top: Fields, spec: Fields, report: Report) -> Workloads:
    before = report.errors
    value = spec.require("subject")
    where = spec.path("subject")
    found = None
    if value is not None:
        fields = Fields(value, where, report, ("namespaces", "pods"))
        if len(fields.names) == 1:
            name = fields.names[0]
            found = _read_workloads(fields, name, report)
        elif report.errors == before:
            report.error(value.line, where, "exactly one of namespaces, pods is expected")
    doubtful = top.is_doubtful("spec") or spec.is_doubtful("subject") or report.errors > before
    if found is not None and not doubtful:
        return found
    line = spec.line if value is None else value.line
    report.error(line, where, "cannot be read: every workload is isolated")
    return Workloads()


def _read_workloads(fields: Fields, name: str, report: Report) -> Workloads | None:
    """Return what a field namespaces or pods selects; None: it is neither."""
    value = fields.get(name)
    if value is None:
        return None
    path = fields.path(name)
    if name == "namespaces":
        return Workloads(read_selector(value, path, report))
    if name != "pods":
        return None
    pods = Fields(value, path, report, ("namespaceSelector", "podSelector"))
    return Workloads(
        read_selector(pods.get("namespaceSelector"), pods.path("namespaceSelector"), report),
        read_selector(pods.require("podSelector"), pods.path("podSelector"), report),
    )


def _check_count(value: Value | None, path: str, report: Report, least: int = 1) -> None:
    if value is None or not isinstance(value.plain, list):
        return
    if not least <= len(value.plain) <= ITEMS_MAX:
        said = f"{least} to {ITEMS_MAX} items are expected, and there are {len(value.plain)}"
        report.error(value.line, path, said)


def _read_rules(spec: Fields, direction: Direction, report: Report) -> tuple[Rule, ...]:
    field = direction.value.lower()
    value, path = spec.get(field), spec.path(field)
    _check_count(value, path, report, least=0)
    return tuple(
        read_list(value, path, report, lambda item, at: _read_rule(item, at, direction, report))
    )


def _read_rule(value: Value, path: str, direction: Direction, report: Report) -> Rule:
    where = _PEERS[direction]
    fields = Fields(value, path, report, ("name", "action", where, "protocols"))
    name = _read_name(fields, report)
    action_value = fields.require("action")
    text = None
    if action_value is not None:
        text = read_choice(action_value, fields.path("action"), report, _ACTIONS)
    action = Action.DENY if text is None else _ACTIONS[text]
    peers_value = fields.require(where)
    _check_count(peers_value, fields.path(where), report)
    peers = _Peers(direction, action, report)
    found = read_list(peers_value, fields.path(where), report, peers.read)
    ports = _read_protocols(fields, report)
    _check_named_ports(fields, where, ports, report)
    if peers.closed and action is not Action.ACCEPT:
        return Rule(None, None, Action.DENY, name)
    if peers.closed:
        return Rule((), ports, action, name)
    return Rule(tuple(peer for peer in found if peer is not None), ports, action, name)


def _read_name(fields: Fields, report: Report) -> str:
    value = fields.get("name")
    name = None if value is None else read_string(value, fields.path("name"), report)
    if value is not None and name is not None and len(name) > NAME_MAX:
        report.error(value.line, fields.path("name"), f"more than {NAME_MAX} characters")
    return name or ""


@dataclass(slots=True)
class _Peers:
    """Reads the peers of a rule. closed: one cannot be done."""

    direction: Direction
    action: Action
    report: Report
    closed: bool = False

    def read(self, value: Value, path: str) -> Peer | None:
        known = _KINDS[self.direction]
        before = self.report.errors
        items = read_map(value, path, self.report)
        names = [name for name, item in items.items() if item.plain is not None]
        if len(names) == 1 and names[0] not in known and not value.faults:
            self._close(items[names[0]].line, f"{path}.{printable(names[0])}", names[0])
            return None
        fields = Fields(Value(items, value.line), path, self.report, known)
        if len(fields.names) != 1:
            if self.report.errors == before:
                said = f"exactly one of {', '.join(known)} is expected"
                self.report.error(value.line, path, said)
            return None
        name = fields.names[0]
        if name == "networks":
            return self._networks(fields)
        if name in ("nodes", "domainNames"):
            self._not_done(fields, name)
            return None
        return _read_workloads(fields, name, self.report)

    def _close(self, line: int, path: str, name: str) -> None:
        self.closed = True
        said = unknown(name, _KINDS[self.direction])
        if name in _KINDS[self.direction]:
            said = "such peers are not supported"
        effect = "matches nothing" if self.action is Action.ACCEPT else "denies everything"
        self.report.warn(line, path, f"{said}; the rule {effect}")

    def _not_done(self, fields: Fields, name: str) -> None:
        value, path = fields.get(name), fields.path(name)
        if value is None:
            return
        if name == "nodes":
            read_selector(value, path, self.report)
        else:
            _check_count(value, path, self.report)
            read_list(value, path, self.report, self._domain)
            if self.action is not Action.ACCEPT:
                said = "domainNames are for Accept rules only"
                self.report.error(value.line, path, said)
        self._close(value.line, path, name)

    def _domain(self, value: Value, path: str) -> None:
        text = read_string(value, path, self.report)
        if text is not None and not _DOMAIN.fullmatch(text):
            said = f'"{printable(text)}" is no domain name, such as example.com, *.example.com'
            self.report.error(value.line, path, said)

    def _networks(self, fields: Fields) -> Networks:
        value, path = fields.get("networks"), fields.path("networks")
        _check_count(value, path, self.report)
        seen: set[str] = set()

        def prefix(item: Value, at: str) -> IPNetwork | None:
            if isinstance(item.plain, str):
                if item.plain in seen:
                    self.report.error(item.line, at, "the prefix is in the list already")
                elif len(item.plain) > _PREFIX_TEXT_MAX:
                    said = f"more than {_PREFIX_TEXT_MAX} characters"
                    self.report.error(item.line, at, said)
                seen.add(item.plain)
            return read_prefix(item, at, self.report)

        found = read_list(value, path, self.report, prefix)
        return Networks(tuple(each for each in found if each is not None))


def _check_named_ports(
    fields: Fields, where: str, ports: tuple[Ports | NamedPort, ...] | None, report: Report
) -> None:
    """Report ports by name beside peers that have none."""
    peers = fields.get(where)
    if peers is None or not isinstance(peers.plain, list):
        return
    if not any(isinstance(port, NamedPort) for port in ports or ()):
        return
    for peer in peers.plain:
        items = peer.plain if isinstance(peer.plain, Mapping) else {}
        for name in _NO_NAMED_PORTS:
            if name in items and items[name].plain is not None:
                said = f"{_NAMED_PORT} cannot be used with {name}: they have no named ports"
                report.error(peer.line, fields.path("protocols"), said)
                return


def _read_protocols(fields: Fields, report: Report) -> tuple[Ports | NamedPort, ...] | None:
    value, path = fields.get("protocols"), fields.path("protocols")
    if value is None:
        return None
    _check_count(value, path, report)
    found = read_list(value, path, report, lambda item, at: _read_protocol(item, at, report))
    return tuple(each for each in found if each is not None)


def _one_field(
    fields: Fields, known: tuple[str, ...], path: str, before: int, report: Report
) -> str:
    """Return the name of the only field; "" is reported."""
    if len(fields.names) == 1 and fields.names[0] in known:
        return fields.names[0]
    if report.errors == before:
        report.error(fields.line, path, f"exactly one of {', '.join(known)} is expected")
    return ""


def _read_protocol(value: Value, path: str, report: Report) -> Ports | NamedPort | None:
    known = (*_PROTOCOLS, _NAMED_PORT)
    before = report.errors
    fields = Fields(value, path, report, known)
    name = _one_field(fields, known, path, before, report)
    item = fields.get(name) if name else None
    if item is None:
        return None
    if name == _NAMED_PORT:
        text = read_port_name(item, fields.path(name), report)
        return None if text is None else NamedPort(text, None)
    inner = Fields(item, fields.path(name), report, ("destinationPort",))
    port = inner.require("destinationPort")
    if port is None:
        return None
    return _read_port(port, inner.path("destinationPort"), _PROTOCOLS[name], report)


def _read_port(value: Value, path: str, protocol: Protocol, report: Report) -> Ports | None:
    known = ("number", "range")
    before = report.errors
    fields = Fields(value, path, report, known)
    name = _one_field(fields, known, path, before, report)
    item = fields.get(name) if name else None
    if item is None:
        return None
    if name == "number":
        number = read_int(item, fields.path(name), report, 1, PORT_MAX)
        return None if number is None else Ports(protocol, number, number)
    return _read_range(item, fields.path(name), protocol, report)


def _read_range(value: Value, path: str, protocol: Protocol, report: Report) -> Ports | None:
    fields = Fields(value, path, report, ("start", "end"))
    found: list[int] = []
    for name in ("start", "end"):
        item = fields.require(name)
        if item is not None:
            number = read_int(item, fields.path(name), report, 1, PORT_MAX)
            if number is not None:
                found.append(number)
    if len(found) < 2:
        return None
    if found[0] >= found[1]:
        report.error(value.line, path, "start has to be less than end")
    return Ports(protocol, found[0], found[1])
