# SPDX-License-Identifier: Apache-2.0
"""Rows of pods for the report: by the runtime, and by the network service."""

from collections.abc import Collection, Sequence

from metropolis.node.core.network.workloads.spec import workload_pb2
from metropolis.test.launch import checks, report
from metropolis.test.launch.cri import Pod
from metropolis.test.launch.node import Node
from metropolis.test.launch.report import PodRow

# The CRI has no field for it; containerd always names it so.
INTERFACE = "eth0"


async def pod_rows(node: Node, pods: Sequence[Pod]) -> list[PodRow]:
    """Return the rows: pods by the runtime, links by the service."""
    times = report.attach_times(await node.attach_log())
    listed = await node.workloads.List(workload_pb2.ListRequest(), timeout=60)
    links = {item.workload_id: item for item in listed.attachments}
    rows = []
    for pod in pods:
        link = links.get(pod.id)
        rows.append(
            PodRow(
                name=pod.name,
                id=pod.id,
                interface=link.if_name if link else "",
                ipv4=str(pod.ipv4 or ""),
                ipv6=str(pod.ipv6 or ""),
                host_link=link.host_interface if link else "",
                attach_ms=times.get((pod.id, INTERFACE)),
                sandbox_ms=pod.sandbox_ms,
            )
        )
    return rows


def consistency(rows: Sequence[PodRow], families: Collection[int] = (4, 6)) -> list[checks.Check]:
    """Return a check for each pod: it has addresses of all families, a link."""
    found = []
    for row in rows:
        lacks = [
            what
            for what, value in (
                ("IPv4 address", row.ipv4 or 4 not in families),
                ("IPv6 address", row.ipv6 or 6 not in families),
                ("attachment in the service's List", row.host_link),
                ("attach time in the service's log", row.attach_ms),
            )
            if not value
        ]
        detail = f"no {', no '.join(lacks)}" if lacks else f"{row.ipv4} {row.ipv6} {row.host_link}"
        found.append(checks.Check(f"{row.name} attached", not lacks, detail, row.name, "attached"))
    return found
