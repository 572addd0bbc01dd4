# SPDX-License-Identifier: Apache-2.0
"""Which of a pod's packets leave the node outside of the overlay, and how.

The attacker is a pod with raw sockets. In the end an honest packet passes on
the same path.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from ipaddress import ip_address, ip_network

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules import metadata
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.lab import (
    ALL,
    FAMILY,
    FAR_POD,
    METADATA,
    MODES_OF_A_NODE,
    NETWORKS,
    POD,
    POD_B,
    WORLD,
    Tap,
    apply,
    counters,
    near,
    route,
    taps,
)
from metropolis.node.core.network.rules.testing.packets import ACK, FIN, PSH, RST, SYN, Packet
from osbase.test.namespaces import LIMIT_S, sh

pytestmark = pytest.mark.usefixtures("links")

MODES = pytest.mark.parametrize("settings", MODES_OF_A_NODE.values(), ids=MODES_OF_A_NODE)
FAMILIES = pytest.mark.parametrize("version", [4, 6])
FOREIGN = pytest.mark.parametrize("by", ["up0", "lan"])
PORTS = iter(range(30_000, 60_000))
FIRST, LAST = allocs.MASQUERADE_PORTS


@MODES
@FAMILIES
@FOREIGN
def test_nothing_leaves_with_a_pods_address(settings: Settings, version: int, by: str) -> None:
    """Return TCP with each of the 64 combinations of flags without a flow, ICMP
    of each type, odd protocols, fragments, extension headers.
    """
    apply(settings)
    to = near(version, by, 9)
    route(version, to, by)
    pod_ip, own = POD[version], near(version, by)
    about = packets.udp(to, pod_ip, (9, 9), b"x" * 64)
    attack = [
        *(packets.tcp(pod_ip, to, (next(PORTS), 80), f, ack=77) for f in range(64)),
        *(packets.tcp(pod_ip, to, (1234, 80), f, ack=77) for f in range(64)),
        *(_icmp(pod_ip, to, kind) for kind in range(1, 256)),
        packets.too_big(pod_ip, about),
        packets.port_unreachable(pod_ip, about),
        *(packets.ip(pod_ip, to, n, b"\0" * 40) for n in (47, 50, 51, 132, 136, 253)),
        packets.with_extension(packets.tcp(pod_ip, to, (next(PORTS), 80), RST | ACK)),
        *packets.fragments(packets.udp(pod_ip, to, (next(PORTS), 80), b"x" * 64)),
    ]
    with taps("pod", by) as (pod, world):
        pod.send(*attack)
        pod.send(packets.udp(pod_ip, to, (next(PORTS), 53), b"honest"))
        got = world.until(b"honest")
    assert got
    assert {one.source for one in got} == {own}
    assert all(FIRST <= one.ports[0] <= LAST for one in got if one.protocol in (6, 17))
    # A packet that begins a flow is masqueraded, also in mid-connection.
    assert {SYN, ACK} <= {one.flags for one in got if one.protocol == packets.TCP}
    assert counters()["invalid"] >= 32


def _icmp(source: str, to: str, kind: int) -> bytes:
    """All types, except neighbour discovery's, which has its own rules."""
    whole = packets.echo(source, to, b"x" * 24)
    at = 20 if whole[0] >> 4 == 4 else 40
    body = bytes([kind, 0, 0, 0]) + whole[at + 4 :]
    if at == 20:
        body = body[:2] + struct.pack("!H", packets.checksum(body)) + body[4:]
        return packets.ip(source, to, 1, body)
    a, b = ip_address(source).packed, ip_address(to).packed
    pseudo = a + b + struct.pack("!II", len(body), packets.ICMPV6)
    body = body[:2] + struct.pack("!H", packets.checksum(pseudo + body)) + body[4:]
    return packets.ip(source, to, packets.ICMPV6, body)


