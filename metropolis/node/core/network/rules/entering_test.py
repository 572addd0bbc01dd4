# SPDX-License-Identifier: Apache-2.0
"""What may enter by the uplink, another link, or the overlay, and what not.

The attacker is a host on the link, or a node of the cluster. Each test sends
packets that must not pass, and then on the same path one that must, and checks
which arrived before that.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.lab import (
    ALL,
    FAR_POD,
    MODES_OF_A_NODE,
    NETWORKS,
    POD,
    POD_B,
    WORLD,
    Tap,
    apply,
    counters,
    near,
    node_socket,
    received,
    route,
    taps,
)
from metropolis.node.core.network.rules.testing.packets import ACK, RST, SYN, Packet
from osbase.test.namespaces import LIMIT_S, sh

pytestmark = pytest.mark.usefixtures("links")

CLUSTER, SINGLE, WITHDRAWN = (MODES_OF_A_NODE[name] for name in ("cluster", "single", "withdrawn"))
MODES = pytest.mark.parametrize(
    "settings", [CLUSTER, SINGLE, WITHDRAWN], ids=["cluster", "single", "withdrawn"]
)
FAMILIES = pytest.mark.parametrize("version", [4, 6])
FOREIGN = pytest.mark.parametrize("by", ["up0", "lan"])
PORTS = iter(range(20_000, 30_000))


def ask(pod: Tap, world: Tap, version: int, to: str) -> Packet:
    """Have the pod begin a flow; return the datagram as it left."""
    marker = f"ask-{next(PORTS)}".encode()
    pod.send(packets.udp(POD[version], to, (next(PORTS), 53), marker))
    return world.until(marker)[-1]


def answered(pod: Tap, world: Tap, asked: Packet, *before: bytes) -> list[Packet]:
    """Send from outside, then an answer; return what the pod receives."""
    answer = f"answer-{next(PORTS)}".encode()
    world.send(*before, packets.udp(asked.to, asked.source, asked.ports[::-1], answer))
    return pod.until(answer)


@MODES
@FAMILIES
@FOREIGN
def test_nobody_outside_begins_anything_with_a_pod(
    settings: Settings, version: int, by: str
) -> None:
    """Not by TCP with any flags, UDP, ICMP, in fragments, behind extension
    headers or options, nor at WireGuard's port; the answer to a pod arrives.
    """
    apply(settings)
    outside, pod_ip = near(version, by, 2), POD[version]
    to = near(version, by, 9)
    route(version, f"{to}", by)
    with taps("pod", by) as (pod, world):
        asked = ask(pod, world, version, to)
        plain = packets.udp(outside, pod_ip, (4000, 7), b"x" * 64)
        attack = [
            *(packets.tcp(outside, pod_ip, (next(PORTS), 80), flags) for flags in range(64)),
            plain,
            packets.udp(outside, pod_ip, (allocs.WIREGUARD_PORT, allocs.WIREGUARD_PORT), b"x"),
            packets.udp(outside, pod_ip, (4000, allocs.WIREGUARD_PORT), b"x"),
            packets.echo(outside, pod_ip, b"x"),
            packets.echo(outside, pod_ip, b"x", reply=True),
            packets.with_extension(packets.tcp(outside, pod_ip, (4001, 80), SYN)),
            packets.with_extension(packets.udp(outside, pod_ip, (4001, 80), b"x")),
            *packets.fragments(packets.udp(outside, pod_ip, (4002, 80), b"x" * 64)),
            packets.too_big(outside, packets.udp(pod_ip, outside, (4003, 80), b"x" * 64)),
            packets.ip(outside, pod_ip, 132, b"\0" * 16),
            packets.ip(outside, pod_ip, 47, b"\0" * 16),
        ]
        got = answered(pod, world, asked, *attack)
    assert [one.source for one in got] == [to]
    seen = counters()
    # The rules drop invalid ones and those of a known prefix earlier.
    dropped = ("pod_network_entered", "unsolicited", "invalid_tcp")
    assert sum(seen.get(name, 0) for name in dropped) >= len(attack) - 4, seen
    assert ("pod_network_entered" in seen) is bool(settings.networks)


@FAMILIES
@FOREIGN
def test_configured_routes_to_pods_work(version: int, by: str) -> None:
    """Hosts route pod prefixes to the node on purpose: the pod's answer has its
    own address. A flow that the pod begins is masqueraded all the same; pods'
    sources do not enter, and nothing leaves to other pods in clear.
    """
    apply(Settings(NETWORKS, routed_pods=True, overlay=True))
    outside, pod_ip, port = near(version, by, 2), POD[version], next(PORTS)
    with taps("pod", by) as (pod, world):
        for server in (7, allocs.WIREGUARD_PORT):
            ports = (port, server)
            world.send(packets.udp(outside, pod_ip, ports, b"hello-pod"))
            assert pod.until(b"hello-pod")[-1].source == outside
            pod.send(packets.udp(pod_ip, outside, ports[::-1], b"hello-you"))
            assert world.until(b"hello-you")[-1].source == pod_ip
        pod.send(packets.udp(pod_ip, outside, (next(PORTS), 7), b"begun"))
        assert world.until(b"begun")[-1].source == near(version, by)
        world.send(packets.udp(POD_B[version], pod_ip, (next(PORTS), 7), b"forged"))
        world.send(packets.udp(outside, pod_ip, (next(PORTS), 7), b"last"))
        assert {one.source for one in pod.until(b"last")} == {outside}
    assert counters()["pod_network_forged"] == 1


@FAMILIES
def test_what_the_node_translates_enters(version: int) -> None:
    """A service's port on the node, by others' rules: the client connects to
    the node's address, which answers.
    """
    apply(CLUSTER)
    outside, own, port = near(version, "up0", 2), near(version, "up0"), next(PORTS)
    family = "ip" if version == 4 else "ip6"
    to = POD[version] if version == 4 else f"[{POD[version]}]"
    sh(f"nft add table {family} other")
    sh(f"nft add chain {family} other pre {{ type nat hook prerouting priority -100; }}")
    sh(f"nft add rule {family} other pre udp dport 30080 dnat to {to}:7")
    try:
        with taps("pod", "up0") as (pod, world):
            world.send(packets.udp(outside, own, (port, 30080), b"service"))
            assert pod.until(b"service")[-1].to == POD[version]
            pod.send(packets.udp(POD[version], outside, (7, port), b"served"))
            got = world.until(b"served")[-1]
            assert (got.source, got.ports) == (own, (30080, port))
    finally:
        sh(f"nft delete table {family} other")


@MODES
@pytest.mark.parametrize("by", ["pod", "up0", "lan", "overlay"])
def test_nothing_enters_to_the_loopback(settings: Settings, by: str) -> None:
    """Though another program has the kernel route it, as kube-proxy does."""
    localnet = Path("/proc/sys/net/ipv4/conf/all/route_localnet")
    localnet.write_text("1")
    try:
        apply(settings)
        source = {"pod": POD[4], "overlay": FAR_POD[4]}.get(by, near(4, by, 2))
        own = str(allocs.FIRST_HOP_IPV4) if by == "pod" else near(4, by)
        with taps(by) as (tap,), node_socket(4) as node:
            port = node.getsockname()[1]
            for to in ("127.0.0.1", "127.9.9.9"):
                tap.send(packets.udp(source, to, (9, port), b"entered"))
                tap.send(packets.tcp(source, to, (9, 9), SYN))
            tap.send(packets.udp(source, own, (9, port), b"last"))
            assert received(node, b"last") == [b"last"]
        assert counters()["loopback_entered"] == 4
    finally:
        localnet.write_text("0")


FORGED = {
    "another pod's": (POD_B, "pod_network_forged"),
    "its own": (POD, "pod_network_forged"),
    "a far pod's": (FAR_POD, "pod_network_forged"),
    "the node's": ({v: near(v, "up0") for v in (4, 6)}, "node_forged"),
    "the node's on another link": ({v: near(v, "overlay") for v in (4, 6)}, "node_forged"),
    "the first hop's": ({4: str(allocs.FIRST_HOP_IPV4)}, "first_hop_forged"),
    "the first hop's network's": ({4: "169.254.77.99"}, "first_hop_forged"),
}


@pytest.mark.parametrize("settings", [CLUSTER, SINGLE], ids=["cluster", "single"])
@FAMILIES
@FOREIGN
@pytest.mark.parametrize("whose", FORGED)
@pytest.mark.parametrize("routed", [False, True])
def test_forged_sources_do_not_enter(
    settings: Settings, version: int, by: str, whose: str, routed: bool
) -> None:
    """Neither to the node, nor to a pod, nor as a part of a pod's own flow."""
    sources, counter = FORGED[whose]
    if version not in sources:
        return
    apply(Settings(NETWORKS, node_access=ALL, routed_pods=routed, overlay=settings.overlay))
    source, own, outside = sources[version], near(version, by), near(version, by, 2)
    with taps("pod", by) as (pod, world), node_socket(version) as node:
        asked = ask(pod, world, version, outside)
        port = node.getsockname()[1]
        forged = [
            packets.udp(source, own, (9, port), b"forged"),
            packets.tcp(source, own, (9, 9), SYN),
            packets.udp(source, POD[version], (9, 9), b"forged"),
            packets.udp(source, own, asked.ports[::-1], b"forged"),
        ]
        got = answered(pod, world, asked, *forged)
        world.send(packets.udp(outside, own, (9, port), b"honest"))
        assert received(node, b"honest") == [b"honest"]
    assert [one.source for one in got] == [outside]
    seen = counters()
    entered = seen.get("pod_network_entered", 0)
    assert seen[counter] + entered == len(forged), seen


