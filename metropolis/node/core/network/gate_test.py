# SPDX-License-Identifier: Apache-2.0
"""Pod prefixes that overlap what is in use, with the real node core and kernel.

On a single node, whatever causes the overlap and in every order. For a node
in a cluster, see gate_cluster_test.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import grpc
import pytest

from metropolis.node import allocs
from metropolis.node.core.network.testing.nodecore import NodeCore, add_uplink, dnsmasq
from metropolis.node.core.network.workloads.spec import workload_pb2
from osbase.net import occupied
from osbase.net.dhcp4.testserver import Server
from osbase.test.namespaces import LIMIT_S, inside, sh

UPLINK = 'uplink { name: "up0" dhcp4 {} } names_wait_s: 0'
PODS = ("10.192.0.0/24", "fd00:10:192::/112")


def config(*prefixes: str, uplink: str = UPLINK) -> str:
    pods = " ".join(f'pod_prefix: "{prefix}"' for prefix in prefixes)
    return f"network {{ {uplink} {pods} }}"


def known_to_rules() -> set[str]:
    """The networks that the loaded rules take for the pods'."""
    text = sh(f"nft list table inet {allocs.NFTABLES_TABLE}")
    return {one for one in (*PODS, "192.0.2.0/24", "2001:db8:2::/64") if one in text}


def refused_attach(core: NodeCore, pod: str) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        core.attach(pod)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(caught.value.details())


def again(core: NodeCore, text: str) -> str:
    """The next line with the text, after those that were read."""
    core.seen.clear()
    return core.wait_for(text)


ORIGINS = [
    # Addresses, of any link.
    ("address add 10.192.0.9/24 dev x0", "10.192.0.0/24 on x0"),
    ("address add 10.192.0.9/16 dev x0", "10.192.0.0/16 on x0"),
    ("address add 10.192.0.9/30 dev x0", "10.192.0.8/30 on x0"),
    ("address add 10.192.0.9/32 dev lo", "address 10.192.0.9 on lo"),
    ("-6 address add fd00:10:192::9/64 dev x0 nodad", "fd00:10:192::/64 on x0"),
    ("-6 address add fd00:10:192::9/128 dev x0 nodad", "address fd00:10:192::9 on x0"),
    # Routes on a link, through a gateway, and the gateway.
    ("route add 10.128.0.0/9 dev x0", "10.128.0.0/9 on x0"),
    ("route add 10.192.0.128/25 via 192.0.2.1 dev x0 onlink proto static",
     "route 10.192.0.128/25 via 192.0.2.1 on x0 (by hand)"),
    ("route add 10.192.0.0/24 via 192.0.2.1 dev x0 onlink",
     "route 10.192.0.0/24 via 192.0.2.1 on x0"),
    ("-6 route add fd00:10:192::/120 via fe80::7 dev x0", "via fe80::7 on x0"),
    ("route add default via 10.192.0.1 dev x0 onlink metric 7", "gateway 10.192.0.1 on x0"),
]  # fmt: skip

HARMLESS = [
    "route add 10.0.0.0/8 via 192.0.2.1 dev x0 onlink",
    "route add default via 192.0.2.1 dev x0 onlink",
    "-6 route add default via fe80::7 dev x0",
    "-6 route add fd00::/8 via fe80::7 dev x0",
    "address add 10.191.0.1/16 dev x0",
]