class Connection:
    """A TCP connection of a pod to the outside, both ends hand-made."""

    def __init__(self, pod: Tap, world: Tap, version: int, to: str) -> None:
        """The handshake."""
        self.pod, self.world, self.inside, self.to = pod, world, POD[version], to
        self.ports = (next(PORTS), 443)
        pod.send(packets.tcp(self.inside, to, self.ports, SYN, seq=1000))
        self.left = world.tcp(SYN)
        self.answer(SYN | ACK, 5000, 1001)
        assert pod.tcp(SYN | ACK).ports == self.ports[::-1]
        pod.send(packets.tcp(self.inside, to, self.ports, ACK, seq=1001, ack=5001))
        world.tcp(ACK)

    def answer(self, flags: int, seq: int, ack: int, payload: bytes = b"") -> None:
        """Send from the server to the source that it saw."""
        ports = self.left.ports[::-1]
        self.world.send(
            packets.tcp(self.to, self.left.source, ports, flags, seq=seq, ack=ack, payload=payload)
        )

    def works(self) -> tuple[list[Packet], list[Packet]]:
        """Send data each way; return what pod and server received so far."""
        self.answer(PSH | ACK, 5001, 1001, b"from-the-server")
        inside = self.pod.until(b"from-the-server")
        self.pod.send(
            packets.tcp(
                self.inside, self.to, self.ports, PSH | ACK, seq=1001, ack=5016, payload=b"bye"
            )
        )
        return inside, self.world.until(b"bye")


@FAMILIES
@FOREIGN
@pytest.mark.parametrize(
    "flags", [PSH | ACK, ACK, RST, RST | ACK, SYN | ACK, SYN, SYN | RST, FIN, FIN | ACK]
)
def test_a_segment_far_outside_the_window_ends_nothing(version: int, by: str, flags: int) -> None:
    """The node is not its receiver, so it does not answer with a RST; the pod's
    connection stays.
    """
    apply(Settings(NETWORKS, overlay=True))
    to = near(version, by, 9)
    route(version, to, by)
    with taps("pod", by) as (pod, world):
        connection = Connection(pod, world, version, to)
        payload = b"x" * 20 if flags & PSH else b""
        connection.answer(flags, 5001 + (1 << 30), 1001, payload)
        connection.answer(flags, (5001 - (1 << 30)) % (1 << 32), 1001, payload)
        inside, outside = connection.works()
    assert not any(one.flags & RST for one in outside), outside
    assert all(one.source == near(version, by) for one in outside)
    assert inside[-1].source == to


@FAMILIES
@pytest.mark.parametrize("flags", [PSH | ACK, RST, RST | ACK, FIN | ACK, SYN | ACK, SYN])
def test_the_pods_segments_outside_the_window_end_nothing(version: int, flags: int) -> None:
    """They leave only as the flow does."""
    apply(Settings(NETWORKS, overlay=True))
    to = near(version, "up0", 9)
    route(version, to, "up0")
    with taps("pod", "up0") as (pod, world):
        connection = Connection(pod, world, version, to)
        payload = b"x" * 20 if flags & PSH else b""
        for seq in (1001 + (1 << 30), (1001 - (1 << 30)) % (1 << 32)):
            pod.send(
                packets.tcp(
                    POD[version], to, connection.ports, flags, seq=seq, ack=5001, payload=payload
                )
            )
        inside, outside = connection.works()
    assert {(one.source, one.ports) for one in outside} == {
        (near(version, "up0"), connection.left.ports)
    }
    assert inside[-1].source == to


