# SPDX-License-Identifier: Apache-2.0
"""The cases: their number, their form, and that each shows something."""

from __future__ import annotations

import json
from collections import Counter
from typing import Final

import pytest

from metropolis.test.policy.cases import cases
from metropolis.test.policy.scene import NAMESPACES, PODS, VERSIONS, Case, Probe, Step, example

CASES: Final = cases()
PER_STEP: Final = (9 * 9 + 2 * 9) * 3 * 2 * 2
"""Pods to pods, to and from the outside; protocols, ports, families."""

_LEAST: Final = {
    "peers": 112,
    "ports": 70,
    "direction": 10,
    "rules": 10,
    "target": 10,
    "conflict": 16,
    "example": 13,
    "action": 15,
    "cluster": 40,
}


def test_there_are_enough_of_each_category() -> None:
    counts = Counter(tag for case in CASES for tag in case.tags)
    assert {tag: counts[tag] for tag in _LEAST if counts[tag] < _LEAST[tag]} == {}
    assert sum("cluster" not in case.tags for case in CASES) >= 230


def test_names_are_unique() -> None:
    counts = Counter(case.name for case in CASES)
    assert [name for name, count in counts.items() if count > 1] == []


def test_a_step_asks_all_pairs() -> None:
    probes = list(Step("nothing").probes())
    assert len(probes) == len(set(probes)) == PER_STEP


def test_cases_are_data() -> None:
    for case in CASES:
        for step in case.steps:
            text = json.dumps([step.policies, step.namespaces, step.pods])
            resolved = json.dumps(list(step.cluster(example).policies))
            assert json.loads(text)[0] == [*step.policies]
            assert "@" not in resolved, case.name


def test_no_two_cases_are_the_same() -> None:
    counts = Counter(
        json.dumps([[step.policies, step.namespaces, step.pods] for step in case.steps])
        for case in CASES
    )
    assert [text for text, count in counts.items() if count > 1] == []


def test_policies_have_names_of_their_own_and_tiers_an_order() -> None:
    for case in CASES:
        for step in case.steps:
            keys = [(p["kind"], *sorted(p["metadata"].items())) for p in step.policies]
            ranks = [
                (p["spec"]["tier"], p["spec"]["priority"])
                for p in step.policies
                if p["kind"] == "ClusterNetworkPolicy"
            ]
            assert len(keys) == len(set(keys)), case.name
            assert len(ranks) == len(set(ranks)), case.name


_ALLOW_ALL: Final = frozenset(
    {
        "cluster/no rules",
        "conflict/egress/deny and allow all",
        "conflict/ingress/deny and allow all",
        "direction/allow both",
        "direction/allow egress",
        "direction/allow egress, empty peers",
        "direction/allow ingress",
        "direction/allow ingress, empty peers",
        "direction/no types, both",
        "direction/no types, ingress",
        "example/allow all in a namespace",
        "ports/egress/all protocols",
        "ports/egress/empty list",
        "ports/ingress/all protocols",
        "ports/ingress/empty list",
        "rules/egress/narrow and wide",
        "rules/ingress/narrow and wide",
        "target/no namespace",
        "target/no pod",
        *(
            f"cluster/{direction}/Baseline {action}, NetworkPolicy allow"
            for direction in ("ingress", "egress")
            for action in ("Accept", "Deny", "Pass")
        ),
    }
)
"""The cases of one step that forbid nothing: no other may be without effect."""


@pytest.mark.parametrize("shard", range(8))
def test_each_step_shows_something(shard: int) -> None:
    """A step differs from no policies, or from the step before."""
    for case in CASES[shard::8]:
        _shows_something(case)


def _shows_something(case: Case) -> None:
    if len(case.steps) == 1:
        # The first connection that is forbidden ends the search.
        forbids = any(not allowed for _, allowed in case.steps[0].answers(example))
        assert forbids != (case.name in _ALLOW_ALL), case.name
        return
    before: dict[Probe, bool] | None = None
    for step in case.steps:
        expected = step.expected(example)
        if before is not None:
            common = expected.keys() & before.keys()
            more = expected.keys() != before.keys()
            assert more or any(expected[one] != before[one] for one in common), (case, step.what)
        before = expected


def test_families_differ_only_with_blocks() -> None:
    for case in CASES[::16]:
        text = json.dumps(case.steps[0].policies)
        if "cidr" not in text and "networks" not in text:
            expected = case.steps[0].expected(example)
            for probe, allowed in expected.items():
                assert expected[probe._replace(version=4)] == allowed, (case.name, str(probe))


def test_a_pod_reaches_itself() -> None:
    for case in CASES[::16]:
        answers = case.steps[-1].answers(example)
        assert all(allowed for one, allowed in answers if one.source == one.destination)


def test_the_scene() -> None:
    assert sorted(PODS) == [f"{namespace}/{pod}" for namespace in NAMESPACES for pod in "abc"]
    addresses = [example(name, version) for name in PODS for version in VERSIONS]
    assert len(addresses) == len(set(addresses))
