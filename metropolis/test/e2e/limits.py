# SPDX-License-Identifier: Apache-2.0
"""Pods with annotations of bandwidth, however containerd asks for a network."""

import asyncio

from metropolis.node.core.network.workloads.spec import workload_pb2
from metropolis.test.e2e.observe import attachments, nothing_is_left
from metropolis.test.launch.cri import sandbox_config
from metropolis.test.launch.node import Node
from third_party.cri import api_pb2 as api

_LIMITED = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "20M"}
_PODS = 3  # at once: the first ones load the kernel's modules


def _config(number: int) -> api.PodSandboxConfig:
    config = sandbox_config(f"limited-{number}")
    config.annotations.update(_LIMITED)
    return config


async def check_limits(node: Node) -> None:
    """Raise AssertionError unless the pods have the limits that containerd
    reads from their annotations, in the kernel too, and leave none.
    """
    before = await _links(node)
    pods = await asyncio.gather(*(node.cri.run_sandbox(_config(number)) for number in range(_PODS)))
    found = await attachments(node)
    for pod in pods:
        limits = found[pod].bandwidth
        assert (limits.ingress_rate, limits.egress_rate) == (10_000_000, 20_000_000), limits
        # Containerd asks for 4 Gbit; a burst may only be less than ours.
        assert (limits.ingress_burst, limits.egress_burst) == (0, 0), limits
        request = workload_pb2.CheckRequest(workload_id=pod)
        checked = await node.workloads.Check(request, timeout=60)
        assert not any(one.findings for one in checked.attachments), checked
    # A link of the node for each pod, and one for what it sends.
    assert len(await _links(node)) == len(before) + 2 * _PODS
    await asyncio.gather(*(node.cri.remove_pod(pod) for pod in pods))
    await nothing_is_left(node)
    assert await _links(node) == before


async def _links(node: Node) -> set[str]:
    return set((await node.shell("ls /sys/class/net")).split())
