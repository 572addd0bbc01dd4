# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicy of networking.k8s.io/v1. Pure.

Defaults and checks are the API server's (package networking, v1 defaults and
validation), with these exceptions:

    a null among rules, ports or peers   refused: there it is a rule that
                                         allows everybody
    zeros in front in an ipBlock         refused, as by its stricter checks
    rules of a direction that is not     kept there and without effect; left
    among policyTypes                    out here, with a warning
"""

from __future__ import annotations

from typing import Final

from metropolis.node.core.network.policy.kubernetes.common import (
    PORT_MAX,
    TOP_FIELDS,
    in_namespace,
    read_metadata,
    read_port_name,
    read_prefix,
    read_selector,
)
from metropolis.node.core.network.policy.kubernetes.documents import Value
from metropolis.node.core.network.policy.kubernetes.fields import (
    Fields,
    Report,
    read_choice,
    read_int,
    read_list,
)
from metropolis.node.core.network.policy.model import (
    Direction,
    NamedPort,
    Networks,
    Peer,
    Policy,
    Ports,
    Protocol,
    Rule,
    Selector,
    Tier,
    Workloads,
)
from metropolis.node.core.network.workloads.model import IPNetwork

KIND: Final = "NetworkPolicy"
API_VERSION: Final = "networking.k8s.io/v1"
DEFAULT_NAMESPACE: Final = "default"

BOTH: Final = frozenset(Direction)
"""The directions in which a policy that is refused isolates."""
_DIRECTIONS: Final = {direction.value: direction for direction in Direction}
_PROTOCOLS: Final = {protocol.name: protocol for protocol in Protocol}
_PEERS: Final = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


def read(value: Value, report: Report, fallback: str) -> Policy:
    """Return the policy of a document; with an error if any is reported.

    fallback: unique in the text, names a policy whose name cannot be read.
    """
    top = Fields(value, "", report, TOP_FIELDS)
    given = top.require("metadata")
    metadata = read_metadata(given, report, DEFAULT_NAMESPACE)
    namespace = None if top.is_doubtful("metadata") else metadata.namespace
    spec_value = top.get("spec") or Value({}, top.line)
    spec = Fields(spec_value, "spec", report, ("podSelector", "policyTypes", "ingress", "egress"))
    subject = _read_subject(top, spec, namespace, report)
    # Peers without a namespaceSelector: of the policy's namespace. Without it,
    # the policy has an error, so no rule counts.
    reader = _Rules(in_namespace(namespace or DEFAULT_NAMESPACE), report)
    rules = {direction: reader.read(spec, direction) for direction in Direction}
    isolates = _read_types(spec, report, bool(rules[Direction.EGRESS]))
    for direction in BOTH - isolates:
        if rules[direction]:
            field = direction.value.lower()
            said = f"has no effect: policyTypes does not name {direction.value}"
            report.warn(spec.line, spec.path(field), said)
    name = f"{namespace or '?'}/{metadata.name or fallback}"
    if report.errors:
        error = report.summary()
        return Policy(name, Tier.NAMESPACE, subject, isolates=BOTH, error=error)
    return Policy(
        name,
        Tier.NAMESPACE,
        subject,
        rules[Direction.INGRESS] if Direction.INGRESS in isolates else (),
        rules[Direction.EGRESS] if Direction.EGRESS in isolates else (),
        isolates,
    )


def _read_subject(top: Fields, spec: Fields, namespace: str | None, report: Report) -> Workloads:
    """Return the subject, as wide as it may be meant: a policy that is refused
    must not miss one.
    """
    before = report.errors
    selector = read_selector(spec.get("podSelector"), spec.path("podSelector"), report)
    doubtful = top.is_doubtful("spec") or spec.is_doubtful("podSelector") or report.errors > before
    if doubtful:
        selector = ()
    if namespace is None:
        said = "cannot be read: workloads of all namespaces are isolated"
        report.error(top.line, "metadata.namespace", said)
        return Workloads((), selector)
    if doubtful:
        said = f"cannot be read: all workloads of the namespace {namespace} are isolated"
        report.error(spec.line, spec.path("podSelector"), said)
    return Workloads(in_namespace(namespace), selector)


def _read_types(spec: Fields, report: Report, has_egress: bool) -> frozenset[Direction]:
    where = spec.path("policyTypes")
    value = spec.get("policyTypes")
    names = read_list(
        value, where, report, lambda item, path: read_choice(item, path, report, _DIRECTIONS)
    )
    if value is not None and len(names) > len(_DIRECTIONS):
        report.error(value.line, where, f"more than {len(_DIRECTIONS)} items")
    found = frozenset(_DIRECTIONS[name] for name in names if name is not None)
    if found:
        return found
    return BOTH if has_egress else frozenset({Direction.INGRESS})


class _Rules:
    """Reads rules. own: the selector of the policy's namespace."""

    def __init__(self, own: Selector, report: Report) -> None:
        self._own = own
        self._report = report

    def read(self, spec: Fields, direction: Direction) -> tuple[Rule, ...]:
        field = direction.value.lower()
        peers = _PEERS[direction]
        return tuple(
            read_list(
                spec.get(field),
                spec.path(field),
                self._report,
                lambda item, path: self._rule(item, path, peers),
            )
        )

    def _rule(self, value: Value, path: str, name: str) -> Rule:
        fields = Fields(value, path, self._report, (name, "ports"))
        peers = read_list(fields.get(name), fields.path(name), self._report, self._peer)
        ports = read_list(fields.get("ports"), fields.path("ports"), self._report, self._port)
        return Rule(
            tuple(peer for peer in peers if peer is not None) if peers else None,
            tuple(port for port in ports if port is not None) if ports else None,
        )

    def _peer(self, value: Value, path: str) -> Peer | None:
        kinds = ("podSelector", "namespaceSelector", "ipBlock")
        before = self._report.errors
        fields = Fields(value, path, self._report, kinds)
        block = fields.get("ipBlock")
        pods, namespaces = fields.get("podSelector"), fields.get("namespaceSelector")
        if block is None and pods is None and namespaces is None:
            if self._report.errors == before:
                said = f"a peer has to have one of {', '.join(kinds)}"
                self._report.error(value.line, path, said)
            return None
        found = None if block is None else self._block(block, fields.path("ipBlock"))
        selected = Workloads(
            self._own
            if namespaces is None
            else read_selector(namespaces, fields.path("namespaceSelector"), self._report),
            read_selector(pods, fields.path("podSelector"), self._report),
        )
        if block is None:
            return selected
        if pods is not None or namespaces is not None:
            said = "a peer with an ipBlock has no selectors: make it two peers"
            self._report.error(value.line, path, said)
        return found

    def _block(self, value: Value, path: str) -> Networks | None:
        fields = Fields(value, path, self._report, ("cidr", "except"))
        cidr = fields.require("cidr")
        prefix = None if cidr is None else read_prefix(cidr, fields.path("cidr"), self._report)
        excepts = read_list(
            fields.get("except"),
            fields.path("except"),
            self._report,
            lambda item, at: self._except(item, at, prefix),
        )
        if prefix is None:
            return None
        return Networks((prefix,), tuple(each for each in excepts if each is not None))

    def _except(self, value: Value, path: str, whole: IPNetwork | None) -> IPNetwork | None:
        found = read_prefix(value, path, self._report)
        if found is None or whole is None:
            return None
        inside = (
            found.version == whole.version
            and found.prefixlen > whole.prefixlen
            and found.network_address in whole
        )
        if not inside:
            self._report.error(value.line, path, f"{found} is no part of {whole}")
        return found

    def _port(self, value: Value, path: str) -> Ports | NamedPort | None:
        report = self._report
        fields = Fields(value, path, report, ("protocol", "port", "endPort"))
        protocol = Protocol.TCP
        given = fields.get("protocol")
        if given is not None:
            name = read_choice(given, fields.path("protocol"), report, _PROTOCOLS)
            protocol = _PROTOCOLS[name] if name is not None else protocol
        port, end = fields.get("port"), fields.get("endPort")
        if port is None or not isinstance(port.plain, int):
            if end is not None:
                said = "needs a port that is a number"
                report.error(end.line, fields.path("endPort"), said)
            if port is None:
                return Ports(protocol)
            name = read_port_name(port, fields.path("port"), report)
            return None if name is None else NamedPort(name, protocol)
        first = read_int(port, fields.path("port"), report, 1, PORT_MAX)
        if end is None:
            return None if first is None else Ports(protocol, first, first)
        last = read_int(end, fields.path("endPort"), report, 1, PORT_MAX)
        if first is None or last is None:
            return None
        if last < first:
            said = f"{last} is less than the port, {first}"
            report.error(end.line, fields.path("endPort"), said)
        return Ports(protocol, first, last)
