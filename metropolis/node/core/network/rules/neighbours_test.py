# SPDX-License-Identifier: Apache-2.0
"""ARP and neighbour discovery of a workload: its own addresses, and the first
hop's.

The attacker is a pod with raw sockets, which invents neighbours: entries of a
table that all workloads share.
"""

from __future__ import annotations

import json
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.lab import (
    FAR_MAC,
    NETWORKS,
    POD,
    POD_B,
    Tap,
    apply,
    counters,
    link_local,
    near,
    node_socket,
    taps,
)
from osbase.test.namespaces import sh

pytestmark = pytest.mark.usefixtures("links")

HOP4, HOP6 = str(allocs.FIRST_HOP_IPV4), str(allocs.FIRST_HOP_IPV6)
BROADCAST = b"\xff" * 6
SETTINGS = Settings(NETWORKS)


def neighbours(name: str = "pod") -> dict[str, str]:
    """Return address and MAC of a link's learnt entries."""
    return {
        entry["dst"]: entry.get("lladdr", "")
        for entry in json.loads(sh(f"ip -json neighbour show dev {name}"))
        if "PERMANENT" not in entry["state"]
    }


def arp_reply(tap: Tap, sender: str) -> bytes:
    """Return the target of the next reply from an address."""
    packed = ip_address(sender).packed
    for ether, data in tap.frames():
        if ether == packets.ETHER_ARP and data[6:8] == b"\0\2" and data[14:18] == packed:
            return data[24:28]
    raise AssertionError("frames end only so")


def advertised(tap: Tap, target: str) -> packets.Packet:
    """Return the next advertisement of an address."""
    packed = ip_address(target).packed
    for ether, data in tap.frames():
        if ether == packets.ETHER_IPV6 and data[6] == packets.ICMPV6 and data[40] == 136:
            if data[48:64] == packed:
                return packets.parse(data)
    raise AssertionError("frames end only so")


@pytest.mark.parametrize("hardware", [1, 6])
@pytest.mark.parametrize("target", [HOP4, near(4, "up0"), near(4, "overlay"), POD_B[4]])
def test_invented_senders_of_arp_leave_no_entry(target: str, hardware: int) -> None:
    """For any address, with either hardware type that the kernel accepts."""
    apply(SETTINGS)
    assert not neighbours()
    invented = [f"10.192.9.{n}" for n in range(20)] + [POD_B[4], near(4, "up0"), "192.0.2.77"]
    with Tap("pod") as pod:
        for sender in invented:
            pod.send_as(
                packets.ETHER_ARP, packets.arp(sender, target, hardware=hardware), BROADCAST
            )
        pod.send_as(packets.ETHER_ARP, packets.arp(POD[4], HOP4), BROADCAST)
        arp_reply(pod, HOP4)  # in order: what came before was handled
    assert not neighbours()
    assert counters().get("arp_target", 0) == (0 if target == HOP4 else len(invented))


@pytest.mark.parametrize("target", [near(4, "up0"), near(4, "overlay"), POD_B[4], "10.192.9.9"])
def test_a_workload_asks_for_the_first_hop_only(target: str) -> None:
    """Also for its own address: it has no other neighbour."""
    apply(SETTINGS)
    with Tap("pod") as pod:
        for hardware in (1, 6):
            pod.send_as(
                packets.ETHER_ARP, packets.arp(POD[4], target, hardware=hardware), BROADCAST
            )
        pod.send_as(packets.ETHER_ARP, packets.arp(POD[4], HOP4), BROADCAST)
        for ether, data in pod.frames():
            if ether == packets.ETHER_ARP and data[6:8] == b"\0\2":
                assert data[14:18] == allocs.FIRST_HOP_IPV4.packed
                break
    assert counters()["arp_target"] == 2


SENDERS = {
    "link-local": [f"fe80::bad:{n:x}" for n in range(20)] + [HOP6, link_local("pod-b")],
    "global": [f"fd00:10:192::bad:{n:x}" for n in range(20)] + [POD_B[6], near(6, "up0")],
}


@pytest.mark.parametrize("kind", SENDERS)
@pytest.mark.parametrize("to", ["hop", "solicited", "many"])
def test_invented_senders_of_solicitations_leave_no_entry(kind: str, to: str) -> None:
    """However they are sent."""
    apply(SETTINGS)
    assert not neighbours()
    daddr = {"hop": HOP6, "solicited": packets.solicited(HOP6), "many": "ff02::1"}[to]
    with Tap("pod") as pod:
        for sender in SENDERS[kind]:
            pod.send(packets.neighbour(sender, daddr, HOP6))
        pod.send(packets.neighbour(POD[6], HOP6, HOP6))
        advertised(pod, HOP6)
    assert not neighbours()
    dropped = counters()
    assert dropped.get("spoofed_ipv6", 0) + dropped.get("link_local", 0) >= len(SENDERS[kind])


@pytest.mark.parametrize("target", [near(6, "up0"), POD_B[6], link_local("pod"), "2001:db8::9"])
@pytest.mark.parametrize("source", [POD[6], link_local("pod")])
def test_a_workload_solicits_the_first_hop_only(source: str, target: str) -> None:
    """Also for its own address."""
    apply(SETTINGS)
    with Tap("pod") as pod:
        for to in (HOP6, packets.solicited(target), packets.solicited(HOP6)):
            pod.send(packets.neighbour(source, to, target))
        pod.send(packets.neighbour(source, HOP6, HOP6))
        assert advertised(pod, HOP6).to == source
    dropped = counters()
    assert dropped.get("neighbour_target", 0) + dropped.get("link_local", 0) >= 3


