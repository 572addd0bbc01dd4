# SPDX-License-Identifier: Apache-2.0
"""The output of a cluster's figures."""

import json
from dataclasses import replace

from metropolis.test.bench.scale import report
from metropolis.test.bench.scale.model import (
    Burst,
    Change,
    Cpu,
    Growth,
    Measured,
    Plan,
    Size,
    Started,
    Store,
    Usage,
    Warm,
)
from metropolis.test.bench.scale.trace import Start

PLAN = Plan(nodes=2000)
USAGE = Usage(300, 5.0, 9.0, 61_440, 22, 30, 500_000)


def _size(nodes: int, host_s: float, cpu_s: float) -> Size:
    changes = tuple(Change(host_s, host_s / 2, 1, 104, 210) for _ in range(3))
    change, unrelated, idle = Cpu(0.02, 0.03), Cpu(9.0, cpu_s), Cpu(0.025, 0.1)
    return Size(nodes, changes, change, 0, 170.0, unrelated, idle, 0.001, USAGE)


FOUND = Measured(
    small=_size(10, 0.020, 0.010),
    growth=Growth(1990, 1.5, 6.0, 20, 400_000, 8.0),
    large=_size(2000, 0.030, 0.011),
    bursts=(Burst(140, 0.1, 120, 2.0), Burst(140, 0.4, 121, 2.8)),
    churn_rss_kib=(65_536, 67_584),
    cold=Started(Start(5.0, 2.0, 3.0, 1.5, 0.9, 20, 400_000), 14.0, 65_000),
    warm=Warm(5.0, 2.0, 1.0, 2, 0, 13.0),
    store=Store(8001, 600_000, 1_500_000, 199.9, 0.0001, 0.12),
    handshakes=(9, 2000),
    failures=(),
)


def test_targets_are_met() -> None:
    assert [(one.measured, one.met) for one in report.targets(FOUND)] == [
        ("6.5 s", True),
        ("30 ms", True),
        ("0 messages, CPU 1.10 times that in the small one", True),
    ]


def test_targets_are_missed() -> None:
    cold = replace(FOUND.cold, start=replace(FOUND.cold.start, programmed_s=10.0))
    large = replace(_size(2000, 0.06, 0.016), unrelated_messages=1)
    missed = report.targets(replace(FOUND, cold=cold, large=large))
    assert [one.met for one in missed] == [False, False, False]
    # Messages, or CPU: one is enough.
    for large in (_size(2000, 0.03, 0.016), replace(FOUND.large, unrelated_messages=1)):
        assert not report.targets(replace(FOUND, large=large))[2].met


def test_the_table() -> None:
    text = report.table({"accel": "tcg"}, PLAN, FOUND)
    assert "emulated" in text
    assert "NOT met" not in text
    assert "target: 1,999 peers programmed from cold in under 10 s: met (6.5 s)" in text
    assert "after every phase the kernel's peers were what etcd says" in text
    assert "churn of 100 nodes, 10 changes a second, 2 times 10 s" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "emulated" not in report.table({"accel": "kvm"}, PLAN, FOUND)


def test_failures_are_reported() -> None:
    text = report.table({}, PLAN, replace(FOUND, failures=("after churn: x",)))
    assert "FAILED: after churn: x" in text
    assert "were what etcd says" not in text


def test_json_has_everything() -> None:
    told = json.loads(json.dumps(report.to_json({"accel": "tcg"}, PLAN, FOUND)))
    assert told["measured"]["large"]["changes"][0]["messages"] == 1
    assert told["plan"]["nodes"] == 2000
    assert [target["met"] for target in told["targets"]] == [True, True, True]
