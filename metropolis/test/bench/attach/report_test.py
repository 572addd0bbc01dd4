# SPDX-License-Identifier: Apache-2.0
"""The output is aligned, within its width, and complete."""

import pytest

from metropolis.test.bench.attach import report, targets
from metropolis.test.bench.attach.measure import Plan
from metropolis.test.bench.attach.results import OURS, Results
from metropolis.test.bench.attach.targets import Target

WIDTH = 120
PEER = "bridge ipMasq portmap 1 port"


def measured(*, inner_ms: float = 0.9) -> Results:
    """Something of each kind of figure."""
    results = Results()
    for subject in (OURS, "inner dual", "floor dual", PEER):
        results.know(subject, ipv6=subject != PEER)
    times = {OURS: 1.5, "inner dual": inner_ms, "floor dual": 0.75, PEER: 1234.5}
    for subject, value in times.items():
        results.add("ADD alone", subject, "ms", 0, [value])
        for level in (1, 2, 4, 8, 16):
            results.set(f"ADD at {level}", subject, "1/s", 0, 1000 / value)
        if subject != PEER:
            results.add("ADD with 0 attached", subject, "ms", 0, [value])
            results.add("ADD with 2000 attached", subject, "ms", 0, [value * 1.2])
        else:
            results.note("ADD with 2000 attached", subject, "ms", "a bridge is full")
        results.set("processes of one ADD", subject, "1", 0, 0.0)
    results.set("RSS with 2000 attached", OURS, "MB", 0, 60.0)
    return results


def test_tables_are_aligned_and_fit() -> None:
    lines = report.tables(measured().figures()).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not any(line != line.rstrip() for line in lines)
    alone = lines[lines.index(next(line for line in lines if line.startswith("ADD alone"))) :][:5]
    assert len({len(line) for line in alone[:2]}) == 1
    assert alone[0].split() == [
        "ADD",
        "alone,",
        "ms",
        "p50",
        "p95",
        "p99",
        "x",
        "ours",
        "x",
        "floor",
    ]
    # It has IPv4 only, and the floor for that was not measured.
    assert alone[4].split() == [*PEER.split(), "1,234", "1,234", "1,234", "823x"]


def test_figures_that_differ_by_a_number_are_one_table() -> None:
    text = report.tables(measured().figures())
    (head,) = [line for line in text.splitlines() if line.startswith("ADD, N at once")]
    assert [int(part) for part in head.split() if part.isdigit()] == [1, 2, 4, 8, 16]
    assert "n/a, a bridge is full: bridge ipMasq portmap 1 port" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.0, "0"),
        (0.1234, "0.123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (12345.6, "12,346"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_the_heading_names_machine_and_versions() -> None:
    machine = {
        "cpu": "Some CPU",
        "cores": 2,
        "memory_mib": 1000,
        "kernel": "7.0",
        "load": [0.1, 0.2, 0.3],
        "python": "3.14",
        "grpcio": "1.1",
        "containernetworking-plugins": "1.2",
        "netavark": "1.3",
        "iptables": "1.4",
    }
    plan = Plan(
        rounds=5, samples=20, burst=1, slow=3, at_once=(1,), attached=(0,), ops=1, peer_ops=1
    )
    text = report.heading(machine, plan)
    for part in ("Some CPU, 2 cores", "Linux 7.0", "netavark 1.3", "5 rounds of 20"):
        assert part in text


def by_name(results: Results) -> dict[str, Target]:
    return {one.what: one for one in targets.targets(results, [PEER])}


def test_targets_are_met_or_not() -> None:
    what = "inner ADD / floor, dual stack"
    assert by_name(measured())[what].met is True
    assert by_name(measured(inner_ms=1.1))[what].met is False
    assert by_name(Results())[what].met is None


def test_rates_are_scaled_by_the_floor() -> None:
    (rate,) = [one for what, one in by_name(measured()).items() if "ADD at 8 at once" in what]
    assert (rate.wanted, rate.met) == (">= 900/s", False)


def test_targets_fit() -> None:
    for results in (measured(), Results()):
        text = targets.render(targets.targets(results, [PEER]))
        assert max(map(len, text.splitlines())) <= WIDTH
        assert len(text.splitlines()) == len(targets.targets(results, [PEER])) + 2


def test_targets_of_ports() -> None:
    results = Results()
    for subject, add, remove in (
        ("grpc dual 1 port", 1.2, 0.8),
        ("grpc dual 1 port by 5000", 1.5, 0.8),
        ("inner dual", 0.5, 0.3),
        ("inner dual 1 port", 0.58, 0.4),
        ("inner dual 10 ports", 0.8, 0.4),
        (PEER, 60.0, 150.0),
    ):
        results.add("ADD alone", subject, "ms", 0, [add])
        results.add("DEL alone", subject, "ms", 0, [remove])
    found = {one.what: (one.found, one.met) for one in targets.targets(results, [])}
    assert found[f"{PEER} ADD / gRPC's"] == ("50.0x", True)
    assert found[f"{PEER} ADD + DEL / gRPC's"] == ("105.0x", True)
    assert found["one TCP port added to an inner ADD"] == ("0.08 ms", True)
    assert found["ten TCP ports added to an inner ADD"] == ("0.30 ms", False)
    assert found["gRPC ADD with a port: beside 5,000 / beside none"] == ("1.25x", False)
