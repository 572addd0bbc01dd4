# SPDX-License-Identifier: Apache-2.0
"""The RPCs of network policies; the server of the workload network API serves
them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

from metropolis.node.core.network.policy import messages, wire
from metropolis.node.core.network.policy.attachments import Member, name_of
from metropolis.node.core.network.policy.evaluate import Evaluator
from metropolis.node.core.network.policy.manager import Manager, State
from metropolis.node.core.network.policy.model import Protocol, Verdict
from metropolis.node.core.network.policy.spec import policy_pb2 as pb
from metropolis.node.core.network.workloads.api import identity as identities
from metropolis.node.core.network.workloads.api.server import More
from metropolis.node.core.network.workloads.api.wire import decode
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import Identity, IPAddress
from metropolis.node.core.network.workloads.validate import check_if_name, check_workload_id
from osbase.rpc.call import Call
from osbase.rpc.stream import Stream

SERVICE: Final = pb.DESCRIPTOR.services_by_name["NetworkPolicies"]


class Methods:
    """The methods; requests and responses are bytes."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._stopping = False

    def more(self) -> More:
        """Return them for the server, by name."""
        prefix = f"/{SERVICE.full_name}/"
        return More(
            blocking={
                f"{prefix}SetPolicies": self.set_policies,
                f"{prefix}SetLabels": self.set_labels,
                f"{prefix}GetPolicies": self.get_policies,
                f"{prefix}Explain": self.explain,
            },
            streams={f"{prefix}WatchPolicies": self.watch_policies},
            stop=self.stop,
        )

    def set_policies(self, data: bytes, _: Call) -> bytes:
        """SetPolicies."""
        self._manager.set_policies(wire.source_of(decode(pb.SetPoliciesRequest, data)))
        return pb.SetPoliciesResponse().SerializeToString()

    def set_labels(self, data: bytes, _: Call) -> bytes:
        """SetLabels."""
        request = decode(pb.SetLabelsRequest, data)
        check_workload_id(request.workload_id)
        if request.HasField("identity"):
            identity = identities.identity(request.identity)
        else:
            identity = Identity(known=False)
        self._manager.set_labels(request.workload_id, identity)
        return pb.SetLabelsResponse().SerializeToString()

    def get_policies(self, data: bytes, _: Call) -> bytes:
        """GetPolicies."""
        decode(pb.GetPoliciesRequest, data)
        return _response(self._manager.state()).SerializeToString()

    def watch_policies(self, data: bytes, stream: Stream) -> Generator[bytes]:
        """WatchPolicies. Its thread waits for changes."""
        decode(pb.GetPoliciesRequest, data)
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True
            self._manager.wake()

        if stream.on_end(end):
            for state in self._manager.states(lambda: not (ended or self._stopping)):
                yield _response(state).SerializeToString()

    def stop(self) -> None:
        """End present and later watches."""
        self._stopping = True
        self._manager.wake()

    def explain(self, data: bytes, _: Call) -> bytes:
        """Explain."""
        request = decode(pb.ExplainRequest, data)
        protocol = wire.protocol(request.protocol)
        if (protocol is not None) is not (1 <= request.port <= 0xFFFF):
            text = f"port {request.port}: must be 1 to 65535 with a protocol, and 0 without"
            raise InvalidArgument(text, field="port")
        source, destination = (
            self._end("source", request.source),
            self._end("destination", request.destination),
        )
        evaluator = self._manager.evaluator()
        answers = [
            messages.explained(version, verdict)
            for version in (4, 6)
            if (
                verdict := _verdict(evaluator, source, destination, protocol, request.port, version)
            )
        ]
        if not answers:
            text = "source, destination: have no IP version in common"
            raise InvalidArgument(text, field="destination")
        return pb.ExplainResponse(explained=answers).SerializeToString()

    def _end(self, path: str, end: pb.End) -> Member | IPAddress:
        match end.WhichOneof("kind"):
            case "ip":
                return wire.address(f"{path}.ip", end.ip)
            case "workload_id":
                check_workload_id(end.workload_id)
                if end.if_name:
                    check_if_name(end.if_name)
                found = self._manager.ends(end.workload_id, end.if_name)
                return _only(path, found)
            case _:
                raise InvalidArgument(f"{path}: has neither workload_id nor ip", field=path)


def _only(path: str, found: Sequence[Member]) -> Member:
    if len(found) > 1:
        names = ", ".join(one.key[1] for one in found)
        text = f"{path}.if_name: is empty, and the workload has {names}"
        raise InvalidArgument(text, field=f"{path}.if_name")
    return found[0]


def _verdict(
    evaluator: Evaluator,
    source: Member | IPAddress,
    destination: Member | IPAddress,
    protocol: Protocol | None,
    port: int,
    version: int,
) -> Verdict | None:
    """Return the verdict; None: one of them has no such address."""
    for end in (source, destination):
        versions = [ip.version for ip in end.ips] if isinstance(end, Member) else [end.version]
        if version not in versions:
            return None
    ends = [name_of(one.key) if isinstance(one, Member) else one for one in (source, destination)]
    return evaluator.verdict(ends[0], ends[1], protocol, port, version=version)


def _response(state: State) -> pb.GetPoliciesResponse:
    tables = state.tables
    return pb.GetPoliciesResponse(
        sources=[
            pb.GetPoliciesResponse.Source(
                name=one.name,
                generation=one.generation,
                namespaces=messages.namespaces(one.namespaces),
            )
            for one in state.sources
        ],
        policies=[
            pb.GetPoliciesResponse.State(
                source=source.name, policy=messages.policy(policy), error=policy.error
            )
            for source, policy in state.policies
        ],
        identities=len(set(tables.identities.values())),
        pairs=len(tables.pairs) + len(tables.pair_ports),
        world_ranges=len(tables.world_egress) + len(tables.world_ingress),
        unknown=state.unknown,
    )