@FAMILIES
@pytest.mark.parametrize("flags", [PSH | ACK, RST, RST | ACK, SYN | ACK])
def test_the_nodes_own_connections_live_too(version: int, flags: int) -> None:
    """The same with a socket of the node."""
    apply(Settings(NETWORKS, overlay=True))
    own, server = near(version, "up0"), near(version, "up0", 2)
    with taps("up0") as (world,), socket.socket(FAMILY[version]) as node:
        # Closed with a RST: later tests do not get its repeated FIN.
        node.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        node.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            node.connect((server, 443))
        syn = world.tcp(SYN)
        start = struct.unpack_from("!I", syn.data, (20 if version == 4 else 40) + 4)[0]
        ports = syn.ports[::-1]

        def say(flags: int, seq: int, payload: bytes = b"") -> None:
            ack = start + 1
            world.send(packets.tcp(server, own, ports, flags, seq=seq, ack=ack, payload=payload))

        say(SYN | ACK, 5000)
        node.settimeout(LIMIT_S)
        say(flags, 5001 + (1 << 30), b"x" if flags & PSH else b"")
        say(PSH | ACK, 5001, b"in-order")
        assert node.recv(100) == b"in-order"
        node.send(b"still-here")
        assert not any(one.flags & RST for one in world.until(b"still-here"))


@MODES
@FAMILIES
def test_a_flow_whose_route_changes_does_not_leave(settings: Settings, version: int) -> None:
    """A flow to a far pod that began on the overlay, in both directions, and
    one that the far pod began: the route is on the uplink now.
    """
    apply(settings)
    pod_ip, far = POD[version], FAR_POD[version]
    mine, theirs = (next(PORTS), 7), (next(PORTS), 9)
    with taps("pod", "overlay", "up0") as (pod, overlay, world):
        pod.send(packets.udp(pod_ip, far, mine, b"mine"))
        assert overlay.until(b"mine")[-1].source == pod_ip
        overlay.send(packets.udp(far, pod_ip, mine[::-1], b"answer"))
        overlay.send(packets.udp(far, pod_ip, theirs, b"theirs"))
        pod.until(b"theirs")
        try:
            route(version, far, "up0")
            pod.send(packets.udp(pod_ip, far, mine, b"leak"))
            pod.send(packets.udp(pod_ip, far, theirs[::-1], b"leak"))
            pod.send(packets.udp(pod_ip, near(version, "up0", 2), (next(PORTS), 7), b"honest"))
            got = world.until(b"honest")
        finally:
            route(version, far, "overlay")
    assert {one.source for one in got} == {near(version, "up0")}
    assert len(got) == 1


@FAMILIES
@pytest.mark.parametrize("by", ["up0", "lan", "overlay"])
@pytest.mark.parametrize("origin", ["pod", "node"])
@pytest.mark.parametrize("routed", [False, True])
def test_what_is_for_a_pod_leaves_by_the_overlay_only(
    version: int, by: str, origin: str, routed: bool
) -> None:
    """A pod's packets and the node's own are dropped; others' pass."""
    apply(Settings(NETWORKS, routed_pods=routed))
    far, beyond = FAR_POD[version], near(version, by, 2)
    try:
        route(version, far, by)
        with (
            taps("pod", by) as (pod, world),
            socket.socket(FAMILY[version], socket.SOCK_DGRAM) as node,
        ):
            for to, payload in ((far, b"for-a-pod"), (beyond, b"honest")):
                if origin == "pod":
                    pod.send(packets.udp(POD[version], to, (next(PORTS), 7), payload))
                else:
                    with contextlib.suppress(PermissionError):  # the drop's error
                        node.sendto(payload, (to, 7))
            got = [one.to for one in world.until(b"honest")]
    finally:
        route(version, far, "overlay")
    assert got == ([far, beyond] if by == "overlay" else [beyond])
    assert counters().get("pod_network_unencrypted", 0) == (by != "overlay")


