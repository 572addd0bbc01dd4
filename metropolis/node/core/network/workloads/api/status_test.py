# SPDX-License-Identifier: Apache-2.0
"""Status, List and Check over gRPC, with an engine on the fake datapath."""

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import grpc
import pytest

from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath
from metropolis.node.core.network.workloads.testing.served import DEADLINE_S, Client


class World:
    """A server with a namespace `/0`, and its client."""

    def __init__(self, directory: Path) -> None:
        datapath = FakeDatapath()
        datapath.kernel.add_netns("/0")
        self.conditions = Conditions()
        self.engine = Engine(datapath, self.conditions)
        self.engine.set_prefixes([ip_network("10.0.0.0/16")])
        self.engine.start()
        self.server = WorkloadServer(self.engine, directory / "run" / "s")
        self.server.start()
        self.client = Client(directory / "run" / "s")

    def status(self) -> pb.StatusResponse:
        answer: pb.StatusResponse = self.client.stub.Status(pb.StatusRequest(), timeout=DEADLINE_S)
        return answer

    def why_not(self) -> str:
        with pytest.raises(grpc.RpcError) as refused:
            self.status()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        return str(refused.value.details())

    def close(self) -> None:
        self.client.close()
        self.server.stop(0)
        self.engine.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_status_has_the_notes(world: World) -> None:
    assert world.status() == pb.StatusResponse()
    world.conditions.note("uplink", "IPv4 is checked strictly on eth0")
    world.conditions.note("rules", "put back twice")
    found = {note.name: note.text for note in world.status().notes}
    assert found == {"uplink": "IPv4 is checked strictly on eth0", "rules": "put back twice"}
    world.conditions.note("rules", "")
    assert [note.name for note in world.status().notes] == ["uplink"]


def test_status_says_all_that_is_wrong(world: World) -> None:
    world.conditions.set("rules", "the rule set cannot be put back")
    assert world.why_not() == "the rule set cannot be put back"
    world.conditions.set("sysctls", "ip_forward is 0")
    world.engine.set_prefixes([])
    assert world.why_not() == (
        "the rule set cannot be put back; ip_forward is 0; "
        "the node has no address prefix for workloads yet"
    )
    world.conditions.clear("rules")
    world.conditions.clear("sysctls")
    assert "prefix" in world.why_not()
    world.engine.set_prefixes([ip_network("10.0.0.0/16")])
    world.status()


def test_problems_are_findings_of_a_check(world: World) -> None:
    world.engine.attach(AttachIntent("w", "/0", "eth0"))
    world.conditions.set("rules", "the rule set cannot be put back")
    (checked,) = world.client.check("w")
    (finding,) = checked.findings
    assert (finding.what, finding.found) == ("rules", "the rule set cannot be put back")


def test_owners_are_listed(world: World) -> None:
    world.engine.attach(AttachIntent("w", "/0", "eth0"))
    world.engine.attach(AttachIntent("w", "/0", "eth1", owner="cni podman"))
    found = world.client.stub.List(pb.ListRequest(), timeout=DEADLINE_S).attachments
    assert {one.if_name: one.owner for one in found} == {"eth0": "api", "eth1": "cni podman"}
