# SPDX-License-Identifier: Apache-2.0
"""The result of a launch, as table and as JSON. Pure."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metropolis.test.launch.checks import Check


@dataclass(frozen=True)
class PodRow:
    """One pod. attach_ms: the attach time in the service's log; None: not
    logged. sandbox_ms: containerd's RunPodSandbox, measured on the host.
    """

    name: str
    id: str
    interface: str
    ipv4: str
    ipv6: str
    host_link: str
    attach_ms: float | None
    sandbox_ms: float


@dataclass(frozen=True)
class Report:
    """A launch. boot_s: from the machine's start until pods can be started."""

    accel: str
    boot_s: float
    pods: tuple[PodRow, ...]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether there were pods and checks, and none failed."""
        return bool(self.pods) and bool(self.checks) and all(c.ok for c in self.checks)


def attach_times(log: str) -> dict[tuple[str, str], float]:
    """Return ms by workload and interface, from the lines of cniproxy in
    containerd's log or of the CNI adapter in the service's. Other lines are
    ignored; the last of several counts.
    """
    found = re.findall(r"(?:ADD|cniproxy) (\S+) (\S+): attached in ([0-9]+\.[0-9]+) ms", log)
    return {(workload, interface): float(ms) for workload, interface, ms in found}


def to_json(report: Report) -> str:
    """Return the report as one line of JSON."""
    return json.dumps(to_dict(report))


def to_dict(report: Report) -> dict[str, Any]:
    """Return what the JSON has."""
    return {
        "ok": report.ok,
        "accel": report.accel,
        "boot_s": round(report.boot_s, 2),
        "pods": [
            {
                "name": pod.name,
                "id": pod.id,
                "interface": pod.interface,
                "ipv4": pod.ipv4,
                "ipv6": pod.ipv6,
                "host_link": pod.host_link,
                "attach_ms": pod.attach_ms,
                "sandbox_ms": round(pod.sandbox_ms, 1),
            }
            for pod in report.pods
        ],
        "checks": [
            {"name": check.name, "ok": check.ok, "detail": check.detail} for check in report.checks
        ],
    }


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "─" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def _verdict(report: Report, pod: str, target: str) -> str:
    """Return one cell: both families of one target."""
    found = [check for check in report.checks if check.pod == pod and check.target == target]
    return (
        " ".join(
            f"v{check.family} {'ok' if check.ok else 'FAILED'}"
            for check in sorted(found, key=lambda check: check.family)
        )
        or "-"
    )


def to_table(report: Report) -> str:
    """Return the report for people."""
    head = ["POD", "INTERFACE", "IPV4", "IPV6", "HOST LINK", "ATTACH MS", "(SANDBOX MS)"]
    head += ["POD→POD", "POD→NODE", "POD→OUTSIDE (masqueraded)"]
    rows = [head]
    for pod in report.pods:
        cells = [pod.name, pod.interface, pod.ipv4, pod.ipv6, pod.host_link]
        cells.append("" if pod.attach_ms is None else f"{pod.attach_ms:.1f}")
        cells.append(f"({pod.sandbox_ms:.0f})")
        cells += [_verdict(report, pod.name, target) for target in ("pod", "node", "outside")]
        rows.append([cell or "-" for cell in cells])
    lines = grid(rows)
    lines.append("")
    for check in report.checks:
        if not check.ok or check.target in ("outside", ""):
            mark = "ok    " if check.ok else "FAILED"
            lines.append(f"{mark}  {check.name}: {check.detail}")
    good = sum(check.ok for check in report.checks)
    lines.append("")
    lines.append(
        f"accelerator {report.accel}, boot {report.boot_s:.1f} s, "
        f"{good} of {len(report.checks)} checks ok"
    )
    lines.append(
        "ATTACH MS: one call of the network service; SANDBOX MS: containerd's whole RunPodSandbox"
    )
    return "\n".join(lines)
