# SPDX-License-Identifier: Apache-2.0
"""Manifests to policies. Pure.

A document that is a policy always becomes one. If it is refused, the Policy has
an error: its subjects are isolated in both directions, and it allows nothing.
If the subject cannot be read, it is the whole namespace, or every workload; a
problem says so. Only what is not known to be a policy becomes none, such as a
document that is not YAML: nothing says what it is about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from metropolis.node.core.network.policy.kubernetes import (
    cluster_network_policy,
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
    """The policies in the order of the text, with unique names, and all
    problems.
    """

    policies: tuple[Policy, ...]
    problems: tuple[Problem, ...]


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
    reader = _Reader(source)
    for document in load(text, source):
        reader.add(document)
    return Read(tuple(reader.policies), tuple(reader.problems))


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._lines: dict[str, int] = {}
        self.policies: list[Policy] = []
        self.problems: list[Problem] = []

    def add(self, document: Document) -> None:
        """Add a document's policy or problems."""
        if document.value is None:
            self._problem(document, Finding(document.line, "", document.error, warning=False))
            return
        report = Report()
        kind = _find_kind(document, document.value, report)
        policy = None
        if kind is not None:
            fallback = f"({self._source}#{document.number})"
            policy = self._unique(kind.read(document.value, report, fallback), document, report)
            self.policies.append(policy)
        for finding in report.findings:
            self._problem(document, finding, "" if policy is None else policy.name)
        if report.dropped:
            said = f"{report.dropped} further problems"
            rest = Finding(document.line, "", said, warning=not report.errors)
            self._problem(document, rest, "" if policy is None else policy.name)

    def _unique(self, policy: Policy, document: Document, report: Report) -> Policy:
        """Return the policy, refused under another name if its own is taken."""
        taken = self._lines.get(policy.name)
        if taken is None:
            self._lines[policy.name] = document.line
            return policy
        said = f"{printable(policy.name)} is there already, in line {taken}"
        report.error(document.line, "metadata.name", said)
        return dataclasses.replace(
            policy,
            name=f"{policy.name}({self._source}#{document.number})",
            ingress=(),
            egress=(),
            isolates=policy.isolates and network_policy.BOTH,
            error=report.summary(),
        )

    def _problem(self, document: Document, finding: Finding, policy: str = "") -> None:
        path = ".".join(part for part in (document.path, finding.path) if part)
        self.problems.append(
            Problem(self._source, finding.line, path, finding.text, policy, warning=finding.warning)
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
    known = " and ".join(f"{each.version} {name}" for name, each in _KINDS.items())
    return f"{text} is no policy that is read here: these are {known}"