@MODES
@FAMILIES
@FOREIGN
@pytest.mark.parametrize("peer", [POD_B, FAR_POD], ids=["pod-b", "far-pod"])
def test_nobody_outside_answers_in_a_flow_between_pods(
    settings: Settings, version: int, by: str, peer: dict[int, str]
) -> None:
    """Also while the rules know no prefix: pods and their flows continue."""
    apply(settings)
    ports = (next(PORTS), next(PORTS))
    mine, other = POD[version], peer[version]
    name = "pod-b" if peer is POD_B else "overlay"
    with taps("pod", name, by) as (pod, far, world):
        pod.send(packets.udp(mine, other, ports, b"begun"))
        far.until(b"begun")
        forged = packets.udp(other, mine, ports[::-1], b"forged")
        world.send(forged, packets.port_unreachable(other, packets.udp(mine, other, ports, b"")))
        far.send(packets.udp(other, mine, ports[::-1], b"honest"))
        assert [one.data[-6:] for one in pod.until(b"honest")] == [b"honest"]


@pytest.mark.parametrize("to", ["pod", "node"])
@FAMILIES
def test_the_overlay_brings_only_what_is_behind_it(version: int, to: str) -> None:
    """A hostile node of the cluster has WireGuard's key: it may not use this
    node's pods' addresses, the node's own, nor outside ones.
    """
    apply(CLUSTER)
    own = near(version, "overlay")
    sources = [POD_B[version], POD[version], own, near(version, "up0"), WORLD[version]]
    if version == 4:
        sources += [str(allocs.FIRST_HOP_IPV4), "169.254.77.9"]
    with taps("pod", "overlay") as (pod, overlay), node_socket(version) as node:
        port = node.getsockname()[1]
        target = POD[version] if to == "pod" else own
        for source in sources:
            overlay.send(
                packets.udp(source, target, (9, port), b"forged"),
                packets.tcp(source, target, (9, port), SYN),
                packets.tcp(source, target, (9, port), RST | ACK),
            )
        overlay.send(packets.udp(FAR_POD[version], target, (9, port), b"honest"))
        if to == "pod":
            assert [one.source for one in pod.until(b"honest")] == [FAR_POD[version]]
        else:
            assert received(node, b"honest") == [b"honest"]
    assert counters()["overlay_source"] == 3 * len(sources)


