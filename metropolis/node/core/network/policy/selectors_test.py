# SPDX-License-Identifier: Apache-2.0
"""Requirements hold as Kubernetes' label selectors document them."""

from __future__ import annotations

import pytest

from metropolis.node.core.network.policy.model import (
    NAMESPACE_NAME,
    Operator,
    Requirement,
    Selector,
    Workload,
    Workloads,
)
from metropolis.node.core.network.policy.selectors import matches, selects

LABELS = {"app": "web", "empty": ""}


@pytest.mark.parametrize(
    ("requirement", "holds"),
    [
        (Requirement("app", Operator.IN, ("web", "db")), True),
        (Requirement("app", Operator.IN, ("db",)), False),
        (Requirement("tier", Operator.IN, ("web",)), False),
        (Requirement("empty", Operator.IN, ("",)), True),
        (Requirement("tier", Operator.IN, ("",)), False),
        (Requirement("app", Operator.NOT_IN, ("web",)), False),
        (Requirement("app", Operator.NOT_IN, ("db",)), True),
        (Requirement("tier", Operator.NOT_IN, ("web",)), True),
        (Requirement("empty", Operator.EXISTS), True),
        (Requirement("tier", Operator.EXISTS), False),
        (Requirement("empty", Operator.DOES_NOT_EXIST), False),
        (Requirement("tier", Operator.DOES_NOT_EXIST), True),
    ],
)
def test_a_requirement(requirement: Requirement, holds: bool) -> None:
    assert matches((requirement,), LABELS) is holds


def test_all_requirements_must_hold_and_none_is_everything() -> None:
    web, db = (Requirement("app", Operator.IN, (value,)) for value in ("web", "db"))
    assert matches((), {})
    assert not matches((web, db), LABELS)
    assert matches((web, web), LABELS)


def named(name: str) -> Selector:
    return (Requirement(NAMESPACE_NAME, Operator.IN, (name,)),)


TEAM: Selector = (Requirement("team", Operator.EXISTS),)


@pytest.mark.parametrize(
    ("selector", "namespace", "expected"),
    [
        (Workloads(), "a", True),
        (Workloads(), "unheard-of", True),
        (Workloads(), None, False),
        (Workloads(named("a")), "a", True),
        (Workloads(named("unheard-of")), "unheard-of", True),
        (Workloads(named("lie")), "b", False),
        (Workloads(named("b")), "b", True),
        (Workloads(TEAM), "a", True),
        (Workloads(TEAM), "unheard-of", False),
    ],
)
def test_the_namespace(selector: Workloads, namespace: str | None, expected: bool) -> None:
    namespaces = {"a": {"team": "x"}, "b": {NAMESPACE_NAME: "lie"}}
    assert selects(selector, Workload("w", (), namespace), namespaces) is expected


def test_both_selectors_must_match() -> None:
    web = (Requirement("app", Operator.IN, ("web",)),)
    assert selects(Workloads(named("a"), web), Workload("w", (), "a", LABELS), {})
    assert not selects(Workloads(named("b"), web), Workload("w", (), "a", LABELS), {})
    assert not selects(Workloads(named("a"), web), Workload("w", (), "a"), {})


def test_unknown_labels_match_nothing() -> None:
    assert not selects(Workloads(), Workload("w", (), "a", known=False), {})
