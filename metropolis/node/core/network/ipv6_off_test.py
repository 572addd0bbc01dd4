# SPDX-License-Identifier: Apache-2.0
"""Node core where there is no IPv6, from boot to a pod's packet outside.

pod-a ---- veth ---- here: up0 ----- veth ----- srv0: namespace "srv", 192.0.2.1

Run twice: in a namespace in which IPv6 is switched off for all links, and in a
machine whose kernel was booted with ipv6.disable=1.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.overlay.device import Links
from metropolis.node.core.network.overlay.kernel import LinuxKernel, own_routes
from metropolis.node.core.network.testing.nodecore import NodeCore
from metropolis.node.core.network.workloads.spec import workload_pb2
from osbase.net import addressing, external
from osbase.net.dhcp4.testserver import Server
from osbase.netlink.route import Route
from osbase.netlink.transport import NetlinkSocket
from osbase.test.namespaces import LIMIT_S, at, inside, sh

PORT = 7777
SERVER = IPv4Address("192.0.2.1")
NODE = IPv4Address("192.0.2.50")
ALL = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
BY_DHCP = 'name: "up0" dhcp4 {}'
BY_HAND = """name: "up0" static {
    address: "192.0.2.50/24" gateway: "192.0.2.1"
    address: "2001:db8::7/64" gateway: "2001:db8::1"
}"""


@pytest.fixture(autouse=True)
def no_ipv6(world: None) -> Iterator[None]:
    """IPv6 is off if it is not yet; the uplink's link and its far end."""
    if ALL.exists():
        ALL.write_text("1")
    sh("ip link add up0 type veth peer name srv0 netns srv")
    sh(f"{at('srv')} ip address add 192.0.2.1/24 dev srv0")
    sh(f"{at('srv')} ip link set srv0 up")
    yield
    if ALL.exists():
        ALL.write_text("0")


def start(core: NodeCore, uplink: str = BY_DHCP) -> None:
    """Start it with one IPv4 prefix, and wait until it has its address."""
    # The server names no name servers: Status is not to wait for any.
    prefix = 'pod_prefix: "10.192.0.0/24" names_wait_s: 0'
    core.config = f"network {{ uplink {{ {uplink} }} {prefix} }}"
    core.start()
    core.wait_for(f"up0 has {NODE}/24")
    assert core.problem() == ""


def attach(core: NodeCore) -> list[str]:
    """Attach the pod, and return its addresses; nothing is amiss."""
    addresses = core.attach("pod-a")
    checked = core.stub().Check(workload_pb2.CheckRequest(workload_id="pod-a"), timeout=LIMIT_S)
    (one,) = checked.attachments
    assert not one.findings, one.findings
    return [str(address) for address in addresses.values()]


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
        start(core)
        assert attach(core) == ["10.192.0.1"]
        assert source_seen_outside() == NODE
        assert core.stop(signal.SIGKILL) == -signal.SIGKILL
        start(core)
        assert attach(core) == ["10.192.0.1"]
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
    """Without IPv6 in the kernel it is left out, and logged; where it was
    only switched off, a static configuration is used.
    """
    start(core, BY_HAND)
    attach(core)
    assert source_seen_outside() == NODE
    if ALL.exists():
        assert "2001:db8::7/64" in sh("ip -6 address show dev up0")
    else:
        assert any("up0 gets no IPv6 addresses" in line for line in core.seen)
