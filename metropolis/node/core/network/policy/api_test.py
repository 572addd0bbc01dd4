# SPDX-License-Identifier: Apache-2.0
"""The RPCs of policies: what they answer, and what they refuse, by its path."""

from __future__ import annotations

import threading
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest

from metropolis.node.core.network.policy.api import Methods
from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.policy.spec import policy_pb2 as pb
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.policy.testing.fake import FakeKernel
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import InvalidArgument, WorkloadError
from metropolis.node.core.network.workloads.model import Identity
from metropolis.node.core.network.workloads.spec import workload_pb2
from osbase.rpc.call import Call
from osbase.rpc.stream import Stream

WAIT_S = 10.0
WEB = Identity("shop", {"app": "web"})
Code = grpc.StatusCode


class NoCall(Call):
    """A call without a deadline."""

    def time_remaining(self) -> float:
        return WAIT_S


class Watch(Stream):
    """A caller of WatchPolicies."""

    def __init__(self, *, gone: bool = False) -> None:
        self._gone = gone
        self.end: Callable[[], None] = lambda: None

    def on_end(self, callback: Callable[[], None]) -> bool:
        self.end = callback
        return not self._gone


class Node:
    """w1 has two interfaces, the second by IPv4 alone; w2 has one by IPv6."""

    def __init__(self, directory: Path) -> None:
        self.kernel = FakeKernel()
        self.manager = Manager(self.kernel, Store(directory), Conditions())
        self.manager.adopt([])
        self.methods = Methods(self.manager)
        for number, (workload_id, if_name, ips) in enumerate(
            (
                ("w1", "eth0", ("10.0.0.1", "fd00::1")),
                ("w1", "net1", ("10.0.0.2",)),
                ("w2", "eth0", ("fd00::3",)),
            )
        ):
            self.manager.admit(
                Record(
                    workload_id, if_name, 1, f"wl{number}", number + 1, 2, b"\2" + bytes(5), 1500,
                    tuple(map(ip_address, ips)), b"",
                ),
                WEB,
            )  # fmt: skip

    def call(self, method: str, request: Any) -> bytes:
        prefix = f"/{pb.DESCRIPTOR.services_by_name['NetworkPolicies'].full_name}/"
        return self.methods.more().blocking[prefix + method](request.SerializeToString(), NoCall())

    def explain(self, **fields: Any) -> list[pb.Explained]:
        data = self.call("Explain", pb.ExplainRequest(**fields))
        return list(pb.ExplainResponse.FromString(data).explained)

    def get(self) -> pb.GetPoliciesResponse:
        return pb.GetPoliciesResponse.FromString(self.call("GetPolicies", pb.GetPoliciesRequest()))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "policy")


def deny(name: str = "shop/deny") -> pb.Policy:
    return pb.Policy(name=name, tier=pb.Policy.NAMESPACE, isolates_ingress=True)


def end(workload_id: str = "", if_name: str = "", ip: str = "") -> pb.End:
    if ip:
        return pb.End(ip=ip_address(ip).packed)
    return pb.End(workload_id=workload_id, if_name=if_name)


def identity(**fields: Any) -> workload_pb2.Identity:
    return workload_pb2.Identity(**fields)


