# SPDX-License-Identifier: Apache-2.0
"""A pod with host ports, whichever way containerd asks for its network."""

import asyncio
import contextlib

import pytest

from metropolis.test.e2e.observe import attachments, nothing_is_left
from metropolis.test.launch import checks
from metropolis.test.launch.cri import CriError, sandbox_config
from metropolis.test.launch.node import Node
from third_party.cri import api_pb2 as api

_HOST_PORT = 18080


async def check_host_ports(node: Node) -> None:
    """Raise AssertionError unless a pod's ports are reached at the node, are
    refused to a second pod, and are free when the pod is removed.
    """
    web = api.PortMapping(protocol=api.TCP, host_port=_HOST_PORT, container_port=checks.PORT)
    declared = api.PortMapping(protocol=api.UDP, container_port=53)
    client, server = await asyncio.gather(
        node.cri.run_pod("client", checks.pod_command("client")),
        node.cri.run_pod("server", checks.pod_command("server"), ports=[web, declared]),
    )
    try:
        for address in (str(node.ipv4), f"[{node.ipv6}]"):
            url = f"http://{address}:{_HOST_PORT}/name"
            done = await node.cri.exec(client.container, ["wget", "-q", "-O", "-", url])
            assert done.stdout == "server\n", done
        with pytest.raises(CriError, match=f"tcp port {_HOST_PORT}") as caught:
            await node.cri.run_sandbox(sandbox_config("second", ports=[web]))
        assert server.id in str(caught.value)
        assert set(await attachments(node)) == {client.id, server.id}
        await node.cri.remove_pod(server.id)
        second = await node.cri.run_sandbox(sandbox_config("second", ports=[web]))
        await node.cri.remove_pod(second)
    finally:
        with contextlib.suppress(CriError):
            await asyncio.gather(*(node.cri.remove_pod(pod.id) for pod in (client, server)))
    await nothing_is_left(node)
