# SPDX-License-Identifier: Apache-2.0
"""The service as a process of its own, and a client of it, for tests."""

import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc

from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.spec import workload_pb2_grpc as rpc
from metropolis.node.core.network.workloads.testing.lab import Pod

DEADLINE_S = 20.0
PREFIXES = ("10.192.0.0/24", "fd00:10:192::/112")


class Client:
    """Calls of the API with a deadline; addresses as text."""

    def __init__(self, socket_path: Path) -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket_path}")
        self.stub: Any = rpc.WorkloadNetworkingStub(self.channel)

    def attach(self, workload_id: str, pod: Pod, if_name: str = "eth0") -> pb.AttachResponse:
        """Attach."""
        answer: pb.AttachResponse = self.attach_later(workload_id, pod, if_name).result()
        return answer

    def attach_later(self, workload_id: str, pod: Pod, if_name: str = "eth0") -> Any:
        """Attach; return a future of gRPC."""
        netns = pb.NetNSAttachment(netns_path=pod.path, if_name=if_name)
        request = pb.AttachRequest(workload_id=workload_id, netns=netns)
        return self.stub.Attach.future(request, timeout=DEADLINE_S)

    def detach(self, workload_id: str, path: str = "", if_name: str = "") -> None:
        """Detach."""
        netns = pb.NetNSAttachment(netns_path=path, if_name=if_name)
        self.stub.Detach(pb.DetachRequest(workload_id=workload_id, netns=netns), timeout=DEADLINE_S)

    def check(self, workload_id: str, path: str = "") -> list[pb.CheckedAttachment]:
        """Check all interfaces."""
        netns = pb.NetNSAttachment(netns_path=path)
        request = pb.CheckRequest(workload_id=workload_id, netns=netns)
        return list(self.stub.Check(request, timeout=DEADLINE_S).attachments)

    def collect(self, *live: str, owner: str = "") -> set[str]:
        """Collect; return the removed workloads. None may remain."""
        request = pb.CollectRequest(live_workload_id=live, owner=owner)
        answer = self.stub.Collect(request, timeout=DEADLINE_S)
        assert not answer.remaining
        return {one.workload_id for one in answer.removed}

    def watch(self) -> Watch:
        """Watch from the first event on."""
        return Watch(self.stub.Watch(pb.WatchRequest(), timeout=DEADLINE_S))

    def host_ifindexes(self) -> dict[str, int]:
        """Return the indexes of the host's ends by workload."""
        found = self.stub.List(pb.ListRequest(), timeout=DEADLINE_S).attachments
        return {one.workload_id: one.host_ifindex for one in found}

    def list(self) -> dict[str, tuple[str, ...]]:
        """Return addresses by workload."""
        found = self.stub.List(pb.ListRequest(), timeout=DEADLINE_S).attachments
        return {one.workload_id: texts(one.ip) for one in found}

    def close(self) -> None:
        """End the connection."""
        self.channel.close()


class Watch:
    """A stream of events: each as kind and workload id."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def next(self, count: int = 1) -> list[tuple[str, str]]:
        """Return the next ones."""
        events = [next(self.call) for _ in range(count)]
        return [
            (pb.WatchEvent.Kind.Name(event.kind), event.attachment.workload_id) for event in events
        ]

    def end(self) -> tuple[int, grpc.StatusCode]:
        """Read to the end; return the number of events, and the status."""
        count = 0
        try:
            for _ in self.call:
                count += 1
        except grpc.RpcError as error:
            return count, error.code()
        return count, grpc.StatusCode.OK


def texts(packed: Sequence[bytes]) -> tuple[str, ...]:
    """Return addresses as text."""
    return tuple(str(ip_address(ip)) for ip in packed)


class Served:
    """A `serve` process in the caller's namespace, ready."""

    def __init__(self, socket_path: Path, prefixes: Sequence[str] = PREFIXES) -> None:
        module = "metropolis.node.core.network.workloads.api.serve"
        command = [sys.executable, "-m", module, "--socket", str(socket_path)]
        command += [f"--prefix={prefix}" for prefix in prefixes]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "ready\n":
            self.end()
            raise RuntimeError(f"serve said {line!r} and ended with {self.process.returncode}")
        self.client = Client(socket_path)

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self._close()

    def end(self) -> int:
        """Send SIGTERM; return the exit status."""
        self.process.terminate()
        return self._close()

    def _close(self) -> int:
        if hasattr(self, "client"):
            self.client.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(DEADLINE_S)
