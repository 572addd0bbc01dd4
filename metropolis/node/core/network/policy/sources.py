# SPDX-License-Identifier: Apache-2.0
"""The policies of all sources, as one set. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from metropolis.node.core.network.policy.model import Direction, Policy, Tier, Workloads


@dataclass(frozen=True, slots=True)
class Source:
    """What a source has set."""

    name: str
    generation: int = 0
    policies: tuple[Policy, ...] = ()
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def unreadable(name: str, why: str) -> Source:
    """Return a source whose policies are lost: one that isolates everything."""
    lost = Policy(
        f"lost policies of {name}",
        Tier.NAMESPACE,
        Workloads(),
        isolates=frozenset(Direction),
        error=why,
    )
    return Source(name, policies=(lost,))


def merged(sources: Iterable[Source]) -> list[tuple[Source, Policy]]:
    """Return all policies with their sources. If two have a name, the one of
    the source that comes first by name has it: the other is an error, whose
    name says its source.
    """
    taken: dict[str, str] = {}
    found = []
    for source in sorted(sources, key=lambda one: one.name):
        for policy in source.policies:
            holder = taken.setdefault(policy.name, source.name)
            if holder == source.name:
                found.append((source, policy))
                continue
            why = f"the source {holder} has a policy of this name, too"
            name = f"{policy.name} of {source.name}"
            found.append((source, replace(policy, name=name, error=why)))
    return found


def namespaces(sources: Iterable[Source]) -> dict[str, Mapping[str, str]]:
    """Return the labels of namespaces, from the first source that has each."""
    found: dict[str, Mapping[str, str]] = {}
    for source in sorted(sources, key=lambda one: one.name):
        for name, labels in source.namespaces.items():
            found.setdefault(name, labels)
    return found