def test_every_origin_refuses_and_gives_back(other_link: None, core: NodeCore) -> None:
    """On a node that runs: the family that conflicts is refused, with both
    named; what is attached stays; all is well when it is over.
    """
    core.config = config(*PODS)
    core.start()
    before = core.attach("pod-a")
    for command in HARMLESS:
        sh(f"ip {command}")
    for command, cause in ORIGINS:
        version = 6 if "-6" in command else 4
        mine, other = PODS[version == 6], PODS[version == 4]
        sh(f"ip {command}")
        line = again(core, "root.network.gate: refused: ")
        assert f"pod prefix {mine} overlaps " in line
        assert cause in line
        problem = core.problem()
        assert f"pod prefix {mine} overlaps " in problem, (command, problem)
        assert cause in problem
        core.wait_for(f"root.network.workloads.prefixes: pod prefixes: {other}")
        assert f"pod prefix {mine} overlaps " in refused_attach(core, "pod-b")
        assert known_to_rules() == {other}
        assert core.attach("pod-a") == before
        sh("ip " + command.replace(" add ", " del ").replace(" nodad", "").replace(" onlink", ""))
        again(core, "root.network.workloads.prefixes: pod prefixes: " + ", ".join(PODS))
        core.wait_for("root.network.gate: no longer refused: ")
        assert core.problem() == ""
        assert known_to_rules() == set(PODS)
    assert set(core.attach("pod-b")) == {4, 6}


def strays() -> set[str]:
    """Addresses of pods that the loaded rules know, and not their networks."""
    listed = sh("nft list set inet metropolis pods_ipv4")
    listed += sh("nft list set inet metropolis pods_ipv6")
    elements = re.findall(r"elements = \{([^}]*)\}", listed)
    return {one.strip() for text in elements for one in text.split(",") if "/" not in one}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, sh("nft list sets")
        time.sleep(0.05)


def test_pods_of_a_prefix_that_was_withdrawn(other_link: None, core: NodeCore) -> None:
    """By another configuration: nobody else can send from their addresses,
    until they are gone, or somebody else has their address.
    """
    core.config = config(*PODS)
    core.start()
    pod = core.attach("pod-a")
    assert core.stop() == 0
    core.config = config("10.193.0.0/24", "fd00:10:193::/112")
    core.start()
    own = {str(address) for address in pod.values()}
    until(lambda: strays() == own)
    # Through a link that has no strict reverse path.
    sh("ip link add up0 type veth peer name srv0 netns srv")
    sh("ip link set up0 up")
    srv = "nsenter --net=/run/netns/srv"
    sh(f"{srv} ip link set srv0 up")
    for version, here, bits in ((4, "198.51.100.1", 24), (6, "2001:db8:9::1", 64)):
        more = "nodad" if version == 6 else ""
        sh(f"ip address add {here}/{bits} dev up0 {more}")
        there = here[:-1] + "2"
        sh(f"{srv} ip address add {there}/{bits} dev srv0 {more}")
        sh(f"{srv} ip address add {pod[version]}/{32 if version == 4 else 128} dev srv0 {more}")
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as node, inside("srv"):
            node.bind((here, 0))
            node.settimeout(LIMIT_S)
            for source, text in ((str(pod[version]), b"forged"), (there, b"honest")):
                with socket.socket(family, socket.SOCK_DGRAM) as sender:
                    sender.bind((source, 0))
                    sender.sendto(text, node.getsockname())
            assert node.recv(100) == b"honest"
    sh("ip address add 10.192.0.200/24 dev x0")
    until(lambda: strays() == {str(pod[6])})
    core.stub().Detach(workload_pb2.DetachRequest(workload_id="pod-a"), timeout=LIMIT_S)
    until(lambda: strays() == set())


@pytest.mark.parametrize("version", [4, 6])
def test_a_table_that_is_looked_up_first(other_link: None, core: NodeCore, version: int) -> None:
    """As VPNs have: it would send pods' addresses elsewhere, though it is wider
    than theirs. Before the rule exists, and after, the route is harmless.
    """
    wide, via = {4: ("10.0.0.0/8", "192.0.2.1"), 6: ("fd00::/8", "fe80::7")}[version]
    mine, other = PODS[version == 6], PODS[version == 4]
    core.config = config(*PODS)
    core.start()
    try:
        sh(f"ip -{version} route add {wide} via {via} dev x0 onlink table 52")
        assert core.problem() == ""
        sh(f"ip -{version} rule add priority 5270 lookup 52")
        line = again(core, "root.network.gate: refused: ")
        assert f"pod prefix {mine} overlaps preferred route {wide} via {via} on x0" in line
        core.wait_for(f"root.network.workloads.prefixes: pod prefixes: {other}")
        assert line.strip().endswith(core.problem())
    finally:
        sh(f"ip -{version} rule del priority 5270")
    again(core, "root.network.workloads.prefixes: pod prefixes: " + ", ".join(PODS))
    assert core.problem() == ""


