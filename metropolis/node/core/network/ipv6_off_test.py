# SPDX-License-Identifier: Apache-2.0
"""Node core where there is no IPv6, from boot to a pod's packet outside.

pod-a ---- veth ---- here: up0 ----- veth ----- srv0: namespace "srv", 192.0.2.1

Run twice: in a namespace in which IPv6 is switched off for all links, and in a
machine whose kernel was booted with ipv6.disable=1.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from pathlib import Path

import grpc
import pytest

from metropolis.node import allocs
from metropolis.node.core.network.overlay.device import Links
from metropolis.node.core.network.overlay.kernel import LinuxKernel, own_routes
from metropolis.node.core.network.workloads.spec import workload_pb2, workload_pb2_grpc
from osbase.net import addressing, external
from osbase.net.dhcp4.testserver import Server
from osbase.netlink import netns
from osbase.netlink.rtnl import Route
from osbase.netlink.transport import NetlinkSocket

LIMIT_S = 60
PORT = 7777
SERVER = IPv4Address("192.0.2.1")
NODE = IPv4Address("192.0.2.50")
ALL = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
BY_DHCP = 'name: "up0" dhcp4 {}'
BY_HAND = """name: "up0" static {
    address: "192.0.2.50/24" gateway: "192.0.2.1"
    address: "2001:db8::7/64" gateway: "2001:db8::1"
}"""


def sh(command: str) -> str:
    """Run a command; returns its output."""
    done = subprocess.run(
        command.split(), check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the block in a namespace; sockets opened in it stay in it."""
    home, there = netns.open_current(), netns.open_path(f"/run/netns/{name}")
    try:
        with netns.Inside(there, home):
            yield
    finally:
        os.close(home)
        os.close(there)


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    """The server's namespace and a pod's; IPv6 is off if it is not yet."""
    if ALL.exists():
        ALL.write_text("1")
    for name in ("srv", "pod-a"):
        sh(f"ip netns add {name}")
    sh("ip link add up0 type veth peer name srv0 netns srv")
    with inside("srv"):
        sh("ip address add 192.0.2.1/24 dev srv0")
        sh("ip link set srv0 up")
    yield
    for link in json.loads(sh("ip -json link")):
        if link["ifname"] == "up0" or link["group"] == str(allocs.LINK_GROUP_WORKLOAD):
            subprocess.run(["ip", "link", "del", link["ifname"]], check=False)
    for name in ("srv", "pod-a"):
        sh(f"ip netns del {name}")
    if ALL.exists():
        ALL.write_text("0")


