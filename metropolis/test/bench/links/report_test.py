# SPDX-License-Identifier: Apache-2.0
"""Samples become the right figures, and are printed separately."""

import json

import pytest

from metropolis.test.bench.links import report
from metropolis.test.bench.links.model import Ability, Kind, Measured, Plan, Samples

MACHINE = {"cpu": "abacus", "cores": 10}


def samples(figure: str, unit: str, veth: list[list[float]], factor: float) -> list[Samples]:
    """Return samples: `veth` by round; others have `factor` times those."""
    return [
        Samples(
            figure,
            unit,
            kind,
            number,
            tuple(v * (1 if kind is Kind.VETH else factor) for v in values),
        )
        for number, values in enumerate(veth)
        for kind in Kind
    ]


def test_ratios_are_of_one_round() -> None:
    """A machine that is twice as slow in one round does not move them."""
    found = report.figures(samples("attach", "us", [[10, 20, 30], [20, 40, 60]], 0.5))
    assert [figure.subject for figure in found] == list(Kind)
    assert [figure.p50 for figure in found] == [30, 15, 15, 15]
    assert {figure.ratio_to_veth for figure in found[1:]} == {0.5}
    assert found[0].ratio_to_veth == 1
    assert found[0].p95 == pytest.approx(43.5)


def test_extreme_rounds_are_reported() -> None:
    odd = [
        Samples("attach", "us", kind, number, (value if kind is not Kind.VETH else 10.0,))
        for number, value in enumerate([9.0, 10.0, 14.0])
        for kind in Kind
    ]
    figure = report.figures(odd)[-1]
    assert (figure.ratio_to_veth, figure.ratio_low, figure.ratio_high) == (1, 0.9, 1.4)


def test_nothing_beside_nothing_is_alike() -> None:
    assert report.figures(samples("net_rx", "softirqs", [[0]], 1))[-1].ratio_to_veth == 1


def test_a_counting_machine_has_no_rates() -> None:
    timed = samples("attach", "us", [[10]], 1) + samples("TCP_RR", "1/s", [[10]], 1)
    counted = report.as_instructions(timed)
    assert {(one.figure, one.unit) for one in counted} == {("attach", report.INSTRUCTIONS)}


def test_the_table_has_every_figure_and_every_answer() -> None:
    answers = {kind: "yes" if kind.netkit else "no such attribute" for kind in Kind}
    found = Measured(
        {},
        (*samples("attach", "us", [[1234]], 0.5), *samples("TCP_RR rate", "1/s", [[50]], 2)),
        (Ability("policy", answers), Ability("group", dict.fromkeys(Kind, "yes"))),
    )
    text = report.table(MACHINE, found)
    assert "cpu abacus, cores 10" in text
    assert "617 0.50x (0.50-0.50)" in text
    assert "TCP_RR rate, 1/s" in text
    assert "group: yes, all" in text
    assert "    veth: no such attribute" in text


def test_json_is_json() -> None:
    found = Measured({}, tuple(samples("attach", "us", [[1]], 3)), ())
    told = json.loads(json.dumps(report.to_json(MACHINE, found)))
    assert told["machine"] == MACHINE
    assert told["figures"][-1]["subject"] == "netkit-l3"
    assert told["figures"][-1]["ratio_to_veth"] == 3


def test_what_is_reported_across_the_machine_arrives() -> None:
    plan = Plan(1, 2, 1, 3, 4, (("ipv4/ip_forward", 1),), "table t {}")
    assert Plan.from_json(plan.to_json()) == plan
    found = Measured(
        {"netperf": "2"},
        tuple(samples("attach", "us", [[1, 2]], 3)),
        (Ability("group", dict.fromkeys(Kind, "yes")),),
    )
    assert Measured.from_json(found.to_json()) == found