@FAMILIES
@FOREIGN
def test_what_is_for_a_refused_network_does_not_leave(version: int, by: str) -> None:
    """Except to the addresses in use, by which the node is reached: a pod of
    another node may still be there. The node itself, and the family that is not
    refused, continue; a pod of this node is reached as before.
    """
    refused = {4: "203.0.113.0/24", 6: "2001:db8:77::/64"}
    away = {4: "203.0.113.200", 6: "2001:db8:77::200"}
    used = {4: "203.0.113.64/26", 6: "2001:db8:77::40/122"}
    inside = {4: "203.0.113.70", 6: "2001:db8:77::47"}
    other = 10 - version
    apply(
        Settings(
            tuple(one for one in NETWORKS if one.version == other),
            withheld=(ip_network(refused[version]),),
            in_use=(ip_network(used[version]),),
            node_access=ALL,
            overlay=True,
        )
    )
    for family, network in ((version, refused[version]), (other, refused[other])):
        route(family, network, by)
    with taps("pod", "pod-b", by) as (pod, pod_b, world):
        pod.send(packets.udp(POD[version], away[version], (next(PORTS), 53), b"secret"))
        pod.send(packets.echo(POD[version], away[version], b"secret"))
        pod.send(packets.tcp(POD[version], away[version], (next(PORTS), 80), SYN))
        with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as own:
            own.sendto(b"operator", (away[version], 9))
        pod.send(packets.udp(POD[other], away[other], (next(PORTS), 53), b"other family"))
        pod.send(packets.udp(POD[version], inside[version], (next(PORTS), 53), b"in use"))
        got = world.until(b"in use")
        pod.send(packets.udp(POD[version], POD_B[version], (next(PORTS), 53), b"home"))
        assert pod_b.until(b"home")
    assert [one.to for one in got] == [away[version], away[other], inside[version]]
    assert counters()["pod_network_unencrypted"] == 3


def test_within_the_node_nothing_is_dropped() -> None:
    """From the node's address in the overlay to itself."""
    apply(Settings(NETWORKS, overlay=True))
    sh("ip address add 10.192.0.0/32 dev overlay")
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            server.bind(("10.192.0.0", 0))
            server.settimeout(LIMIT_S)
            client.sendto(b"hello", server.getsockname())
            assert server.recvfrom(100)[1][0] == "10.192.0.0"
    finally:
        sh("ip address del 10.192.0.0/32 dev overlay")


def test_without_an_address_nothing_is_masqueraded() -> None:
    """The uplink has a route and no address yet: another address would stay
    with the flow. (In IPv4 the kernel finds none, and drops.)
    """
    apply(Settings(NETWORKS))
    ports, others = (next(PORTS), 7), ("up0", "lan", "overlay")
    sh("ip -6 neighbour replace fe80::99 dev up0 lladdr 02:00:00:00:00:99 nud permanent")
    with taps("pod", "up0") as (pod, world):
        for name in others:
            sh(f"ip address del {near(6, name)}/64 dev {name}")
        try:
            sh(f"ip -6 route replace {WORLD[6]} via fe80::99 dev up0")
            pod.send(packets.udp(POD[6], WORLD[6], ports, b"early"))
            dropped = counters().get("uplink_not_ready", 0)
        finally:
            for name in others:
                sh(f"ip address add {near(6, name)}/64 dev {name} nodad")
            for to, by in ((FAR_POD[6], "overlay"), ("default", "up0")):
                route(6, to, by)
        pod.send(packets.udp(POD[6], WORLD[6], ports, b"later"))
        got = world.until(b"later")
        sh(f"ip -6 route del {WORLD[6]}")
    assert dropped == 1
    assert [one.source for one in got] == [near(6, "up0")]


@FAMILIES
def test_the_nodes_own_pod_address_does_not_leave(version: int) -> None:
    """A socket bound to the node's address in the overlay."""
    apply(Settings(NETWORKS, overlay=True))
    address = "10.192.0.0" if version == 4 else "fd00:10:192::"
    nodad = "nodad" if version == 6 else ""
    bits = 32 if version == 4 else 128
    sh(f"ip address add {address}/{bits} dev overlay {nodad}")
    try:
        with (
            taps("up0") as (world,),
            socket.socket(FAMILY[version], socket.SOCK_DGRAM) as bound,
            socket.socket(FAMILY[version], socket.SOCK_DGRAM) as free,
        ):
            bound.bind((address, 0))
            with contextlib.suppress(PermissionError):  # the drop's error
                bound.sendto(b"leak", (near(version, "up0", 2), 7))
            free.sendto(b"honest", (near(version, "up0", 2), 7))
            assert {one.source for one in world.until(b"honest")} == {near(version, "up0")}
    finally:
        sh(f"ip address del {address}/{bits} dev overlay")
    assert counters()["pod_address_left"] == 1


