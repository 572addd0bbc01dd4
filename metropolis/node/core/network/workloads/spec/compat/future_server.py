# SPDX-License-Identifier: Apache-2.0
"""A service built from future.proto: every answer has fields beyond the base.

    future_server SOCKET

It attaches nothing. An Attach answers with two addresses, and INVALID_ARGUMENT
when the base fields or their absence were not as they must be. Writes `ready`
when it serves; ends when standard input does.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import grpc

from metropolis.node.core.network.workloads.spec.compat import future_pb2 as pb
from metropolis.node.core.network.workloads.spec.compat import future_pb2_grpc as rpc

IPS = ("10.192.0.9", "fd00:10:192::9")


class Servicer(rpc.WorkloadNetworkingServicer):
    """Answers."""

    def Attach(  # noqa: N802
        self, request: pb.AttachRequest, context: grpc.ServicerContext
    ) -> pb.AttachResponse:
        """Two addresses, and all of the new fields."""
        netns = pb.NetNSAttachment(netns_path="/run/netns/a", if_name="eth0")
        if request != pb.AttachRequest(workload_id="web-1", netns=netns):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(request))
        return pb.AttachResponse(
            ip=[ip_address(ip).packed for ip in IPS],
            note="n",
            colour=1,
            weight=1.5,
            second=netns,
            offsets=[-1, 1],
            last=b"\xff",
        )

    def Detach(  # noqa: N802
        self, request: pb.DetachRequest, context: grpc.ServicerContext
    ) -> pb.DetachResponse:
        """What was released, which the base does not tell."""
        if request != pb.DetachRequest(workload_id="web-1"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(request))
        return pb.DetachResponse(released_ip=[b"\xff\xfe"], count=2)

    def Status(  # noqa: N802
        self, request: pb.StatusRequest, context: grpc.ServicerContext
    ) -> pb.StatusResponse:
        """Version and capacities, which the base does not tell."""
        if request != pb.StatusRequest():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(request))
        return pb.StatusResponse(version="9", stamp=1, capacities=[1, 2])

    def Rename(  # noqa: N802
        self, request: pb.DetachRequest, context: grpc.ServicerContext
    ) -> pb.DetachResponse:
        """Nobody calls it here."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Rename")


def main() -> None:
    """Serve until standard input ends."""
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_WorkloadNetworkingServicer_to_server(Servicer(), server)
    server.add_insecure_port(f"unix:{sys.argv[1]}")
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
