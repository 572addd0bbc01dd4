# SPDX-License-Identifier: Apache-2.0
"""Plans, verdicts and the matrix, without a cluster."""

import json
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from metropolis.test.launch import checks, reach
from metropolis.test.launch.checks import Plan
from metropolis.test.launch.cri import Pod
from metropolis.test.launch.matrix import ClusterReport, NodeRow, cell, to_json, to_table
from metropolis.test.launch.reach import Place

PLACES = [
    Place(
        f"node-{n}",
        (ip_address(f"198.51.100.{n}"), ip_address(f"2001:db8:51::{n}")),
        Pod(
            f"pod-{n}", f"id-{n}", f"c-{n}",
            (ip_address(f"10.200.{n}.1"), ip_address(f"fd00:10:200:{n}::1")), 1.0,
        ),
    )
    for n in (1, 2, 3)
]  # fmt: skip
OUTSIDE = [ip_address("203.0.113.80"), ip_address("2001:db8:80::80")]
PLANS = reach.plan(PLACES, OUTSIDE, 80)
ROWS = tuple(
    NodeRow(p.node, str(p.addresses[0]), "", 60.04, p.pod.name, str(p.pod.ipv4), "") for p in PLACES
)


def answer(plan: Plan, ms: str = "1.25/2.500") -> str:
    """Return the output of a successful check."""
    return str(plan.expect) if plan.target == reach.OUTSIDE else f"{ms} {plan.expect}"


def answers(plans: list[Plan]) -> str:
    return "\n".join(f"{i} 0 {answer(plan)}" for i, plan in enumerate(plans))


def test_all_pairs_are_planned() -> None:
    pairs = [(p.pod, p.target, p.family) for p in PLANS]
    assert len(pairs) == len(set(pairs)) == 3 * 2 * 2 * 2 + 3 * 2
    assert ("pod-1", "pod-3", 6) in pairs
    assert ("node-2", "pod-1", 4) in pairs
    assert not any(target == source for source, target, _ in pairs)
    assert not any((f"node-{n}", f"pod-{n}", 4) in pairs for n in (1, 2, 3))


def test_a_body_is_what_a_pod_serves() -> None:
    assert checks.body("pod-1", 8) == b"pod-1\npo"
    assert len(checks.body("pod-1", 100_000)) == 100_000
    assert "yes pod-1 | head -c 8 >/tmp/www/8" in checks.pod_command("pod-1", [8])[2]


def test_all_good() -> None:
    found = reach.judge(PLANS, answers(PLANS))
    assert all(check.ok for check in found)
    assert {check.ms for check in found if check.target != reach.OUTSIDE} == {1.25}
    assert cell(found, "pod-1", "pod-2") == "v4 1.2 v6 1.2"
    assert cell(found, "pod-1", reach.OUTSIDE) == "v4 ok v6 ok"
    assert cell(found, "pod-1", "pod-1") == "-"
    assert ClusterReport("tcg", ROWS, tuple(found)).ok


def test_what_is_wrong_is_said() -> None:
    plan = PLANS[0]
    want = str(plan.expect)
    for line, said in (
        ("0 1 no answer to ping: 100% packet loss", "no answer to ping: 100% packet loss"),
        ("0 0 wget: download timed out 1.2/3.4 1200 abcd", "1200 bytes, 100000 wanted: wget"),
        (f"0 0 1.2/3.4 {want[:-1]}{'1' if want[-1] != '1' else '2'}", "not the right ones"),
        ("0 0 garbage", "garbage (status 0)"),
        ("", "no answer from the pod"),
    ):
        (check,) = reach.judge([plan], line)
        assert not check.ok
        assert said in check.detail, check


def test_a_pod_that_is_not_masqueraded() -> None:
    plan = next(plan for plan in PLANS if plan.target == reach.OUTSIDE)
    (check,) = reach.judge([plan], "0 0 10.200.1.1")
    assert not check.ok
    assert check.detail == "203.0.113.80 saw 10.200.1.1, not 198.51.100.1"


@given(st.text())
def test_any_output_is_judged(output: str) -> None:
    found = reach.judge(PLANS, output)
    assert [check.name for check in found] == [plan.name for plan in PLANS]
    assert not all(check.ok for check in found)


def test_json() -> None:
    found = reach.judge(PLANS, answers(PLANS))
    text = to_json(ClusterReport("tcg", ROWS, tuple(found)))
    assert "\n" not in text
    told = json.loads(text)
    assert told["ok"] is True
    assert [node["name"] for node in told["nodes"]] == ["node-1", "node-2", "node-3"]
    assert told["checks"][0] == {
        "name": "pod-1→pod-2 IPv4",
        "ok": True,
        "detail": "10.200.2.1: 1.25/2.500 ms (least, mean of 3 pings), 100000 bytes",
        "from": "pod-1",
        "to": "pod-2",
        "family": 4,
        "ms": 1.25,
    }


def test_table() -> None:
    lines = answers(PLANS).splitlines()
    lines[0] = "0 1 no answer to ping"
    found = reach.judge(PLANS, "\n".join(lines))
    report = ClusterReport("tcg", ROWS, tuple(found))
    assert not report.ok
    table = to_table(report)
    assert "v4 FAILED v6 1.2" in table
    assert "FAILED  pod-1→pod-2 IPv4: 10.200.2.1: no answer to ping (status 1)" in table
    assert "29 of 30 checks ok" in table


def test_nothing_checked_is_not_ok() -> None:
    assert not ClusterReport("tcg", ROWS, ()).ok
    assert not ClusterReport("tcg", (), tuple(reach.judge(PLANS, answers(PLANS)))).ok
