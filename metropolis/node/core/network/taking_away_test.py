# SPDX-License-Identifier: Apache-2.0
"""Removing needs the kernel alone: whatever other part of node core fails to
start, Detach, Collect, List, Check and Status are served, with the reason.

Each situation meets a node core that was killed while two pods had their
network, so that there is something to remove.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from metropolis.node import allocs
from metropolis.node.core.network.testing.nodecore import NodeCore, add_uplink
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from osbase.test.namespaces import LIMIT_S

PREFIXES = 'pod_prefix: "10.192.0.0/24" pod_prefix: "fd00:10:192::/112"'
ALONE = f"network {{ {PREFIXES} }}"
# Nothing listens there.
CLUSTER = """
network {}
cluster { node_id: "node-1" etcd_endpoint: "127.0.0.1:1" underlay_address: "192.0.2.7" }
"""
DISABLE_IPV6 = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")


@contextlib.contextmanager
def table_of_another() -> Iterator[None]:
    """The rules' table belongs to another program: nft refuses ours."""
    subprocess.run(["nft", "destroy", "table", "inet", allocs.NFTABLES_TABLE], check=True)
    with subprocess.Popen(
        ["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        owner.stdin.write(f"add table inet {allocs.NFTABLES_TABLE} {{ flags owner; }}\n")
        owner.stdin.write("list tables\n")
        owner.stdin.flush()
        while allocs.NFTABLES_TABLE not in owner.stdout.readline():
            assert owner.poll() is None
        yield
        owner.stdin.close()


@contextlib.contextmanager
def ipv6_off() -> Iterator[None]:
    """Somebody has switched IPv6 off for all links."""
    DISABLE_IPV6.write_text("1")
    try:
        yield
    finally:
        DISABLE_IPV6.write_text("0")


@contextlib.contextmanager
def link_without_dhcp() -> Iterator[None]:
    """The uplink is there, and no server behind it."""
    add_uplink()
    yield


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    """As it is."""
    yield


@dataclass(frozen=True)
class Situation:
    """config: node core's. refused: Attach's error; "": it is served;
    None: that is for another test. said: the text in Status, problems and
    notes together.
    """

    config: str
    refused: str | None
    said: str
    made: Callable[[], AbstractContextManager[None]] = nothing


SITUATIONS = {
    "rules refused": Situation(
        ALONE, "Operation not permitted", "prepare the node's network: ", table_of_another
    ),
    "no WireGuard": Situation(CLUSTER, "load its module, wireguard", "overlay: "),
    "no credentials": Situation(CLUSTER, "no credentials for etcd: ", "no credentials for etcd: "),
    "no uplink": Situation(
        f'network {{ uplink {{ name: "up0" dhcp4 {{}} }} {PREFIXES} }}',
        "",
        "waiting for up0 to appear",
    ),
    "no DHCP": Situation(
        f'network {{ uplink {{ name: "up0" dhcp4 {{}} }} {PREFIXES} }}',
        "",
        "waiting for name servers by DHCP",
        link_without_dhcp,
    ),
    "no bond": Situation(
        'network { uplink { bond { name: "bond0" mode: "active-backup" member: "up0" } dhcp4 {} } '
        + PREFIXES
        + " }",
        "",
        "uplink: ",
        link_without_dhcp,
    ),
    # It is the broadcast address.
    "an uplink's route refused": Situation(
        'network { uplink { name: "up0" static { address: "192.0.2.7/24" gateway: "192.0.2.255" } '
        f"}} {PREFIXES} }}",
        "",
        "uplink_addresses: add route 0.0.0.0/0 via 192.0.2.255 dev up0: EINVAL",
        link_without_dhcp,
    ),
    "IPv6 off": Situation(ALONE, None, "", ipv6_off),
}


def with_two_pods(core: NodeCore) -> None:
    """Leave two pods behind, by a node core that is killed."""
    core.config = ALONE
    core.start()
    for pod in ("pod-a", "pod-b"):
        core.attach(pod)
    assert core.stop(signal.SIGKILL) == -signal.SIGKILL


@pytest.mark.parametrize("name", SITUATIONS)
def test_taking_away_is_served(world: None, core: NodeCore, name: str) -> None:
    """Status has the reason, Attach is refused with the same text or served,
    and attachments can be listed, checked and removed.
    """
    situation = SITUATIONS[name]
    with_two_pods(core)
    core.config = situation.config
    with situation.made():
        core.start(ready=False)
        core.wait_until_said(situation.said)
        assert core.listed() == {"pod-a", "pod-b"}
        checked = core.stub().Check(pb.CheckRequest(workload_id="pod-a"), timeout=LIMIT_S)
        assert [one.attachment.if_name for one in checked.attachments] == ["eth0"]
        core.stub().Detach(pb.DetachRequest(workload_id="pod-a"), timeout=LIMIT_S)
        assert core.listed() == {"pod-b"}
        if situation.refused:
            with pytest.raises(grpc.RpcError) as refusal:
                core.attach("pod-a")
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            assert situation.refused in (refusal.value.details() or "")
            assert situation.refused in core.problem()
        elif situation.refused is not None:
            deadline = time.monotonic() + LIMIT_S
            while True:
                try:
                    assert core.attach("pod-a")
                    break
                except grpc.RpcError as error:  # until the uplink was looked for
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                    assert time.monotonic() < deadline, error
        collected = core.stub().Collect(pb.CollectRequest(), timeout=LIMIT_S)
        assert "pod-b" in {one.workload_id for one in collected.removed}
        assert core.listed() == set()
        assert core.stop() == 0


def test_a_cni_socket_that_cannot_be_served(world: None, core: NodeCore) -> None:
    """By which pods would be attached: Status says so, until it is."""
    core.config = ALONE
    there = core.runtime / "cni.sock"
    (there / "busy").mkdir(parents=True)
    core.start()
    core.wait_until_said("cni: ")
    assert "cni: " in core.problem()
    (there / "busy").rmdir()
    there.rmdir()
    deadline = time.monotonic() + LIMIT_S
    while core.problem():
        assert time.monotonic() < deadline, core.problem()
        time.sleep(0.1)
    assert there.is_socket()


def test_it_is_ready_once_the_reason_is_gone(world: None, core: NodeCore) -> None:
    """Nothing has to be restarted."""
    core.config = ALONE
    with table_of_another():
        core.start(ready=False)
        core.wait_until_said("prepare the node's network")
    core.wait_for("root.network.workloads.prefixes: pod prefixes:")
    deadline = time.monotonic() + LIMIT_S
    while core.problem():
        assert time.monotonic() < deadline, core.problem()
    assert core.attach("pod-a")


def test_attachments_that_cannot_be_recovered(world: None, core: NodeCore) -> None:
    """The kernel refuses everything: each call reports that at once."""
    with_two_pods(core)
    core.prefix = WITHOUT_NET_ADMIN
    core.start(ready=False)
    core.wait_until_said("recover attachments: ")
    stub = core.stub()
    with pytest.raises(grpc.RpcError, match="EPERM") as refusal:
        stub.Detach(pb.DetachRequest(workload_id="pod-a"), timeout=LIMIT_S)
    assert refusal.value.code() is grpc.StatusCode.INTERNAL
    for call in (
        lambda: stub.List(pb.ListRequest(), timeout=LIMIT_S),
        lambda: core.attach("pod-a"),
    ):
        with pytest.raises(grpc.RpcError, match="not running yet") as refusal:
            call()
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert core.stop() == 0
    core.prefix = ()
    core.start()
    assert core.listed() == {"pod-a", "pod-b"}


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711])
def test_a_runtime_directory_that_is_there_stays_as_it_is(
    world: None, core: NodeCore, mode: int
) -> None:
    """It may be the whole machine's, as /run; the sockets are private."""
    core.config = ALONE
    core.runtime.mkdir(parents=True)
    (core.directory / "state").mkdir()
    for there in (core.runtime, core.directory / "state"):
        there.chmod(mode)
    core.start()
    deadline = time.monotonic() + LIMIT_S
    while not (core.runtime / "cni.sock").is_socket():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for there in (core.runtime, core.directory / "state"):
        assert there.stat().st_mode & 0o7777 == mode
    assert (core.runtime / "workload.sock").stat().st_mode & 0o777 == 0o600
