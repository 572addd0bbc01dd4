# SPDX-License-Identifier: Apache-2.0
"""The result of a cluster's launch, as matrix and as JSON. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from metropolis.test.launch.checks import Check
from metropolis.test.launch.reach import OUTSIDE
from metropolis.test.launch.report import grid


@dataclass(frozen=True)
class NodeRow:
    """A node and its pod. boot_s: seconds from the machine's start until pods
    can be started, while all nodes boot at once.
    """

    name: str
    ipv4: str
    ipv6: str
    boot_s: float
    pod: str
    pod_ipv4: str
    pod_ipv6: str


@dataclass(frozen=True)
class ClusterReport:
    """A launch of a cluster."""

    accel: str
    nodes: tuple[NodeRow, ...]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether there were nodes and checks, and none failed."""
        return bool(self.nodes) and bool(self.checks) and all(c.ok for c in self.checks)


def to_json(report: ClusterReport) -> str:
    """Return the report as one line of JSON."""
    return json.dumps(
        {
            "ok": report.ok,
            "accel": report.accel,
            "nodes": [
                {
                    "name": node.name,
                    "ipv4": node.ipv4,
                    "ipv6": node.ipv6,
                    "boot_s": round(node.boot_s, 2),
                    "pod": node.pod,
                    "pod_ipv4": node.pod_ipv4,
                    "pod_ipv6": node.pod_ipv6,
                }
                for node in report.nodes
            ],
            "checks": [
                {
                    "name": check.name,
                    "ok": check.ok,
                    "detail": check.detail,
                    "from": check.pod,
                    "to": check.target,
                    "family": check.family,
                    "ms": check.ms,
                }
                for check in report.checks
            ],
        }
    )


def cell(checks: Sequence[Check], source: str, target: str) -> str:
    """Return one cell, both families: latencies, or "ok" without one."""
    found = [check for check in checks if (check.pod, check.target) == (source, target)]
    return (
        " ".join(
            f"v{check.family} {_good(check) if check.ok else 'FAILED'}"
            for check in sorted(found, key=lambda check: check.family)
        )
        or "-"
    )


def _good(check: Check) -> str:
    return "ok" if check.ms is None else f"{check.ms:.1f}"


def to_table(report: ClusterReport) -> str:
    """Return the report for people."""
    nodes = [["NODE", "IPV4", "IPV6", "BOOT S", "POD", "POD IPV4", "POD IPV6"]]
    for node in report.nodes:
        row = [node.name, node.ipv4, node.ipv6, f"{node.boot_s:.1f}"]
        nodes.append([text or "-" for text in (*row, node.pod, node.pod_ipv4, node.pod_ipv6)])
    targets = [*(node.pod for node in report.nodes), OUTSIDE]
    matrix = [["FROM \\ TO (ms)", *targets[:-1], "outside (masqueraded)"]]
    for sources in ([node.pod for node in report.nodes], [node.name for node in report.nodes]):
        matrix += [[name, *(cell(report.checks, name, to) for to in targets)] for name in sources]
    lines = [*grid(nodes), "", *grid(matrix), ""]
    for check in report.checks:
        if not check.ok:
            lines.append(f"FAILED  {check.name}: {check.detail}")
    good = sum(check.ok for check in report.checks)
    lines += [f"accelerator {report.accel}, {good} of {len(report.checks)} checks ok"]
    lines += ["ms: the least of 3 pings; a number also says that a large body arrived whole"]
    return "\n".join(lines)