@FAMILIES
@pytest.mark.parametrize("out", ["up0", "lan", "overlay"])
def test_the_overlay_goes_no_further_than_workloads(version: int, out: str) -> None:
    """A hostile node uses this one neither as a gateway nor as a reflector."""
    apply(CLUSTER)
    beyond = near(version, out, 2)
    with taps("pod", "overlay", out) as (pod, overlay, world):
        overlay.send(
            packets.udp(FAR_POD[version], beyond, (9, 9), b"transit"),
            packets.tcp(FAR_POD[version], beyond, (9, 9), SYN),
            packets.echo(FAR_POD[version], beyond, b"transit"),
        )
        overlay.send(packets.udp(FAR_POD[version], POD[version], (9, 9), b"honest"))
        pod.until(b"honest")
        pod.send(packets.udp(POD[version], beyond, (next(PORTS), 9), b"mine"))
        assert [one.ports[1] for one in world.until(b"mine")] == [9]
    assert counters()["overlay_transit"] == 3


@FAMILIES
@FOREIGN
def test_errors_about_a_masqueraded_flow_arrive(version: int, by: str) -> None:
    """Any router may send them: so a pod learns the path's MTU."""
    apply(CLUSTER)
    to = near(version, by, 9)
    route(version, to, by)
    with taps("pod", by) as (pod, world):
        asked = ask(pod, world, version, to)
        router = near(version, by, 3)
        world.send(packets.too_big(router, asked.data))
        got = answered(pod, world, asked)
    assert [one.protocol for one in got] == [packets.ICMP[version], packets.UDP]
    assert got[0].source == router
    assert counters().keys() <= {"link_local"}


@pytest.mark.parametrize("own_port", [0, allocs.WIREGUARD_PORT])
@FAMILIES
def test_errors_about_flows_of_the_node_arrive(version: int, own_port: int) -> None:
    """Errors for its own sockets, and for WireGuard, which are not tracked."""
    apply(CLUSTER)
    own, peer = near(version, "up0"), near(version, "up0", 2)
    with taps("up0") as (world,), node_socket(version, own_port) as node:
        node.connect((peer, 7))
        node.send(b"to-the-peer")
        sent = world.until(b"to-the-peer")[-1]
        assert sent.source == own
        world.send(packets.port_unreachable(peer, sent.data))
        world.send(packets.udp(peer, own, sent.ports[::-1], b"then"))
        with contextlib.suppress(TimeoutError):
            with pytest.raises(ConnectionRefusedError) as caught:
                node.recv(100)
            assert caught.value.errno == errno.ECONNREFUSED
        assert node.recv(100) == b"then"


