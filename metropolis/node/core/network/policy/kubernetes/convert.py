# SPDX-License-Identifier: Apache-2.0
"""Manifests to policies. Pure.

A document that is a policy always becomes one. If it is refused, the Policy has
an error: its subjects are isolated in both directions, and it allows nothing.
If the subject cannot be read, it is the whole namespace, or every workload; a
problem says so.

A document that is not YAML may have been a policy, and nothing says about what.
A Namespace whose labels cannot be read changes what selectors mean. Both make
the whole unreadable: the caller keeps what it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from metropolis.node.core.network.policy.kubernetes import (
    cluster_network_policy,
    namespace,
    network_policy,
)
from metropolis.node.core.network.policy.kubernetes.documents import (
    Document,
    Value,
    load,
    printable,
)
from metropolis.node.core.network.policy.kubernetes.fields import (
    Finding,
    Problem,
    Report,
)
from metropolis.node.core.network.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Read:
    """The policies in the order of the texts, with unique names, and all
    problems. namespaces: labels by name. unreadable: a document may be missing
    in them; a problem says which.
    """

    policies: tuple[Policy, ...]
    problems: tuple[Problem, ...]
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unreadable: bool = False


@dataclass(frozen=True, slots=True)
class _Kind:
    """groups: API groups in which the kind is or was this one; "" is a mistake
    that is common.
    """

    version: str
    groups: frozenset[str]
    read: Callable[[Value, Report, str], Policy]


_KINDS: Final = {
    network_policy.KIND: _Kind(
        network_policy.API_VERSION,
        frozenset({"networking.k8s.io", "extensions", ""}),
        network_policy.read,
    ),
    cluster_network_policy.KIND: _Kind(
        cluster_network_policy.API_VERSION,
        frozenset({"policy.networking.k8s.io", ""}),
        cluster_network_policy.read,
    ),
}
_FORMER: Final = {
    "AdminNetworkPolicy": "Admin",
    "BaselineAdminNetworkPolicy": "Baseline",
}


def read(text: str | bytes, source: str) -> Read:
    """Return the policies of a text, and all that is wrong with it.

    source: the name of the file, for people. Raises nothing.
    """
    return read_all([(source, text)])


def read_all(texts: Iterable[tuple[str, str | bytes]]) -> Read:
    """Return what several texts have, each with its source, as one set."""
    reader = _Reader()
    for source, text in texts:
        for document in load(text, source):
            reader.add(document)
    return Read(
        tuple(reader.policies), tuple(reader.problems), reader.namespaces, reader.unreadable
    )


class _Reader:
    """Collects a Read."""

    def __init__(self) -> None:
        self._count = 0
        self._places: dict[str, str] = {}
        self.policies: list[Policy] = []
        self.problems: list[Problem] = []
        self.namespaces: dict[str, Mapping[str, str]] = {}
        self.unreadable = False

    def add(self, document: Document) -> None:
        """Add a document's policy, namespace or problems."""
        self._count += 1
        report = Report()
        policy = ""
        if document.value is None:
            self.unreadable = True
            report.error(document.line, "", document.error)
        elif _is_namespace(document.value):
            self._add_namespace(document, document.value, report)
        else:
            kind = _find_kind(document, document.value, report)
            if kind is not None:
                policy = self._add_policy(kind, document, document.value, report)
        for finding in report.findings:
            self._problem(document, finding, policy)
        if report.dropped:
            said = f"{report.dropped} further problems"
            rest = Finding(document.line, "", said, warning=not report.errors)
            self._problem(document, rest, policy)

    def _add_policy(self, kind: _Kind, document: Document, value: Value, report: Report) -> str:
        """Return the name; of a policy whose own is taken, another."""
        suffix = f"({printable(document.source)}#{self._count})"
        policy = kind.read(value, report, suffix)
        if not self._take(policy.name, document, report):
            policy = dataclasses.replace(
                policy,
                name=policy.name + suffix,
                ingress=(),
                egress=(),
                isolates=policy.isolates and network_policy.BOTH,
                error=report.summary(),
            )
        self.policies.append(policy)
        return policy.name

    def _add_namespace(self, document: Document, value: Value, report: Report) -> None:
        name, labels = namespace.read(value, report)
        if not report.errors:
            self._take(f"the {namespace.KIND} {name}", document, report)
        if report.errors:
            self.unreadable = True
        else:
            self.namespaces[name] = labels

    def _take(self, name: str, document: Document, report: Report) -> bool:
        place = f"{document.source}:{document.line}"
        taken = self._places.setdefault(name, place)
        if taken is place:
            return True
        said = f"{printable(name)} is there already, at {printable(taken)}"
        report.error(document.line, "metadata.name", said)
        return False

    def _problem(self, document: Document, finding: Finding, policy: str) -> None:
        path = ".".join(part for part in (document.path, finding.path) if part)
        self.problems.append(
            Problem(
                document.source, finding.line, path, finding.text, policy, warning=finding.warning
            )
        )


def _is_namespace(value: Value) -> bool:
    if not isinstance(value.plain, Mapping):
        return False
    kind, version = value.plain.get("kind"), value.plain.get("apiVersion")
    return (
        kind is not None
        and kind.plain == namespace.KIND
        and version is not None
        and version.plain == namespace.API_VERSION
    )


def _find_kind(document: Document, value: Value, report: Report) -> _Kind | None:
    """Return what reads a document; None: it is no policy, and reported."""
    items = value.plain
    if not isinstance(items, Mapping):
        report.error(value.line, "", "a document is a map, with apiVersion and kind")
        return None
    kind_value = items.get("kind")
    named = document.kind if kind_value is None or kind_value.plain is None else kind_value.plain
    line = value.line if kind_value is None else kind_value.line
    if not isinstance(named, str) or not named:
        for fault in value.faults:
            report.error(fault.line, fault.key, fault.text)
        report.error(line, "kind", "required, as a string")
        return None
    version = _read_version(document, items)
    group = None if version is None else version.rpartition("/")[0]
    kind = _KINDS.get(named)
    if kind is None or (group is not None and group not in kind.groups):
        for fault in value.faults:
            report.error(fault.line, fault.key, fault.text)
        report.error(line, "kind", _no_policy(named, version))
        return None
    if version != kind.version:
        report.error(line, "apiVersion", f"{kind.version} is expected")
    return kind


def _read_version(document: Document, items: Mapping[str, Value]) -> str | None:
    value = items.get("apiVersion")
    if value is None or value.plain is None:
        return document.version or None
    return value.plain if isinstance(value.plain, str) else None


def _no_policy(named: str, version: str | None) -> str:
    text = printable(named) if version is None else f"{printable(version)} {printable(named)}"
    tier = _FORMER.get(named)
    if tier is not None:
        return (
            f"{text} is not read: write a {cluster_network_policy.KIND} of"
            f" {cluster_network_policy.API_VERSION} with the tier {tier}"
        )
    known = ", ".join(f"{each.version} {name}" for name, each in _KINDS.items())
    return f"{text} is no policy that is read here: these are {known}, and v1 Namespace"