PORT: dict[str, Any] = {"protocol": pb.TCP, "port": 80}
ETH0, W2 = end("w1", "eth0"), end("w2")
REFUSED: dict[str, tuple[str, Any, Code, str]] = {
    "two policies of a name": (
        "SetPolicies", pb.SetPoliciesRequest(policies=[deny(), deny()]),
        Code.INVALID_ARGUMENT, "policies[1].name",
    ),
    "a source's name": (
        "SetPolicies", pb.SetPoliciesRequest(source="../x"), Code.INVALID_ARGUMENT, "source",
    ),
    "an old generation": (
        "SetPolicies", pb.SetPoliciesRequest(generation=4), Code.FAILED_PRECONDITION, "",
    ),
    "labels without a namespace": (
        "SetLabels",
        pb.SetLabelsRequest(workload_id="w1", identity=identity(labels={"app": "web"})),
        Code.INVALID_ARGUMENT, "identity.namespace",
    ),
    "labels of no workload": (
        "SetLabels", pb.SetLabelsRequest(), Code.INVALID_ARGUMENT, "workload_id",
    ),
    "labels of an unknown workload": (
        "SetLabels", pb.SetLabelsRequest(workload_id="w9"), Code.NOT_FOUND, "",
    ),
    "no source": (
        "Explain", pb.ExplainRequest(destination=W2, **PORT), Code.INVALID_ARGUMENT, "source",
    ),
    "no destination": (
        "Explain", pb.ExplainRequest(source=W2, **PORT), Code.INVALID_ARGUMENT, "destination",
    ),
    "one of two interfaces": (
        "Explain", pb.ExplainRequest(source=end("w1"), destination=W2, **PORT),
        Code.INVALID_ARGUMENT, "source.if_name",
    ),
    "one of two interfaces of the destination": (
        "Explain", pb.ExplainRequest(source=W2, destination=end("w1"), **PORT),
        Code.INVALID_ARGUMENT, "destination.if_name",
    ),
    "an interface that is not there": (
        "Explain", pb.ExplainRequest(source=end("w1", "net7"), destination=W2, **PORT),
        Code.NOT_FOUND, "",
    ),
    "no IP version in common": (
        "Explain", pb.ExplainRequest(source=end("w1", "net1"), destination=W2, **PORT),
        Code.INVALID_ARGUMENT, "destination",
    ),
    "an address of three bytes": (
        "Explain", pb.ExplainRequest(source=pb.End(ip=b"abc"), destination=W2, **PORT),
        Code.INVALID_ARGUMENT, "source.ip",
    ),
    "a protocol without a port": (
        "Explain", pb.ExplainRequest(source=ETH0, destination=W2, protocol=pb.TCP),
        Code.INVALID_ARGUMENT, "port",
    ),
    "a port without a protocol": (
        "Explain", pb.ExplainRequest(source=ETH0, destination=W2, port=80),
        Code.INVALID_ARGUMENT, "port",
    ),
    "a port beyond the last": (
        "Explain", pb.ExplainRequest(source=ETH0, destination=W2, protocol=pb.TCP, port=65536),
        Code.INVALID_ARGUMENT, "port",
    ),
    "an unknown protocol": (
        "Explain", pb.ExplainRequest(source=ETH0, destination=W2, protocol=77, port=80),  # type: ignore[arg-type]
        Code.INVALID_ARGUMENT, "protocol",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing(node: Node, name: str) -> None:
    method, request, code, path = REFUSED[name]
    node.call("SetPolicies", pb.SetPoliciesRequest(generation=5, policies=[deny()]))
    before = node.get()
    with pytest.raises(WorkloadError) as refused:
        node.call(method, request)
    assert refused.value.code.name == code.name
    assert getattr(refused.value, "field", "") == path
    assert node.get() == before


@pytest.mark.parametrize("method", ["SetPolicies", "SetLabels", "GetPolicies", "Explain"])
def test_what_is_no_message(node: Node, method: str) -> None:
    prefix = f"/{pb.DESCRIPTOR.services_by_name['NetworkPolicies'].full_name}/"
    with pytest.raises(InvalidArgument):
        node.methods.more().blocking[prefix + method](b"\xff\xff", NoCall())


def test_what_was_set_is_returned(node: Node) -> None:
    labels = pb.Namespace(name="shop", labels={"team": "a"})
    request = pb.SetPoliciesRequest(generation=5, policies=[deny()], namespaces=[labels])
    node.call("SetPolicies", request)
    node.call("SetPolicies", pb.SetPoliciesRequest(source="files", policies=[deny()]))
    found = node.get()
    assert [(one.name, one.generation) for one in found.sources] == [("api", 5), ("files", 0)]
    assert list(found.sources[0].namespaces) == [labels]
    first, second = found.policies
    assert (first.source, first.policy.name, first.error) == ("api", "shop/deny", "")
    assert (first.policy.isolates_ingress, first.policy.isolates_egress) == (True, False)
    assert (second.source, second.policy.name) == ("files", "shop/deny of files")
    assert "api" in second.error
    assert (found.identities, list(found.unknown)) == (1, [])


def test_labels_are_unknown_without_an_identity(node: Node) -> None:
    node.call("SetLabels", pb.SetLabelsRequest(workload_id="w2"))
    assert list(node.get().unknown) == ["w2"]
    said = pb.SetLabelsRequest(workload_id="w2", identity=identity())
    node.call("SetLabels", said)
    assert list(node.get().unknown) == []


def test_explain_answers_for_each_ip_version(node: Node) -> None:
    node.call("SetPolicies", pb.SetPoliciesRequest(policies=[deny()]))
    world = end(ip="192.0.2.1")
    for source, destination, versions in (
        (ETH0, end("w1", "net1"), [4]),
        (ETH0, W2, [6]),
        (ETH0, ETH0, [4, 6]),
        (world, end("w1", "net1"), [4]),
        (end(ip="fd00::1"), W2, [6]),
    ):
        found = node.explain(source=source, destination=destination, **PORT)
        assert [one.ip_version for one in found] == versions
        # A workload reaches itself, by the same interface.
        itself = source == destination
        assert {one.allowed for one in found} == {itself}
        if not itself:
            assert {(one.policy, one.direction, one.rule) for one in found} == {
                ("shop/deny", "Ingress", 0)
            }
            assert all(one.reason for one in found)
    (out,) = node.explain(source=end("w1", "net1"), destination=world, **PORT)
    assert out.allowed
    (bare,) = node.explain(source=W2, destination=end(ip="2001:db8::1"))
    assert bare.allowed


def test_a_watch_gets_the_latest_state_and_ends(node: Node) -> None:
    """By the end of its call, or of the service; or it never begins."""
    assert list(node.methods.watch_policies(b"", Watch(gone=True))) == []
    watch = Watch()
    states = node.methods.watch_policies(b"", watch)

    def following() -> pb.GetPoliciesResponse:
        return pb.GetPoliciesResponse.FromString(next(states))

    assert len(following().policies) == 0
    for number in (1, 2, 3):
        policies = [deny(f"shop/{one}") for one in range(number)]
        node.call("SetPolicies", pb.SetPoliciesRequest(generation=number, policies=policies))
    latest = following()
    assert (len(latest.policies), latest.sources[0].generation) == (3, 3)
    others = node.methods.watch_policies(b"", Watch())
    next(others)
    rest: list[bytes] = []
    threads = [threading.Thread(target=rest.extend, args=(one,)) for one in (states, others)]
    for thread in threads:
        thread.start()
    watch.end()
    threads[0].join(WAIT_S)
    assert not threads[0].is_alive()
    assert threads[1].is_alive()
    node.methods.stop()
    threads[1].join(WAIT_S)
    assert not threads[1].is_alive()
    assert rest == []
    assert list(node.methods.watch_policies(b"", Watch())) == []
