# SPDX-License-Identifier: Apache-2.0
"""The state of the node's kernel, read with the node's own tools."""

import asyncio
import re
from dataclasses import dataclass

from metropolis.node import allocs
from metropolis.node.core.network.workloads.spec import workload_pb2
from metropolis.test.launch.node import Node


@dataclass(frozen=True)
class Kernel:
    """Workload links and host routes, each as a line of ip(8)."""

    links: tuple[str, ...]
    routes: tuple[str, ...]


async def kernel(node: Node) -> Kernel:
    """Return the kernel's links and routes of workloads."""
    protocol = str(allocs.ROUTE_PROTOCOL_WORKLOAD)
    links, ipv4, ipv6 = await asyncio.gather(
        _ip(node, "-o", "link", "show", "group", str(allocs.LINK_GROUP_WORKLOAD)),
        _ip(node, "-4", "route", "show", "table", "all", "proto", protocol),
        _ip(node, "-6", "route", "show", "table", "all", "proto", protocol),
    )
    return Kernel(tuple(links), (*ipv4, *ipv6))


async def _ip(node: Node, *arguments: str) -> list[str]:
    # Not by a shell: busybox's would run its own ip.
    return (await node.agent.run(["ip", *arguments])).text.splitlines()


async def attachments(node: Node) -> dict[str, workload_pb2.Attachment]:
    """Return the service's attachments by workload id."""
    listed = await node.workloads.List(workload_pb2.ListRequest(), timeout=60)
    return {item.workload_id: item for item in listed.attachments}


def ping_counts(output: str) -> list[tuple[int, int]]:
    """Return packets sent and answered, from the output of each ping."""
    found = re.findall(r"(\d+) packets transmitted, (\d+) (?:packets )?received", output)
    return [(int(sent), int(answered)) for sent, answered in found]


async def nothing_is_left(node: Node) -> None:
    """Raise AssertionError for any leftover of a removed pod."""
    assert await node.cri.sandboxes() == {}
    assert await attachments(node) == {}
    assert await kernel(node) == Kernel((), ())
    assert await node.shell("ls /run/netns") == ""
