# SPDX-License-Identifier: Apache-2.0
"""containerd with cniproxy inside: every kind of pod, many at once.

CHURN_PODS is the number of pods that start and stop; an emulated machine does
about one a second.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any, cast

import pytest

from metropolis.node import allocs
from metropolis.test.e2e.host_ports import check_host_ports
from metropolis.test.e2e.limits import check_limits
from metropolis.test.e2e.observe import attachments, kernel, nothing_is_left
from metropolis.test.launch.cri import IMAGE as BUSYBOX
from metropolis.test.launch.cri import CriError, Pod, sandbox_config
from metropolis.test.launch.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

type RunPod = Callable[[str], Awaitable[Pod]]

CHURN_PODS = int(os.environ.get("CHURN_PODS", "12"))
_AT_ONCE = 8
_ROOT_UID = 1 << 20


async def test_there_is_no_cni(node: Node) -> None:
    """No plugin, configuration or cache, before a pod and after it."""
    ident = await node.cri.run_sandbox(sandbox_config("pod-a"))
    await node.cri.remove_pod(ident)
    # -xdev would skip /run and /var, where these would be.
    found = await node.shell(
        "find /etc /run /usr /var \\( -ipath '*/cni' -o -name '*.conflist' -o -name cniproxy"
        " -o -path '*/cni/*' \\) ! -path '/usr/lib/metropolis/*'"
    )
    assert found == ""
    await nothing_is_left(node)


async def test_status_of_a_pod(node: Node, run_pod: RunPod) -> None:
    """IP and additional IP; what containerd stores names the interface."""
    pod = await run_pod("pod-a")
    assert [ip.version for ip in pod.ips] == [4, 6]
    known = (await attachments(node))[pod.id]
    assert {ip.packed for ip in pod.ips} == set(known.ip)
    result = cast("dict[str, Any]", await node.cri.cni_result(pod.id))
    own = result["Interfaces"]["eth0"]
    assert tuple(ip_address(one["IP"]) for one in own["IPConfigs"]) == pod.ips
    assert own["Mac"] == known.mac.hex(":")
    assert own["Sandbox"].startswith("/var/run/netns/")
    assert result["Interfaces"][known.host_interface]["Mac"] == allocs.FIRST_HOP_MAC.hex(":")
    log = await node.attach_log()
    assert f"cniproxy {pod.id} eth0: attached in" in log
    # lo is up as well, and the exec socket was not used.
    done = await node.cri.exec(pod.container, ["ping", "-c", "1", "-W", "10", "127.0.0.1"])
    assert done.status == 0, done
    assert "ADD" not in log


async def test_a_pod_on_the_host_s_network(node: Node) -> None:
    ident = await node.cri.run_sandbox(sandbox_config("pod-h", host_network=True))
    try:
        assert await node.cri.sandbox_ips(ident) == ()
        assert await attachments(node) == {}
        assert (await node.cri.sandboxes())[ident]
    finally:
        await node.cri.remove_pod(ident)
    await nothing_is_left(node)


async def test_a_pod_with_a_user_namespace(node: Node) -> None:
    ident = await node.cri.run_sandbox(sandbox_config("pod-u", root_uid=_ROOT_UID))
    try:
        ips = await node.cri.sandbox_ips(ident)
        assert [ip.version for ip in ips] == [4, 6]
        pid, _ = await node.cri.sandbox_process(ident)
        shown = await node.shell(f"cat /proc/{pid}/uid_map")
        assert shown.split()[:2] == ["0", str(_ROOT_UID)]
        for ip in ips:
            await node.shell(f"ping -c 1 -W 10 {ip}")
    finally:
        await node.cri.remove_pod(ident)
    await nothing_is_left(node)


async def test_ctr_run_cni(node: Node) -> None:
    """ctr sets up by /proc/PID/ns/net, and removes by the id alone."""
    run = f"ctr -n k8s.io run -d --cni {BUSYBOX} by-ctr sleep 1000"
    await node.shell(run)
    known = await attachments(node)
    assert [one.if_name for one in known.values()] == ["eth0"]
    (ident,) = known
    assert ident.endswith("by-ctr")
    for packed in known[ident].ip:
        await node.shell(f"ping -c 1 -W 10 {ip_address(packed)}")
    await node.shell("ctr -n k8s.io task kill -s KILL by-ctr")
    await node.shell("until ctr -n k8s.io task delete by-ctr; do sleep 0.2; done")
    await node.shell("ctr -n k8s.io container delete by-ctr")
    await nothing_is_left(node)


async def test_host_ports(node: Node) -> None:
    await check_host_ports(node)


async def test_limits(node: Node) -> None:
    await check_limits(node)


async def test_many_come_and_go(node: Node) -> None:
    turns = asyncio.Semaphore(_AT_ONCE)
    seen: set[str] = set()

    async def one(number: int) -> None:
        async with turns:
            ident = await node.cri.run_sandbox(sandbox_config(f"pod-{number}"))
            ips = await node.cri.sandbox_ips(ident)
            assert [ip.version for ip in ips] == [4, 6]
            texts = {str(ip) for ip in ips}
            assert not texts & seen
            seen.update(texts)
            await node.cri.remove_pod(ident)

    begin = asyncio.get_running_loop().time()
    await asyncio.gather(*(one(number) for number in range(CHURN_PODS)))
    took = asyncio.get_running_loop().time() - begin
    print(f"{CHURN_PODS} pods in {took:.1f} s, {_AT_ONCE} at once", flush=True)
    assert len(seen) == 2 * CHURN_PODS
    await nothing_is_left(node)


async def test_containerd_is_killed(node: Node, run_pod: RunPod) -> None:
    """Its pods go on, and its successor removes them."""
    pod = await run_pod("pod-a")
    before = await kernel(node)
    result = await node.cri.cni_result(pod.id)
    await node.shell("sv kill /run/sv/containerd")
    await node.wait_ready()
    assert (await node.cri.sandboxes())[pod.id]
    assert await node.cri.sandbox_ips(pod.id) == pod.ips
    # Read from its store, where it is JSON.
    assert json.dumps(await node.cri.cni_result(pod.id)) == json.dumps(result)
    assert await kernel(node) == before
    await node.cri.remove_pod(pod.id)
    await nothing_is_left(node)


async def test_node_core_is_killed_while_pods_start(node: Node) -> None:
    """Each start succeeds or leaves nothing; then everything works again."""
    for pause in ("0.1", "0.6"):
        starts = [
            asyncio.create_task(node.cri.run_sandbox(sandbox_config(f"pod-{number}")))
            for number in range(4)
        ]
        await node.shell(f"sleep {pause}; sv kill /run/sv/node-core")
        outcome = await asyncio.gather(*starts, return_exceptions=True)
        failed = [one for one in outcome if isinstance(one, BaseException)]
        assert [one for one in failed if not isinstance(one, CriError)] == []
        started = {one for one in outcome if isinstance(one, str)}
        print(f"killed after {pause} s: {len(started)} of 4 started", flush=True)
        await node.wait_ready()
        assert set(await node.cri.sandboxes()) == started
        assert set(await attachments(node)) == started
        ident = await node.cri.run_sandbox(sandbox_config("pod-z"))
        await asyncio.gather(*(node.cri.remove_pod(one) for one in [*started, ident]))
        await nothing_is_left(node)
