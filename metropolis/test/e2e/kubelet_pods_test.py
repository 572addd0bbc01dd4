# SPDX-License-Identifier: Apache-2.0
"""Pods by the calls of a kubelet: critest's expectations, and their lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from metropolis.test.e2e.observe import attachments, kernel, nothing_is_left
from metropolis.test.kubelet import expectations
from metropolis.test.kubelet.expectations import EXPECTATIONS, from_node, server
from metropolis.test.kubelet.kubelet import Kubelet, KubeletError
from metropolis.test.kubelet.manifest import Container
from metropolis.test.kubelet.on_node import kubelet_of
from metropolis.test.launch import outside, own_pods
from metropolis.test.launch.checks import Check
from metropolis.test.launch.configuration import Configuration
from metropolis.test.launch.cri import CriError
from metropolis.test.launch.node import Node

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXAMPLE = Path("metropolis/test/kubelet/example.yaml")
VERDICTS: list[Check] = []
HOST_PORT = 18083
POD = server("web", host_port=HOST_PORT)


@pytest_asyncio.fixture(loop_scope="session")
async def kubelet(node: Node) -> AsyncIterator[Kubelet]:
    """Return a driver; its pods do not outlive the test."""
    made = await kubelet_of(node)
    yield made
    await made.kill(POD)
    await made.collect([])


@pytest.mark.parametrize("name", EXPECTATIONS)
async def test_what_critest_expects(node: Node, name: str) -> None:
    found = await expectations.check(node, name)
    VERDICTS.append(found)
    assert found.ok, found.detail


async def test_the_verdicts(node: Node) -> None:
    print(expectations.to_table(VERDICTS))
    assert len(VERDICTS) == len(EXPECTATIONS)
    await nothing_is_left(node)


def acts(kubelet: Kubelet) -> list[str]:
    """Return the calls so far that change something."""
    asks = ("List", "PodSandboxStatus", "ImageStatus")
    found = [call.partition(" ")[0] for call in kubelet.calls if not call.startswith(asks)]
    kubelet.calls.clear()
    return found


async def test_a_pod_whose_sandbox_dies_gets_another_one(node: Node, kubelet: Kubelet) -> None:
    assert "containerd" in await kubelet.wait_ready()
    first = await kubelet.sync(POD)
    acts(kubelet)
    pid, _ = await node.cri.sandbox_process(first.sandbox)
    await node.shell(f"kill -9 {pid}")
    async with asyncio.timeout(120):
        while (await kubelet.status(POD)).sandbox:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.2)
    acts(kubelet)
    second = await kubelet.sync(POD)
    calls = acts(kubelet)
    assert calls[calls.index("StopPodSandbox") :] == [
        "StopPodSandbox", "RunPodSandbox", "CreateContainer", "StartContainer",
    ]  # fmt: skip
    assert (second.attempt, second.running) == (1, True)
    # The host port is the new attempt's; the old one holds nothing any more.
    assert set(await attachments(node)) == {second.sandbox}
    await from_node(node, "web", [node.ipv4], HOST_PORT)
    await kubelet.collect([POD])
    assert acts(kubelet) == ["RemoveContainer", "StopPodSandbox", "RemovePodSandbox"]
    assert set(await node.cri.sandboxes()) == {second.sandbox}


async def test_a_changed_pod_keeps_its_host_port(node: Node, kubelet: Kubelet) -> None:
    pod = replace(POD, given_uid="web-1")
    changed = replace(pod, annotations={"example.com/changed": "yes"})
    try:
        await kubelet.sync(pod)
        acts(kubelet)
        second = await kubelet.sync(changed)
        assert acts(kubelet) == [
            "StopContainer", "StopPodSandbox", "RunPodSandbox", "CreateContainer", "StartContainer",
        ]  # fmt: skip
        assert second.attempt == 1
        await from_node(node, "web", [node.ipv4], HOST_PORT)
    finally:
        await kubelet.kill(changed)
        await kubelet.collect([])
    await nothing_is_left(node)


async def test_containerd_restarts(node: Node, kubelet: Kubelet) -> None:
    """Pods go on; one whose sandbox died meanwhile gets another one."""
    other = server("other")
    first = await kubelet.sync(POD)
    lost = await kubelet.sync(other)
    pid, _ = await node.cri.sandbox_process(lost.sandbox)
    await node.shell("sv -w 60 stop /run/sv/containerd")
    try:
        await node.shell(f"kill -9 {pid}")
    finally:
        await node.shell("sv -w 60 start /run/sv/containerd")
    # A kubelet that has just started, too: it knows what the runtime does.
    again = await kubelet_of(node)
    await again.wait_ready()
    assert acts(again)[-2:] == ["Version", "Status"]
    same = await again.sync(POD)
    assert (same.sandbox, same.running, acts(again)) == (first.sandbox, True, [])
    found = await again.sync(other)
    assert (found.attempt, found.running) == (1, True)
    await from_node(node, "other", found.ips, expectations.PORT)
    await from_node(node, "web", [node.ipv4], HOST_PORT)
    await again.kill(other)
    await again.collect([POD])
    assert set(await attachments(node)) == {first.sandbox}


async def test_a_pod_is_deleted_while_node_core_is_down(node: Node, kubelet: Kubelet) -> None:
    """Stop and Remove need no network service; a new pod waits for it."""
    await kubelet.sync(POD)
    await node.shell("sv -w 60 stop /run/sv/node-core")
    try:
        acts(kubelet)
        await kubelet.kill(POD)
        await kubelet.kill(POD)
        assert acts(kubelet) == ["StopContainer", "StopPodSandbox", "StopPodSandbox"]
        await kubelet.collect([])
        assert acts(kubelet) == ["RemoveContainer", "StopPodSandbox", "RemovePodSandbox"]
        assert await node.cri.sandboxes() == {}
        with pytest.raises(KubeletError, match="NetworkReady"):
            await kubelet.wait_ready(2)
        with pytest.raises(CriError, match="RunPodSandbox"):
            await kubelet.sync(POD)
        await kubelet.collect([])
        assert await node.cri.sandboxes() == {}
    finally:
        await node.shell("sv -w 60 start /run/sv/node-core")
    await node.wait_ready()
    await kubelet.wait_ready()
    async with asyncio.timeout(60):
        while await attachments(node):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.1)
    # The address and the host port are free.
    found = await kubelet.sync(POD)
    assert found.running
    await from_node(node, "web", [node.ipv4], HOST_PORT)
    await kubelet.kill(POD)
    await kubelet.collect([])
    assert (await kernel(node)).links == ()


async def test_images_of_the_node(node: Node, kubelet: Kubelet) -> None:
    await kubelet.check_images([POD])
    pod = replace(POD, containers=(Container("a", "docker.io/library/nginx"),))
    with pytest.raises(KubeletError) as caught:
        await kubelet.check_images([pod])
    assert "nginx (of default/web a) is not on the node" in str(caught.value)
    assert "localhost/busybox:latest" in str(caught.value)


async def test_the_example_is_launched(node: Node, kubelet: Kubelet) -> None:
    """As `launch -- --pod` does it, on this node."""
    pods = own_pods.read([EXAMPLE], 20)
    try:
        report, found = await own_pods.examine(node, kubelet, pods, Configuration())
        print(own_pods.to_table(report, found))
        assert report.ok, report.checks
        assert [one.status.running for one in found] == [True, True]
        (url, url6) = own_pods.urls(node, found)
        assert url == f"http://{node.ipv4}:18080/"
        for one in (url, url6):
            body = await outside.operation({"op": "fetch", "url": one}, lambda text: None)
            assert body == "this is web\n"
        # Both containers have one network.
        watcher = dict(found[0].status.containers)["watcher"]
        done = await node.cri.exec(watcher, ["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"])
        assert done.stdout == "this is web\n"
    finally:
        for pod in pods:
            await kubelet.kill(pod)
        await kubelet.collect([])
    await nothing_is_left(node)