def test_a_router_on_another_link_may_be_fe80_1() -> None:
    """The first hop's address is its own only on links of workloads."""
    apply(CLUSTER)
    sh("ip -6 neighbour replace fe80::1 dev up0 lladdr 02:00:00:00:00:99 nud permanent")
    own = json_link_local("up0")
    with Tap("up0") as world:
        world.send(packets.echo(str(allocs.FIRST_HOP_IPV6), own, b"from-a-router"))
        got = [one for one in world.until(b"from-a-router") if one.source == own]
    assert got[-1].to == "fe80::1"


def json_link_local(name: str) -> str:
    """Return this namespace's link-local address on a link."""
    words = sh(f"ip -6 -oneline address show dev {name} scope link").split()
    return words[words.index("inet6") + 1].split("/")[0]


def test_a_duplicate_of_the_node_is_heard_of() -> None:
    """The advertisement of its owner bears the address as its source."""
    apply(CLUSTER)
    address = "fd01:2::77"
    with taps("up0") as (world,), node_socket(6) as node:
        sh("ip -6 address add fd01:2::78/64 dev up0")  # asks for a second
        try:
            asked = packets.solicited("fd01:2::78")
            for ether, data in world.frames(ip_address("fd01:2::78").packed):
                if ether == packets.ETHER_IPV6 and packets.parse(data).to == asked:
                    break
            world.send(
                packets.neighbour("fd01:2::78", "ff02::1", "fd01:2::78", advertisement=True),
                packets.udp(address, near(6, "up0"), (9, node.getsockname()[1]), b"honest"),
            )
            assert received(node, b"honest") == [b"honest"]
            deadline = time.monotonic() + LIMIT_S  # the kernel delays it
            while "dadfailed" not in sh("ip -6 address show dev up0"):
                assert time.monotonic() < deadline
        finally:
            sh("ip -6 address del fd01:2::78/64 dev up0")


@FAMILIES
@pytest.mark.parametrize("strict", [False, True])
def test_the_nodes_own_multicast_loops_back(version: int, strict: bool) -> None:
    """By the link that it is sent to: that is no forgery."""
    apply(Settings(NETWORKS, node_access=ALL, strict=((version, "up0"),) if strict else ()))
    group = "239.1.2.3" if version == 4 else "ff15::123"
    index = socket.if_nametoindex("up0")
    with node_socket(version, next(PORTS)) as listener, node_socket(version) as sender:
        packed = ip_address(group).packed
        if version == 4:
            member = packed + struct.pack("=4si", b"\0" * 4, index)
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, member)
        else:
            member = packed + struct.pack("=I", index)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sender.sendto(b"to-many", (group, listener.getsockname()[1]))
        assert received(listener, b"to-many") == [b"to-many"]


@FOREIGN
def test_nothing_outside_reaches_the_first_hop(by: str) -> None:
    """A service that the node binds to it is for its workloads."""
    apply(CLUSTER)
    hop, outside = str(allocs.FIRST_HOP_IPV4), near(4, by, 2)
    with taps(by) as (world,), node_socket(4) as node:
        port = node.getsockname()[1]
        world.send(packets.udp(outside, hop, (9, port), b"outside"))
        world.send(packets.udp(outside, near(4, by), (9, port), b"honest"))
        assert received(node, b"honest") == [b"honest"]
    assert counters()["first_hop_forged"] == 1


@pytest.mark.parametrize("by", ["pod", "up0"])
@FAMILIES
def test_source_routes_are_not_followed(version: int, by: str) -> None:
    """Nothing is forwarded to the next address of the list. (Kernel settings:
    sysctls.NODE.)
    """
    apply(CLUSTER)
    source = POD[version] if by == "pod" else near(version, by, 2)
    own = near(version, "up0")
    last = POD_B[version]
    if version == 4:
        route_ = bytes([131, 7, 4]) + ip_address(last).packed + b"\0"
        routed = packets.ip(
            source,
            own,
            packets.UDP,
            packets.udp(source, own, (9, 9), b"routed")[20:],
            options=route_,
        )
    else:
        inner = packets.udp(source, own, (9, 9), b"routed")[40:]
        head = struct.pack("!BBBBI", packets.UDP, 2, 0, 1, 0) + ip_address(last).packed
        routed = packets.ip(source, own, 43, head + inner)
    with taps("pod", "pod-b", by) as (pod, other, sender):
        sender.send(routed)
        pod.send(packets.udp(POD[version], last, (next(PORTS), 9), b"direct"))
        assert [one.source for one in other.until(b"direct")] == [POD[version]]
