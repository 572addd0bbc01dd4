# SPDX-License-Identifier: Apache-2.0
"""No packet passes the link of a workload that is being removed.

A removal moves links into a group and deletes the group. Between the two the
pod still has its end, and all of its capabilities.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.lab import (
    ALL,
    FAR_POD,
    METADATA,
    MODES_OF_A_NODE,
    NETWORKS,
    POD,
    POD_B,
    WORLD,
    apply,
    counters,
    near,
    node_socket,
    received,
    taps,
)
from metropolis.node.core.network.rules.testing.packets import ACK, PSH, SYN
from osbase.test.namespaces import sh

pytestmark = pytest.mark.usefixtures("links")

MODES = pytest.mark.parametrize("settings", MODES_OF_A_NODE.values(), ids=MODES_OF_A_NODE)
FAMILIES = pytest.mark.parametrize("version", [4, 6])
BROADCAST = b"\xff" * 6
PORTS = iter(range(20_000, 60_000))


@pytest.fixture
def back() -> Iterator[None]:
    """Both pods are attached again after the test."""
    yield
    for name in ("pod", "pod-b"):
        sh(f"ip link set {name} group {allocs.LINK_GROUP_WORKLOAD}")


def remove(*names: str) -> None:
    """Move links, as the first request of a removal does."""
    for name in names:
        sh(f"ip link set {name} group {allocs.LINK_GROUP_REMOVAL}")


@MODES
@FAMILIES
def test_a_pod_reaches_nobody(back: None, settings: Settings, version: int) -> None:
    """Neither with its own address, another's, an outside one or the node's;
    neither to the outside, another pod, another node's, the node, or metadata.
    """
    apply(settings)
    own = POD[version]
    targets = [WORLD[version], POD_B[version], FAR_POD[version], near(version, "up0")]
    sources = [own, POD_B[version], FAR_POD[version], near(version, "up0"), WORLD[version]]
    if version == 4:
        targets.append(METADATA)
    with taps("pod", "up0", "pod-b", "overlay") as (pod, up0, pod_b, overlay):
        port = next(PORTS)
        with node_socket(version, port) as node:
            remove("pod")
            for source in sources:
                for to in targets:
                    pod.send(packets.udp(source, to, (next(PORTS), port), b"dropped"))
                    pod.send(packets.tcp(source, to, (next(PORTS), 80), SYN))
                    pod.send(packets.echo(source, to, b"dropped"))
                    pod.send(*packets.fragments(packets.udp(source, to, (9, port), b"x" * 64)))
            assert counters()["removed"] >= len(sources) * len(targets) * 3
            # Honest packets take the same paths.
            asking = packets.udp(POD_B[version], WORLD[version], (next(PORTS), 53), b"honest")
            pod_b.send(asking)
            assert len(up0.until(b"honest")) == 1
            pod_b.send(packets.udp(POD_B[version], near(version, "up0"), (9, port), b"honest"))
            assert received(node, b"honest") == [b"honest"]
            if settings.overlay:
                pod_b.send(packets.udp(POD_B[version], FAR_POD[version], (9, 9), b"honest"))
                assert len(overlay.until(b"honest")) == 1


@MODES
@FAMILIES
def test_nobody_reaches_a_pod(back: None, settings: Settings, version: int) -> None:
    """Neither from outside, another pod, another node's, nor the node."""
    apply(settings)
    own, world = POD[version], WORLD[version]
    with taps("pod", "up0", "pod-b", "overlay") as (pod, up0, pod_b, overlay):
        ports = (next(PORTS), 53)
        pod.send(packets.udp(own, world, ports, b"asks"))
        asked = up0.until(b"asks")[-1]
        remove("pod")
        up0.send(packets.udp(world, asked.source, asked.ports[::-1], b"answered"))
        up0.send(packets.udp(world, own, (9, 9), b"begun"))
        pod_b.send(packets.udp(POD_B[version], own, (9, 9), b"from a pod"))
        overlay.send(packets.udp(FAR_POD[version], own, (9, 9), b"from a node"))
        with node_socket(version) as node, pytest.raises(PermissionError):
            node.sendto(b"from the node", (own, 9))
        # Back in its group, the first packet to arrive is the one sent then.
        sh(f"ip link set pod group {allocs.LINK_GROUP_WORKLOAD}")
        up0.send(packets.udp(world, asked.source, asked.ports[::-1], b"honest"))
        assert len(pod.until(b"honest")) == 1
    assert counters()["removed"] >= 3  # the answer, another pod, the node


@MODES
@FAMILIES
def test_a_flow_that_is_established_ends(back: None, settings: Settings, version: int) -> None:
    """In both directions, between two pods, with one or both being removed."""
    apply(settings)
    one, other = POD[version], POD_B[version]
    ports = (next(PORTS), 80)

    def data(text: bytes) -> bytes:
        return packets.tcp(one, other, ports, PSH | ACK, seq=1001, ack=5001, payload=text)

    def answer(text: bytes) -> bytes:
        return packets.tcp(other, one, ports[::-1], PSH | ACK, seq=5001, ack=1001, payload=text)

    with taps("pod", "pod-b") as (pod, pod_b):
        pod.send(packets.tcp(one, other, ports, SYN, seq=1000))
        pod_b.tcp(SYN)
        pod_b.send(packets.tcp(other, one, ports[::-1], SYN | ACK, seq=5000, ack=1001))
        pod.tcp(SYN | ACK)
        pod.send(packets.tcp(one, other, ports, ACK, seq=1001, ack=5001))
        pod_b.tcp(ACK)
        for removed in (["pod"], ["pod-b"], ["pod", "pod-b"]):
            before = counters().get("removed", 0)
            remove(*removed)
            pod.send(data(b"dropped"))
            pod_b.send(answer(b"dropped"))
            assert counters()["removed"] >= before + 2
            for name in removed:
                sh(f"ip link set {name} group {allocs.LINK_GROUP_WORKLOAD}")
        pod.send(data(b"honest"))
        assert len(pod_b.until(b"honest")) == 1
        pod_b.send(answer(b"honest"))
        assert len(pod.until(b"honest")) == 1


def test_arp_is_not_answered(back: None) -> None:
    """Nor does the node learn a neighbour by it."""
    apply(Settings(NETWORKS, node_access=ALL))
    asking = packets.arp(POD[4], str(allocs.FIRST_HOP_IPV4))
    with taps("pod") as (pod,):
        remove("pod")
        pod.send_as(packets.ETHER_ARP, asking, BROADCAST)
        assert counters()["arp_removed"] == 1
        sh(f"ip link set pod group {allocs.LINK_GROUP_WORKLOAD}")
        pod.send_as(packets.ETHER_ARP, asking, BROADCAST)
        hop = allocs.FIRST_HOP_IPV4.packed
        answers = [data for ether, data in pod.frames(hop) if ether == packets.ETHER_ARP]
        assert len(answers) == 1