def test_the_link_of_the_overlap_goes(other_link: None, core: NodeCore) -> None:
    core.config = config(*PODS)
    sh("ip address add 10.192.0.9/24 dev x0")
    core.start()
    assert "10.192.0.0/24 on x0" in core.problem()
    sh("ip link del x0")
    again(core, "root.network.gate: no longer refused: ")
    core.wait_for("pod prefixes: " + ", ".join(PODS))
    assert core.problem() == ""


@pytest.fixture
def lease(world: None) -> Iterator[Server]:
    """A server that is silent at first, and can give other addresses. What it
    gives outlives node core, however long that takes to start again.
    """
    add_uplink()
    server = Server("srv0", IPv4Address("192.0.2.1"), IPv4Address("192.0.2.50"), 60, 2, 5)
    server.silent = True
    with inside("srv"):
        server.open()
    with server:
        yield server


def test_a_lease_inside_the_pod_prefix(lease: Server, core: NodeCore) -> None:
    """Prefix first, then the lease; then node core with the lease there; then
    another lease. The lease is always kept, the pod too.
    """
    core.config = config("192.0.2.0/24", "fd00:10:192::/112")
    core.start()
    assert core.problem() == ""
    first = core.attach("pod-a")
    assert first[4] in IPv4Network("192.0.2.0/24")
    lease.silent = False
    core.wait_for("root.network.gate: refused: pod prefix 192.0.2.0/24 overlaps")
    both = "pod prefix 192.0.2.0/24 overlaps 192.0.2.0/24 on up0 (by DHCP)"
    core.wait_for("up0 has 192.0.2.50/24")
    assert both in core.problem()
    core.wait_for("pod prefixes: fd00:10:192::/112\n")
    assert both in refused_attach(core, "pod-b")
    assert core.attach("pod-a") == first
    assert "192.0.2.0/24" not in known_to_rules()
    assert "192.0.2.50/24" in sh("ip address show dev up0")
    lines = [line for line in core.seen if "gate: refused" in line]
    assert len(lines) == 1, lines

    assert core.stop() == 0
    core.start()
    assert both in core.problem()
    assert both in refused_attach(core, "pod-b")
    listed = core.stub().List(workload_pb2.ListRequest(), timeout=LIMIT_S).attachments
    assert [one.workload_id for one in listed] == ["pod-a"]
    assert not any("pod prefixes: 192.0.2.0/24" in line for line in core.seen)

    # The network is renumbered; the server answers from elsewhere.
    core.wait_for("up0 has 192.0.2.50/24")
    sh("nsenter --net=/run/netns/srv ip address add 198.18.0.1/24 dev srv0")
    lease.server = IPv4Address("198.18.0.1")
    lease.address = IPv4Address("198.18.0.50")
    core.wait_for("no longer refused: pod prefix 192.0.2.0/24")
    again(core, "pod prefixes: 192.0.2.0/24, fd00:10:192::/112")
    assert core.problem() == ""
    assert set(core.attach("pod-b")) == {4, 6}


