# SPDX-License-Identifier: Apache-2.0
"""A client of the gRPC API, in Python with grpcio's C core.

    client NAME=SOCKET...

One process serves all measured services; a command names one.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc

from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.spec import workload_pb2_grpc as rpc
from metropolis.test.bench.attach.commands import answer_commands
from metropolis.test.bench.attach.model import Op, Pod, host_ports
from metropolis.test.bench.attach.timing import Call
from metropolis.test.bench.common.errors import BenchError

_DEADLINE_S = 60.0


class Client:
    """commands.Work."""

    def __init__(self, sockets: dict[str, str]) -> None:
        self._stubs: dict[str, Any] = {}
        for name, path in sockets.items():
            channel = grpc.insecure_channel(f"unix:{path}")
            grpc.channel_ready_future(channel).result(_DEADLINE_S)
            self._stubs[name] = rpc.WorkloadNetworkingStub(channel)

    def prepare(self, op: Op, pods: Sequence[Pod], extra: dict[str, Any]) -> list[Call]:
        """See Work. extra: the service, its addresses and ports of a pod."""
        stub = self._stubs[extra["service"]]
        calls: list[Call] = []
        for pod in pods:
            netns = pb.NetNSAttachment(netns_path=pod.path, if_name="eth0")
            mapped = [
                pb.PortMapping(host_port=port, container_port=own)
                for port, own in host_ports(pod, extra["ports"])
            ]
            request = pb.AttachRequest(workload_id=pod.workload, netns=netns, port_mapping=mapped)
            goodbye = pb.DetachRequest(workload_id=pod.workload, netns=netns)
            add = partial(_attach, stub, request, extra["addresses"])
            remove = partial(stub.Detach, goodbye, timeout=_DEADLINE_S)
            calls.append({Op.ADD: add, Op.DEL: remove, Op.CYCLE: partial(_both, add, remove)}[op])
        return calls

    def done(self, op: Op, pods: Sequence[Pod]) -> None:
        """See Work."""


def _attach(stub: Any, request: pb.AttachRequest, addresses: int) -> None:
    answer = stub.Attach(request, timeout=_DEADLINE_S)
    if len(answer.ip) != addresses:
        raise BenchError(f"Attach gave {len(answer.ip)} addresses, not {addresses}")


def _both(add: Call, remove: Call) -> None:
    add()
    remove()


def main(arguments: list[str]) -> int:
    """See the module."""
    return answer_commands(Client(dict(argument.split("=", 1) for argument in arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
