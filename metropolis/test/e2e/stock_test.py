# SPDX-License-Identifier: Apache-2.0
"""A containerd as Debian builds it, with the exec shim: the same network."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from metropolis.test.e2e.host_ports import check_host_ports
from metropolis.test.e2e.limits import check_limits
from metropolis.test.e2e.observe import attachments, nothing_is_left
from metropolis.test.launch import checks
from metropolis.test.launch.cri import Pod, sandbox_config
from metropolis.test.launch.lab import OUTSIDE_IPV4, OUTSIDE_IPV6, OUTSIDE_PORT
from metropolis.test.launch.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

type RunPod = Callable[[str], Awaitable[Pod]]

IMAGE = "stock_image"
CONFIG = None


async def test_it_is_stock(node: Node) -> None:
    assert "+cniproxy" not in await node.shell("containerd --version")
    assert await node.shell("ls /usr/libexec/cni") == "cniproxy"


async def test_pods_are_reached(node: Node, run_pod: RunPod) -> None:
    pods = [*await asyncio.gather(run_pod("pod-a"), run_pod("pod-b"))]
    assert node.ipv6 is not None
    plans = checks.plan(pods, [node.ipv4, node.ipv6], [OUTSIDE_IPV4, OUTSIDE_IPV6], OUTSIDE_PORT)
    outcome = await checks.run(node.cri, pods, plans)
    assert len(outcome) > 6
    assert [check for check in outcome if not check.ok] == []
    known = await attachments(node)
    for pod in pods:
        assert {ip.packed for ip in pod.ips} == set(known[pod.id].ip)
        assert f"ADD {pod.id} eth0: attached in" in await node.attach_log()


async def test_pods_leave_nothing(node: Node) -> None:
    idents = await asyncio.gather(
        *(node.cri.run_sandbox(sandbox_config(f"pod-{number}")) for number in range(4))
    )
    assert set(await attachments(node)) == set(idents)
    await asyncio.gather(*(node.cri.remove_pod(ident) for ident in idents))
    await nothing_is_left(node)


async def test_host_ports(node: Node) -> None:
    """As our configuration declares; containerd capitalises the fields."""
    await check_host_ports(node)


async def test_limits(node: Node) -> None:
    await check_limits(node)