@pytest.mark.parametrize("first", ["prefix", "lease"])
def test_name_servers_and_advertised_prefixes(
    world: None, core: NodeCore, tmp_path: Path, first: str
) -> None:
    """The resolver is inside the IPv4 prefix, the advertised network is the
    IPv6 one's: both are refused, whichever is first.
    """
    core.config = config("192.0.3.0/24", "2001:db8:2::/64")
    if first == "prefix":
        core.start()
        assert core.problem() == ""
    add_uplink()
    with dnsmasq(tmp_path, "--dhcp-option=option:dns-server,192.0.3.53"):
        if first == "lease":
            core.start()
        core.wait_for("up0 has 192.0.2.50/24")
        core.wait_for("pod prefix 192.0.3.0/24 overlaps name server 192.0.3.53")
        line = core.wait_for("pod prefix 2001:db8:2::/64 overlaps")
        assert "2001:db8:2::/64 on up0" in line
        core.wait_for("pod prefixes: none, not ready")
        problem = core.problem()
        for prefix in ("192.0.3.0/24", "2001:db8:2::/64"):
            assert f"pod prefix {prefix} overlaps" in problem
            assert f"pod prefix {prefix} overlaps" in refused_attach(core, "pod-a")
        assert known_to_rules() == set()
        core.wait_for("reachable by 192.0.2.50, 2001:db8:2:")


def test_what_the_configuration_says_itself(world: None, core: NodeCore) -> None:
    """Routes, gateways and name servers by hand, before there is any link, and
    with it.
    """
    static = """uplink { name: "up0" static {
      address: "192.0.2.7/24" gateway: "192.0.2.1" dns: "10.192.0.53"
      route { destination: "fd00:10:192::/120" gateway: "2001:db8:2::1" }
      address: "2001:db8:2::7/64"
    } }"""
    core.config = config(*PODS, "10.193.0.0/24", uplink=static)
    core.start()
    assert core.problem() == f"pod prefix {PODS[0]} overlaps name server 10.192.0.53"
    # IPv4 has another prefix.
    assert core.attach("pod-a")[4] in IPv4Network("10.193.0.0/24")
    add_uplink()
    line = core.wait_for(f"pod prefix {PODS[1]} overlaps ")
    assert "route fd00:10:192::/120 via 2001:db8:2::1 on up0 (as configured)" in line
    core.wait_for("pod prefixes: 10.193.0.0/24\n")
    assert f"pod prefix {PODS[1]} overlaps" in refused_attach(core, "pod-b")


def test_ipv6_that_is_optional(other_link: None, core: NodeCore) -> None:
    """Then a workload gets IPv4 alone, while Status says why."""
    core.config = config(*PODS, uplink='ipv6: "optional"')
    sh("ip -6 address add fd00:10:192::9/64 dev x0 nodad")
    core.start()
    assert f"pod prefix {PODS[1]} overlaps" in core.problem()
    assert set(core.attach("pod-a")) == {4}


def test_an_address_by_hand_before_there_is_a_link(world: None, core: NodeCore) -> None:
    """The node starts, and refuses the prefix; the other family's is used."""
    static = 'uplink { name: "up0" static { address: "10.192.0.9/28" gateway: "10.192.0.1" } }'
    core.config = config(*PODS, uplink=static)
    core.start()
    expected = f"pod prefix {PODS[0]} overlaps 10.192.0.0/28 of the uplink (as configured)"
    assert core.problem() == expected
    assert expected in refused_attach(core, "pod-a")
    core.wait_for("pod prefixes: fd00:10:192::/112")


async def test_workloads_do_not_wake_the_gate(world: None, core: NodeCore) -> None:
    """The links and routes of an attach and a detach do not wake it."""
    core.config = config(*PODS, uplink="")
    await asyncio.to_thread(core.start)
    changes = occupied.changes((allocs.ROUTE_PROTOCOL_WORKLOAD, allocs.ROUTE_PROTOCOL_OVERLAY))
    async with contextlib.aclosing(changes):
        await anext(changes)
        await asyncio.to_thread(core.attach, "pod-a")
        request = workload_pb2.DetachRequest(workload_id="pod-a")
        await asyncio.to_thread(core.stub().Detach, request, timeout=LIMIT_S)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await anext(changes)
