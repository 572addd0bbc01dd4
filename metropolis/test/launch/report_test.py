# SPDX-License-Identifier: Apache-2.0
"""Plans, verdicts and reports, without a node."""

import dataclasses
import json
import subprocess
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from metropolis.test.launch import checks
from metropolis.test.launch.checks import Check
from metropolis.test.launch.cri import Pod
from metropolis.test.launch.report import PodRow, Report, attach_times, to_json, to_table

PODS = [
    Pod(name, f"id-{name}", f"c-{name}", (ip_address(v4), ip_address(v6)), 12.34)
    for name, v4, v6 in (
        ("pod-a", "10.192.0.2", "fd00:10:192::2"),
        ("pod-b", "10.192.0.3", "fd00:10:192::3"),
    )
]
NODE = [ip_address("198.51.100.10"), ip_address("2001:db8:51::10")]
OUTSIDE = [ip_address("203.0.113.80"), ip_address("2001:db8:80::80")]
PLANS = checks.plan(PODS, NODE, OUTSIDE, 80)


def answers(plans: list[checks.Plan]) -> str:
    """Return the output of pods that reach everything."""
    return "\n".join(f"{i} 0 {p.expect or 'PING ok'}" for i, p in enumerate(plans))


def test_every_pair_and_family_is_planned() -> None:
    assert [plan.name for plan in PLANS] == [
        f"{pod}→{target} IPv{family}"
        for pod in ("pod-a", "pod-b")
        for target in ("pod", "node", "outside")
        for family in (4, 6)
    ]


def test_all_good() -> None:
    found = checks.judge(PLANS, answers(PLANS))
    assert all(check.ok for check in found)
    assert found[4].detail == "203.0.113.80 saw 198.51.100.10"


def test_a_source_that_is_not_the_nodes_fails() -> None:
    output = answers(PLANS).replace("198.51.100.10", "10.192.0.2")
    bad = [check for check in checks.judge(PLANS, output) if not check.ok]
    assert [check.name for check in bad] == ["pod-a→outside IPv4", "pod-b→outside IPv4"]
    assert "got '10.192.0.2', want '198.51.100.10'" in bad[0].detail


def test_an_answer_of_the_wrong_pod_fails() -> None:
    found = checks.judge(PLANS, answers(PLANS).replace("0 0 pod-b", "0 0 pod-a"))
    assert [check.name for check in found if not check.ok] == ["pod-a→pod IPv4"]


def test_a_node_without_ipv6_fails_the_masquerade_check() -> None:
    plans = checks.plan(PODS, NODE[:1], OUTSIDE, 80)
    found = checks.judge(plans, "\n".join(f"{i} 0 x" for i in range(len(plans))))
    assert not next(check for check in found if check.name == "pod-a→outside IPv6").ok


@given(st.text())
def test_any_output_is_judged(output: str) -> None:
    found = checks.judge(PLANS, output)
    assert [check.name for check in found] == [plan.name for plan in PLANS]
    assert not all(check.ok for check in found)


def test_the_script_reports_status_and_output() -> None:
    plans = [
        dataclasses.replace(PLANS[0], command=("sh", "-c", "echo one; echo 'two'; exit 3")),
        dataclasses.replace(PLANS[0], command=("echo", "a b", "$x"), expect="a b $x"),
    ]
    done = subprocess.run(
        ["sh", "-c", checks.script(plans)], capture_output=True, text=True, check=True
    )
    first, second = checks.judge(plans, done.stdout)
    assert (first.ok, second.ok) == (False, True)
    assert "one two (status 3)" in first.detail


ROWS = tuple(
    PodRow(p.name, p.id, "eth0", str(p.ips[0]), str(p.ips[1]), "wl1", 1.23, p.sandbox_ms)
    for p in PODS
)


def report(*found: Check) -> Report:
    """Return a report with these checks."""
    return Report("tcg", 20.123, ROWS, found)


def test_json() -> None:
    found = checks.judge(PLANS, answers(PLANS))
    text = to_json(report(*found))
    assert "\n" not in text
    told = json.loads(text)
    assert (told["ok"], told["accel"], told["boot_s"]) == (True, "tcg", 20.12)
    assert told["pods"][0]["ipv6"] == "fd00:10:192::2"
    assert told["pods"][0]["attach_ms"] == 1.23
    assert told["checks"][0] == {
        "name": "pod-a→pod IPv4",
        "ok": True,
        "detail": "10.192.0.3 answered: pod-b",
    }


def test_attach_times_come_from_the_log() -> None:
    log = "\n".join((
        "2026-01-01 I network.workloads.cni ADD id-a eth0: attached in 1.50 ms",
        "2026-01-01 W network.workloads.cni ADD id-a eth1: caller has gone, not begun",
        "2026-01-01 I network.workloads.cni ADD id-b eth0: attached in 12.25 ms",
    ))  # fmt: skip
    assert attach_times(log) == {("id-a", "eth0"): 1.5, ("id-b", "eth0"): 12.25}


def test_nothing_checked_is_not_ok() -> None:
    assert not report().ok
    assert not Report("", 0.0, (), (Check("x", True, ""),)).ok
    assert not report(Check("x", True, ""), Check("y", False, "")).ok


def test_table() -> None:
    found = checks.judge(PLANS, answers(PLANS).replace("0 0 pod-b", "0 1 no route"))
    table = to_table(report(*found))
    assert "v4 FAILED v6 ok" in table
    assert "FAILED  pod-a→pod IPv4: 10.192.0.3: no route (status 1)" in table
    assert "203.0.113.80 saw 198.51.100.10" in table
    assert "11 of 12 checks ok" in table
