# SPDX-License-Identifier: Apache-2.0
"""A kubelet for a node in a machine: its files, its resolv.conf."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from metropolis.test.kubelet import configs
from metropolis.test.kubelet.kubelet import Kubelet
from metropolis.test.launch.node import Node
from osbase.test.agent.client import Agent

_PORT_FORWARD = Path(__file__).with_name("port_forward.py")


class NodeFiles:
    """Files of a node, through its agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def make(self, directory: PurePosixPath) -> None:
        """See Files."""
        await self._agent.run(["mkdir", "-p", str(directory)])

    async def write(self, path: PurePosixPath, text: str) -> None:
        """See Files."""
        await self._agent.write_file(str(path), text.encode())

    async def remove(self, directory: PurePosixPath) -> None:
        """See Files."""
        await self._agent.run(["rm", "-rf", str(directory)])


async def kubelet_of(node: Node) -> Kubelet:
    """Return a kubelet of the node. Raises AgentError."""
    text = (await node.agent.run(["cat", "/etc/resolv.conf"], check=False)).text
    return Kubelet(node.cri, NodeFiles(node.agent), configs.parse_resolv_conf(text))


async def forwarded(node: Node, sandbox: str, port: int, request: bytes) -> str:
    """Return what a pod's port answers through PortForward.

    Raises CriError and AgentError, with what the stream server said.
    """
    url = await node.cri.port_forward(sandbox, [port])
    # -I -S: it needs no packages of the node, and so starts sooner.
    python = ["python3", "-I", "-S", "-c", _PORT_FORWARD.read_text(), url, str(port)]
    done = await node.agent.run(python, stdin=request)
    return done.stdout.decode(errors="replace")
