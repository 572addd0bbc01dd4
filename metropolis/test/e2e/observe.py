# SPDX-License-Identifier: Apache-2.0
"""What is on the node's kernel, seen with the node's own tools."""

import re
from dataclasses import dataclass

from metropolis.node import allocs
from metropolis.node.core.network.workloads.spec import workload_pb2
from metropolis.test.launch.node import Node

_SEPARATOR = "==="


@dataclass(frozen=True)
class Kernel:
    """Workload links and host routes, each as a line of ip(8)."""

    links: tuple[str, ...]
    routes: tuple[str, ...]


async def kernel(node: Node) -> Kernel:
    """Return what the kernel has of workloads."""
    text = await node.shell(
        f"ip -o link show group {allocs.LINK_GROUP_WORKLOAD}; echo {_SEPARATOR};"
        f"ip -4 route show table all proto {allocs.ROUTE_PROTOCOL_WORKLOAD};"
        f"ip -6 route show table all proto {allocs.ROUTE_PROTOCOL_WORKLOAD}"
    )
    links, _, routes = text.partition(_SEPARATOR)
    return Kernel(tuple(links.splitlines()), tuple(routes.strip().splitlines()))


async def attachments(node: Node) -> dict[str, workload_pb2.Attachment]:
    """Return what the service says: attachments by workload id."""
    listed = await node.workloads.List(workload_pb2.ListRequest(), timeout=60)
    return {item.workload_id: item for item in listed.attachments}


def ping_counts(output: str) -> tuple[int, int]:
    """Return packets sent and answered, of ping's output."""
    found = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", output)
    assert found is not None, output
    return int(found[1]), int(found[2])
