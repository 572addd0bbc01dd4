# SPDX-License-Identifier: Apache-2.0
"""A server of the API in the process of its tests, and a gate for attaches."""

import os
import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import grpc
import pytest

from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.testing.lab import Pod
from metropolis.node.core.network.workloads.testing.served import Client
from osbase.netlink.message import Request
from osbase.netlink.template import Encoded
from osbase.netlink.transport import NetlinkSocket
from osbase.rpc import choose

SERVICE = "/metropolis.node.core.network.workloads.WorkloadNetworking/"
Code = grpc.StatusCode
WAIT_S = 20.0
# A server of osbase.rpc: all of them pass the same tests.
IMPLEMENTATION = os.environ.get("RPC_SERVER", choose.AUTO)


class World:
    """A server in this process, a client, and one pod."""

    def __init__(self, directory: Path, workers: int = 16, event_buffer: int = 1 << 20) -> None:
        self.path = directory / "run" / "workload.sock"
        self.engine = Engine(KernelDatapath(event_buffer=event_buffer))
        self.engine.set_prefixes([ip_network("10.192.0.0/29"), ip_network("fd00:10:192::/112")])
        self.engine.start()
        self.server = WorkloadServer(
            self.engine, self.path, workers=workers, implementation=IMPLEMENTATION
        )
        self.server.start()
        self.client = Client(self.path)
        self.pod = Pod()

    def close(self) -> None:
        for one in self.engine.list():
            self.engine.detach(one.workload_id)
        self.client.close()
        self.server.stop()
        self.engine.close()
        self.pod.close()

    def refused(self, method: str, data: bytes) -> tuple[grpc.StatusCode, str]:
        """Send raw bytes; the status of the refusal."""
        call: Any = self.client.channel.unary_unary(SERVICE + method)
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=10)
        code, details = caught.value.code(), caught.value.details()
        assert details is not None
        assert "Traceback" not in details
        return code, details


class Gate:
    """Attaches stop at it with all but the last of their work done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived, self.opened = threading.Semaphore(0), threading.Event()
        real = NetlinkSocket.batch_encoded

        def batch_encoded(
            sock: NetlinkSocket, batch: Encoded, requests: Callable[[], Sequence[Request]]
        ) -> None:
            if "set alias" in requests()[0].what:
                self.arrived.release()
                assert self.opened.wait(WAIT_S)
            real(sock, batch, requests)

        monkeypatch.setattr(NetlinkSocket, "batch_encoded", batch_encoded)

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.arrived.acquire(timeout=WAIT_S)


def attach_bytes(path: str, workload_id: str = "w1", if_name: str = "eth0") -> bytes:
    netns = pb.NetNSAttachment(netns_path=path, if_name=if_name)
    return pb.AttachRequest(workload_id=workload_id, netns=netns).SerializeToString()