def _some(version: int) -> list[str]:
    """Return an address in each network that is not forwarded."""
    return [
        METADATA if str(one) == "169.254.0.0/16" else str(one[-1])
        for one in metadata.NOT_FORWARDED
        if one.version == version and not one.is_link_local
    ] + ([METADATA] if version == 4 else [])


@MODES
@FAMILIES
def test_metadata_is_not_forwarded(settings: Settings, version: int) -> None:
    """By any protocol and port; also port 53, since no name server is known to
    be there.
    """
    apply(settings)
    refused = _some(version)
    for to in refused:
        route(version, to, "up0")
    with taps("pod", "up0") as (pod, world):
        for to in refused:
            pod.send(
                packets.tcp(POD[version], to, (next(PORTS), 80), SYN),
                packets.udp(POD[version], to, (next(PORTS), 53), b"x"),
                packets.echo(POD[version], to, b"x"),
            )
        pod.send(packets.udp(POD[version], WORLD[version], (next(PORTS), 80), b"honest"))
        assert {one.to for one in world.until(b"honest")} == {WORLD[version]}
    assert counters()["not_forwarded"] == 3 * len(refused)


@FAMILIES
def test_what_is_configured_is_forwarded(version: int) -> None:
    """Also name servers there, but only at port 53."""
    listed, server, *_ = _some(version)
    forwarded = ip_address(listed)
    networks = [one for one in metadata.NOT_FORWARDED if forwarded in one]
    apply(
        Settings(
            NETWORKS,
            forwarded=tuple(networks),
            resolvers=(ip_address(server), ip_address(WORLD[version])),
        )
    )
    for to in (listed, server):
        route(version, to, "up0")
    ports = [next(PORTS) for _ in range(6)]
    with taps("pod", "up0") as (pod, world):
        pod.send(
            packets.tcp(POD[version], server, (ports[0], 80), SYN),
            packets.udp(POD[version], server, (ports[1], 123), b"x"),
            packets.echo(POD[version], server, b"x"),
            packets.tcp(POD[version], listed, (ports[2], 80), SYN),
            packets.tcp(POD[version], server, (ports[3], 53), SYN),
            packets.udp(POD[version], server, (ports[4], 53), b"query"),
            packets.udp(POD[version], WORLD[version], (ports[5], 80), b"honest"),
        )
        got = [(one.to, one.protocol, one.ports[1]) for one in world.until(b"honest")]
    assert got == [
        (listed, packets.TCP, 80),
        (server, packets.TCP, 53),
        (server, packets.UDP, 53),
        (WORLD[version], packets.UDP, 80),
    ]
    assert counters()["not_forwarded"] == 3


@FAMILIES
@pytest.mark.parametrize("port", [allocs.WIREGUARD_PORT, allocs.CURATOR_PORT, 443])
def test_a_pods_own_connections_work_whatever_their_ports(version: int, port: int) -> None:
    """Also to somebody's WireGuard and etcd, from the very same port."""
    apply(Settings(NETWORKS, overlay=True))
    to = near(version, "up0", 2)
    with taps("pod", "up0") as (pod, world):
        pod.send(packets.udp(POD[version], to, (port, port), b"ask"))
        asked = world.until(b"ask")[-1]
        assert FIRST <= asked.ports[0] <= LAST
        world.send(packets.udp(to, asked.source, asked.ports[::-1], b"answer"))
        assert pod.until(b"answer")[-1].ports == (port, port)
        pod.send(packets.tcp(POD[version], to, (port, port), SYN, seq=1))
        asked = world.tcp(SYN)
        world.send(packets.tcp(to, asked.source, asked.ports[::-1], SYN | ACK, seq=9, ack=2))
        assert pod.tcp(SYN | ACK).ports == (port, port)
