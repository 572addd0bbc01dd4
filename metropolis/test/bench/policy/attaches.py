# SPDX-License-Identifier: Apache-2.0
"""Attach by gRPC, beside others: without policies, and with them.

Two services, each in a namespace of its own, one with policies. Each sample has
one attach of each kind, so that all meet the same disturbances.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import grpc

from metropolis.node.core.network.workloads.api import identity as identities
from metropolis.node.core.network.workloads.model import Identity
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.spec import workload_pb2_grpc as rpc
from metropolis.test.bench.attach.processes import Program
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.terminal import say
from metropolis.test.bench.policy import synthetic
from metropolis.test.bench.policy.report import Figure, figure
from metropolis.test.world.namespaces import Netns

_PREFIXES: Final = ("10.192.0.0/16", "fd00:10:192::/112")
_DEADLINE_S: Final = 60.0
_MODULE: Final = "metropolis.test.bench.policy.node"
PLAIN, POLICED = "no policies", "policies"


class Service:
    """A service in a namespace of its own."""

    def __init__(self, stack: ExitStack, directory: Path, name: str, policies: int) -> None:
        netns = Netns()
        stack.callback(netns.close)
        own = directory / name.replace(" ", "-")
        own.mkdir()
        arguments = [str(own), str(policies), *_PREFIXES]
        program = Program(_MODULE, netns, arguments, own / "log")
        stack.callback(program.close)
        program.ready()
        channel = grpc.insecure_channel(f"unix:{own}/workload.sock")
        stack.callback(channel.close)
        self._stub: Any = rpc.WorkloadNetworkingStub(channel)

    def attach(self, name: str, path: str, what: Identity | None) -> float:
        """Attach; return the milliseconds. Raises BenchError."""
        netns = pb.NetNSAttachment(netns_path=path, if_name="eth0")
        identity = None if what is None else identities.message_of(what)
        request = pb.AttachRequest(workload_id=name, netns=netns, identity=identity)
        began = time.perf_counter()
        try:
            self._stub.Attach(request, timeout=_DEADLINE_S)
        except grpc.RpcError as error:
            raise BenchError(f"attach {name}: {error}") from error
        return (time.perf_counter() - began) * 1e3

    def detach(self, name: str, path: str) -> None:
        """Detach. Raises BenchError."""
        netns = pb.NetNSAttachment(netns_path=path, if_name="eth0")
        try:
            self._stub.Detach(pb.DetachRequest(workload_id=name, netns=netns), timeout=_DEADLINE_S)
        except grpc.RpcError as error:
            raise BenchError(f"detach {name}: {error}") from error


def measure(directory: Path, policies: int, attached: int, samples: int) -> list[Figure]:
    """Measure at no attachments, and at so many."""
    apps = min(policies, synthetic.APPS)
    found = []
    with ExitStack() as stack:
        services = {
            PLAIN: Service(stack, directory, PLAIN, 0),
            POLICED: Service(stack, directory, POLICED, policies),
        }
        found += _at(services, 0, apps, samples)
        for number in range(attached):
            if number % 50 == 0:
                say(f"policy: attach {number:,} of {attached:,}")
            for one in services.values():
                netns = Netns()
                stack.callback(netns.close)
                one.attach(f"w{number}", netns.path, synthetic.identity(number, apps))
        found += _at(services, attached, apps, samples)
    return found


def _at(services: dict[str, Service], attached: int, apps: int, samples: int) -> list[Figure]:
    say(f"policy: attaches by gRPC beside {attached:,}")
    known = synthetic.identity(0, apps)
    kinds: dict[str, tuple[Service, Identity | None]] = {
        "no policies": (services[PLAIN], None),
        "no policies, labels": (services[PLAIN], known),
        "no labels": (services[POLICED], None),
        "known labels": (services[POLICED], known),
        "new labels": (services[POLICED], Identity(known.namespace, {"app": "none"})),
    }
    with ExitStack() as stack:
        # Each class but the last has one, so that it is known.
        for number, (service, what) in enumerate(list(kinds.values())[:-1]):
            netns = Netns()
            stack.callback(netns.close)
            service.attach(f"first-{number}", netns.path, what)
            stack.callback(service.detach, f"first-{number}", netns.path)
        # A pod each: a detach is answered before the link is gone.
        pods = {name: Netns() for name in kinds}
        for pod in pods.values():
            stack.callback(pod.close)
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(samples):
            for name, (service, what) in kinds.items():
                times[name].append(service.attach(name, pods[name].path, what))
                service.detach(name, pods[name].path)
    part = f"grpc, {attached:,} attached"
    base = figure(part, "no policies", "ms", times["no policies"])
    return [figure(part, name, "ms", some, base) for name, some in times.items()]