def test_neighbours_of_a_workload_are_found() -> None:
    """Each resolves the other, at every address; probes detect that one is
    unreachable; a changed MAC is learnt, and changed back.
    """
    apply(SETTINGS)
    second = bytes.fromhex("020000000077")
    for address in (POD[4], POD[6], link_local("pod")):
        sh(f"ip neighbour del {address} dev pod")
    try:
        with Tap("pod") as pod:
            for mac in (FAR_MAC, second, FAR_MAC):
                _asks(pod, mac)
                _is_asked(pod, mac)
            # Probes of stale entries: unicast, from any of its addresses.
            pod.send_as(packets.ETHER_ARP, packets.arp(POD[4], HOP4, mac=FAR_MAC))
            assert arp_reply(pod, HOP4) == ip_address(POD[4]).packed
            for source in (POD[6], link_local("pod")):
                pod.send(packets.neighbour(source, HOP6, HOP6, mac=FAR_MAC))
                assert advertised(pod, HOP6).to == source
            # Unsolicited advertisements: of a MAC that changed, at once.
            for address in (POD[6], link_local("pod")):
                for mac in (second, FAR_MAC):
                    pod.send(
                        packets.neighbour(address, "ff02::1", address, advertisement=True, mac=mac)
                    )
                    pod.send(packets.neighbour(POD[6], HOP6, HOP6, mac=None))
                    advertised(pod, HOP6)
                    assert neighbours()[address] == mac.hex(":")
            # Its duplicate address detection is dropped: nothing answers.
            pod.send(packets.neighbour("::", packets.solicited(POD[6]), POD[6], mac=None))
            pod.send(packets.echo(link_local("pod"), HOP6, b"ping"))
            assert pod.until(b"ping")[-1].source == HOP6
    finally:
        for address in (POD[4], POD[6], link_local("pod")):
            sh(f"ip neighbour replace {address} dev pod lladdr {FAR_MAC.hex(':')} nud permanent")
    assert not counters().keys() - {"link_local"}


def _asks(pod: Tap, mac: bytes) -> None:
    """The pod's kernel, after its MAC changed, resolves the first hop."""
    pod.send_as(packets.ETHER_ARP, packets.arp(POD[4], HOP4, mac=mac), BROADCAST)
    assert arp_reply(pod, HOP4) == ip_address(POD[4]).packed
    for source in (POD[6], link_local("pod")):
        pod.send(packets.neighbour(source, packets.solicited(HOP6), HOP6, mac=mac))
        assert advertised(pod, HOP6).to == source
        assert neighbours()[source] == mac.hex(":")
    assert neighbours()[POD[4]] == mac.hex(":")


def _is_asked(pod: Tap, mac: bytes) -> None:
    """The host resolves the pod, as it has forgotten it, and is answered."""
    for address in (POD[4], POD[6], link_local("pod")):
        sh(f"ip neighbour del {address} dev pod")
        version = packets.version_of(address)
        with node_socket(version) as node:
            scope = socket.if_nametoindex("pod") if address.startswith("fe80") else 0
            node.sendto(b"found", (address, 7) if version == 4 else (address, 7, 0, scope))
            packed = ip_address(address).packed
            for ether, data in pod.frames():
                if ether == packets.ETHER_ARP and data[24:28] == packed:
                    reply_to = allocs.FIRST_HOP_MAC
                    sender = str(ip_address(data[14:18]))
                    answer = packets.arp(address, sender, mac=mac, reply_to=reply_to)
                    pod.send_as(packets.ETHER_ARP, answer)
                    break
                if ether == packets.ETHER_IPV6 and data[40] == 135 and data[48:64] == packed:
                    to = packets.parse(data).source
                    pod.send(packets.neighbour(address, to, address, advertisement=True, mac=mac))
                    break
            assert pod.until(b"found")[-1].to == address
        assert neighbours()[address] == mac.hex(":")


@pytest.mark.parametrize("version", [4, 6])
def test_more_than_a_workload_needs_is_dropped(version: int) -> None:
    """The rate is per link: another workload's requests are answered."""
    apply(SETTINGS)
    with taps("pod", "pod-b") as (pod, other):
        for _ in range(400):
            if version == 4:
                pod.send_as(packets.ETHER_ARP, packets.arp(POD[4], HOP4, mac=FAR_MAC), BROADCAST)
            else:
                pod.send(packets.neighbour(POD[6], HOP6, HOP6, mac=FAR_MAC))
        if version == 4:
            other.send_as(packets.ETHER_ARP, packets.arp(POD_B[4], HOP4, mac=FAR_MAC), BROADCAST)
            arp_reply(other, HOP4)
        else:
            other.send(packets.neighbour(POD_B[6], HOP6, HOP6, mac=FAR_MAC))
            advertised(other, HOP6)
    assert counters()["arp_rate" if version == 4 else "neighbour_rate"] >= 100


def test_the_kernel_checks_who_asks_in_arp() -> None:
    """Why the links of workloads have rp_filter: without it, each invented
    sender that asks for the first hop is an entry.
    """
    apply(SETTINGS)
    setting = Path("/proc/sys/net/ipv4/conf/pod/rp_filter")
    setting.write_text("0")
    try:
        with Tap("pod") as pod:
            pod.send_as(packets.ETHER_ARP, packets.arp("10.192.9.1", HOP4), BROADCAST)
            pod.send_as(packets.ETHER_ARP, packets.arp(POD[4], HOP4), BROADCAST)
            while arp_reply(pod, HOP4) != ip_address(POD[4]).packed:
                pass
        assert "10.192.9.1" in neighbours()
    finally:
        setting.write_text("1")
        sh("ip neighbour flush dev pod nud reachable")
        sh("ip neighbour flush dev pod nud stale")