@dataclass
class NodeCore:
    """Node core as a process, with an uplink and one IPv4 prefix."""

    directory: Path
    uplink: str
    process: subprocess.Popen[str] | None = None
    seen: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start it, and wait until it serves and has its address."""
        config = self.directory / "node.textproto"
        # The server names no name servers: Status is not to wait for any.
        prefix = 'pod_prefix: "10.192.0.0/24" names_wait_s: 0'
        config.write_text(f"network {{ uplink {{ {self.uplink} }} {prefix} }}")
        self.process = process = subprocess.Popen(
            [
                *(sys.executable, "-m", "metropolis.node.core.main"),
                *("--config", str(config), "--runtime-dir", str(self.directory / "run/network")),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        stderr, lines = process.stderr, queue.Queue[str]()
        assert stderr is not None

        def read() -> None:
            for line in stderr:
                lines.put(line)
            lines.put("")
            stderr.close()

        threading.Thread(target=read, daemon=True).start()
        self.seen = []
        missing = {"grpc: serving on", "prefixes: pod prefixes", f"up0 has {NODE}/24"}
        while missing:
            line = lines.get(timeout=LIMIT_S)
            assert line, f"node core ended:\n{''.join(self.seen)}"
            self.seen.append(line)
            missing -= {text for text in missing if text in line}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(LIMIT_S)
        self.process = None
        return status

    def attach(self) -> tuple[IPv4Address, ...]:
        """Attach the pod when the service says it can; return its addresses."""
        channel = grpc.insecure_channel(
            f"unix:{self.directory / 'run/network/workload.sock'}",
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
        with channel:
            stub = workload_pb2_grpc.WorkloadNetworkingStub(channel)
            stub.Status(workload_pb2.StatusRequest(), timeout=LIMIT_S)
            target = workload_pb2.NetNSAttachment(netns_path="/run/netns/pod-a", if_name="eth0")
            request = workload_pb2.AttachRequest(workload_id="a", netns=target)
            response = stub.Attach(request, timeout=LIMIT_S)
            check = stub.Check(workload_pb2.CheckRequest(workload_id="a"), timeout=LIMIT_S)
        (checked,) = check.attachments
        assert not checked.findings, checked.findings
        return tuple(IPv4Address(packed) for packed in response.ip)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[NodeCore]:
    node = NodeCore(tmp_path, BY_DHCP)
    yield node
    if node.process is not None:
        assert node.stop() == 0


def source_seen_outside() -> IPv4Address:
    """Send from the pod until the server hears it; return from whom."""
    with inside("srv"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("", PORT))
    with inside("pod-a"):
        pod = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, pod:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            pod.sendto(b"hello", (str(SERVER), PORT))
            if select.select([server], [], [], 0.2)[0]:
                found = ip_address(server.recvfrom(100)[1][0])
                assert isinstance(found, IPv4Address)
                return found
    raise AssertionError("nothing arrived")


def test_a_pod_reaches_the_world(core: NodeCore) -> None:
    """Also after a kill, and the restart that repairs."""
    server = Server("srv0", SERVER, NODE, 600, 300, 500)
    with inside("srv"):
        server.open()
    with server:
        core.start()
        first = core.attach()
        assert [str(one) for one in first] == ["10.192.0.1"]
        assert source_seen_outside() == NODE
        assert core.stop(signal.SIGKILL) == -signal.SIGKILL
        core.start()
        assert core.attach() == first
        assert source_seen_outside() == NODE


def test_dumps_are_of_what_there_is() -> None:
    """A kernel asked for a family that it lacks answers with all it has."""
    sh("ip address add 192.0.2.50/24 dev up0")
    index = socket.if_nametoindex("up0")
    assert external.look(index) == (NODE,)
    assert own_routes() == frozenset()
    with NetlinkSocket() as sock:
        present = addressing.current_addresses(sock, index, 0)
        assert [str(one) for one in present] == [f"{NODE}/24"]
        nothing = addressing.Addressing()
        protocol = allocs.ROUTE_PROTOCOL_UPLINK
        assert addressing.missing(sock, index, "up0", nothing, protocol=protocol, metric=1) == []


@pytest.mark.skipif(ALL.exists(), reason="this kernel has IPv6")
def test_an_overlay_of_both_families_has_ipv4() -> None:
    """As a node of a dual-stack cluster."""
    kernel = LinuxKernel()
    kernel.ensure_link(1400, bytes(range(1, 33)), 51820)
    try:
        protocol = allocs.ROUTE_PROTOCOL_OVERLAY
        four = Route(IPv4Network("10.192.0.0/16"), None, protocol, metric=100)
        six = Route(IPv6Network("fd00:10::/32"), None, protocol, metric=100)
        addresses = frozenset({ip_address("10.192.0.0"), ip_address("fd00:10::")})
        kernel.change_links(Links(addresses, frozenset({four, six})), Links())
        there = Links(frozenset({ip_address("10.192.0.0")}), frozenset({four}))
        assert kernel.links() == there
        kernel.change_links(Links(), there)
        assert kernel.links() == Links()
    finally:
        kernel.close()
        sh("ip link del overlay")


def test_ipv6_by_hand_does_not_keep_ipv4_away(core: NodeCore) -> None:
    """Without IPv6 in the kernel it is left out, and that is said; where it was
    only switched off, what is configured by hand is meant.
    """
    core.uplink = BY_HAND
    core.start()
    core.attach()
    assert source_seen_outside() == NODE
    if ALL.exists():
        assert "2001:db8::7/64" in sh("ip -6 address show dev up0")
    else:
        assert any("up0 gets no IPv6 addresses" in line for line in core.seen)
