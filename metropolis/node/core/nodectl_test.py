# SPDX-License-Identifier: Apache-2.0
"""The operator's command on a node, with an engine on the fake datapath."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from metropolis.node.core import nodectl
from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath

PROBLEM = "nftables: table inet metropolis is gone; cannot be put back: EPERM"


class World:
    """A server with a namespace `/0`, and the command."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        datapath = FakeDatapath()
        datapath.kernel.add_netns("/0")
        self.capture = capture
        self.socket = directory / "run" / "s"
        self.conditions = Conditions()
        self.engine = Engine(datapath, self.conditions)
        self.engine.set_prefixes([ip_network("10.0.0.0/16"), ip_network("fd00::/112")])
        self.engine.start()
        self.server = WorkloadServer(self.engine, self.socket)
        self.server.start()

    def run(self, *arguments: str) -> tuple[int, str]:
        number = nodectl.main(["--socket", str(self.socket), *arguments])
        return number, self.capture.readouterr().out

    def close(self) -> None:
        self.server.stop(0)
        self.engine.close()


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[World]:
    made = World(tmp_path, capsys)
    yield made
    made.close()


def test_all_is_well(world: World) -> None:
    assert world.run("status") == (0, "ok\n")
    world.conditions.note("repairs", "1: rules 1")
    assert world.run("status") == (0, "ok\nnote: repairs: 1: rules 1\n")


def test_notes_are_shown_also_when_something_is_wrong(world: World) -> None:
    """Notes matter most then: a foreign filter may be the cause."""
    world.conditions.note("foreign_filters", "ip filter FORWARD")
    world.conditions.set("reconcile rules", PROBLEM)
    world.engine.set_prefixes([])
    number, out = world.run("status")
    assert number == 1
    assert out.splitlines() == [
        f"wrong: reconcile rules: {PROBLEM}",
        "wrong: attach: the node has no address prefix for workloads yet",
        "note: foreign_filters: ip filter FORWARD",
    ]
    number, out = world.run("--json", "status")
    assert (number, json.loads(out)["notes"]) == (1, {"foreign_filters": "ip filter FORWARD"})


def test_attachments(world: World) -> None:
    assert world.run("check") == (0, "no attachments\n")
    made = world.engine.attach(AttachIntent("web-1", "/0", "eth0"))
    number, out = world.run("list")
    assert number == 0
    addresses = ",".join(map(str, made.ips))
    expected = ["web-1", "eth0", addresses, made.host_interface, "api"]
    assert [line.split() for line in out.splitlines()[1:]] == [expected]
    assert world.run("check") == world.run("check", "web-1") == (0, "web-1 eth0: ok\n")
    world.conditions.set("reconcile rules", PROBLEM)
    number, out = world.run("check")
    assert number == 1
    assert PROBLEM in out
    number, out = world.run("--json", "check", "web-1")
    assert (number, json.loads(out)["checked"][0]["findings"][0]["found"]) == (1, PROBLEM)


def test_one_that_cannot_be_checked_hides_no_other(world: World) -> None:
    """A workload whose Check hangs in the kernel hides no other."""
    world.engine.attach(AttachIntent("web-1", "/0", "eth0"))
    world.engine.attach(AttachIntent("web-2", "/0", "eth1"))
    with world.engine._locks.workload.hold("web-1"):
        number, out = world.run("check")
    assert number == 1
    first, why, second = out.splitlines()
    assert (first, second) == ("web-1 eth0: wrong", "web-2 eth1: ok")
    assert "another call for this workload" in why


def test_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str], world: World) -> None:
    assert nodectl.main(["--socket", str(tmp_path / "absent"), "status"]) == 3
    assert "absent: no answer" in capsys.readouterr().err
    assert nodectl.main(["--socket", str(world.socket), "check", "web-9"]) == 2
    assert capsys.readouterr().err == "nodectl check: check 'web-9': has no interface\n"
    assert nodectl.main(["--socket", str(world.socket), "check", "ü"]) == 2
    assert "must be printable ASCII" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["stat"], ["list", "x"], ["status", "--all"]),
        *(["check", "\udcff"], ["--socket", "\udcff", "list"]),
    ],
)
def test_wrong_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        nodectl.main(arguments)
    assert exited.value.code == 2
