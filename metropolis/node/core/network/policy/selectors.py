# SPDX-License-Identifier: Apache-2.0
"""Whether labels match a selector, and workloads match `Workloads`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from metropolis.node.core.network.policy.model import (
    NAMESPACE_NAME,
    Operator,
    Requirement,
    Selector,
    Workload,
    Workloads,
)

type Labels = Mapping[str, str]


def matches(selector: Selector, labels: Labels) -> bool:
    """Return whether all requirements hold; an empty selector has none."""
    return all(_holds(requirement, labels) for requirement in selector)


def _holds(requirement: Requirement, labels: Labels) -> bool:
    match requirement.operator:
        case Operator.IN:
            return labels.get(requirement.key) in requirement.values
        case Operator.NOT_IN:
            return labels.get(requirement.key) not in requirement.values
        case Operator.EXISTS:
            return requirement.key in labels
        case Operator.DOES_NOT_EXIST:
            return requirement.key not in labels


def namespace_labels(name: str, namespaces: Mapping[str, Labels]) -> Labels:
    """Return the labels of a namespace. All have NAMESPACE_NAME, and one that
    is missing has nothing else.
    """
    return {**namespaces.get(name, {}), NAMESPACE_NAME: name}


def selects(selector: Workloads, workload: Workload, namespaces: Mapping[str, Labels]) -> bool:
    """Return whether the selector matches the workload. Without a namespace, or
    with unknown labels, none does.
    """
    if not workload.known or workload.namespace is None:
        return False
    # Most selectors differ in the workload's labels, which are at hand.
    return matches(selector.workloads, workload.labels) and matches(
        selector.namespaces, namespace_labels(workload.namespace, namespaces)
    )
