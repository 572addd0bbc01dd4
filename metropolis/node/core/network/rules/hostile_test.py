# SPDX-License-Identifier: Apache-2.0
"""Attacks without a forged source: packets that a pod, or a hostile node, may
send as itself, against what all workloads of the node share.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from metropolis.node import allocs
from metropolis.node.core.config import AccessMode, NodeAccess
from metropolis.node.core.network import sysctls
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.lab import (
    FAR_POD,
    NETWORKS,
    POD,
    POD_B,
    WORLD,
    apply,
    counters,
    near,
    node_socket,
    taps,
)
from osbase.test.namespaces import sh

pytestmark = pytest.mark.usefixtures("links")

FAMILIES = pytest.mark.parametrize("version", [4, 6])
ACCESS = pytest.mark.parametrize(
    "access", [NodeAccess(), NodeAccess(AccessMode.ALL)], ids=["nothing", "all"]
)
BY = pytest.mark.parametrize("by", ["pod", "overlay"])
FRAGMENTS = 12_000
PORTS = iter(range(20_000, 30_000))


def far_end(version: int, by: str) -> str:
    """The attacker's own address."""
    return POD[version] if by == "pod" else FAR_POD[version]


@FAMILIES
@ACCESS
@BY
@pytest.mark.parametrize("port", [0, allocs.WIREGUARD_PORT], ids=["tracked", "wireguard"])
def test_errors_about_the_nodes_own_flows_are_not_believed(
    version: int, access: NodeAccess, by: str, port: int
) -> None:
    """Return errors: no host is there, or the path is narrow."""
    apply(Settings(NETWORKS, node_access=access, overlay=True))
    peer, liar = WORLD[version], far_end(version, by)
    with taps(by, "up0") as (attacker, world), node_socket(version, port) as node:
        node.connect((peer, 7))
        node.send(b"to-the-world")
        sent = world.until(b"to-the-world")[-1]
        attacker.send(
            packets.port_unreachable(liar, sent.data),
            packets.too_big(liar, sent.data),
            packets.with_extension(packets.port_unreachable(liar, sent.data)),
        )
        try:
            assert "mtu" not in sh(f"ip -{version} route get {peer}")
            world.send(packets.udp(peer, sent.source, sent.ports[::-1], b"then"))
            assert node.recv(100) == b"then"
        finally:
            sh(f"ip -{version} route flush cache")
    dropped = counters()
    assert dropped.get("forged_error", 0) + dropped.get("invalid", 0) == 3, dropped


@FAMILIES
@ACCESS
@BY
def test_errors_about_flows_with_pods_arrive(version: int, access: NodeAccess, by: str) -> None:
    """A health check of a closed port, over a narrow path."""
    apply(Settings(NETWORKS, node_access=access, overlay=True))
    pod_ip = far_end(version, by)
    with taps(by) as (pod,), node_socket(version) as node:
        node.connect((pod_ip, 7))
        node.send(b"check")
        sent = pod.until(b"check")[-1]
        try:
            pod.send(packets.too_big(pod_ip, sent.data))
            assert "mtu 1300" in sh(f"ip -{version} route get {pod_ip}")
            with pytest.raises(OSError, match="too long"):
                node.recv(100)
            pod.send(packets.port_unreachable(pod_ip, sent.data))
            with pytest.raises(ConnectionRefusedError):
                node.recv(100)
        finally:
            sh(f"ip -{version} route flush cache")
    assert "forged_error" not in counters()


@FAMILIES
@BY
def test_errors_about_the_flows_of_other_pods_do_not_arrive(version: int, by: str) -> None:
    """The attacker guessed the port of another pod's flow to the outside:
    translated back, the error would reach that pod. Errors of routers arrive.
    """
    apply(Settings(NETWORKS, overlay=True))
    peer, liar, victim = WORLD[version], far_end(version, by), POD_B[version]
    with taps(by, "pod-b", "up0") as (attacker, other, world):
        other.send(packets.udp(victim, peer, (next(PORTS), 53), b"question"))
        sent = world.until(b"question")[-1]
        attacker.send(
            packets.port_unreachable(liar, sent.data),
            packets.too_big(liar, sent.data),
            packets.with_extension(packets.port_unreachable(liar, sent.data)),
            packets.echo(liar, victim, b"marker"),
        )
        came = other.until(b"marker")
        assert len(came) == 1, came
        world.send(packets.too_big(near(version, "up0", 2), sent.data))
        other.until(b"question")
    assert counters().get("forged_error", 0) == 3, counters()


def first_fragment(source: str, to: str, number: int) -> bytes:
    """Return the first fragment of a packet."""
    body = bytes(1024)
    if ip_address(source).version == 4:
        return packets.ip(source, to, packets.UDP, body, fragment=0x2000, number=number)
    head = struct.pack("!BBHI", packets.UDP, 0, 1, number)
    return packets.ip(source, to, packets.FRAGMENT, head + body)


@FAMILIES
@BY
def test_fragments_that_stay_so_leave_room_for_others(version: int, by: str) -> None:
    """First fragments without a last, in any number: another pod's packet, and
    the answer to it, arrive in two fragments.
    """
    sysctls.apply(one for one in sysctls.NODE if "frag" in one.path)
    apply(Settings(NETWORKS, overlay=True))
    source, ports = far_end(version, by), (next(PORTS), 7)
    to = WORLD[version] if by == "pod" else POD[version]
    with taps(by, "pod-b", "up0") as (attacker, other, world):
        other.send(packets.udp(POD_B[version], WORLD[version], ports, b"begun"))
        asked = world.until(b"begun")[-1]
        # Made before they are sent: a busy machine must exceed the limit, too.
        attacker.send(*[first_fragment(source, to, number) for number in range(FRAGMENTS)])
        question = packets.udp(POD_B[version], asked.to, ports, bytes(40) + b"question")
        other.send(*packets.fragments(question))
        world.until(b"question")
        answer = packets.udp(asked.to, asked.source, asked.ports[::-1], bytes(40) + b"answer")
        world.send(*packets.fragments(answer))
        other.until(b"answer")
    assert counters()["fragment_rate"] > 0
