# SPDX-License-Identifier: Apache-2.0
"""Pod networks stay within workloads and the overlay, whatever the routes say.

    pod -- (group 8) this namespace (group 0) up0 -- world
                                    (group 9) overlay -- another node

Here the overlay is a veth: the rules know links by their groups.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules.base import render
from metropolis.node.core.network.rules.settings import Settings
from osbase.netlink import netns
from osbase.nftables import Nftables

NETWORKS: tuple[IPv4Network | IPv6Network, ...] = (
    IPv4Network("10.192.0.0/16"),
    IPv4Network("10.200.0.0/16"),
    IPv6Network("fd00:10:192::/64"),
)
POD = {4: "10.192.0.7", 6: "fd00:10:192::7"}
FAR_POD = {4: "10.192.1.7", 6: "fd00:10:192::1:7"}
LINKS = {"pod": allocs.LINK_GROUP_WORKLOAD, "up0": 0, "overlay": allocs.LINK_GROUP_OVERLAY}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
LIMIT_S = 20.0


def sh(command: str) -> str:
    """Run a command without a shell; returns its output."""
    done = subprocess.run(
        command.split(), check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def apply(networks: tuple[IPv4Network | IPv6Network, ...]) -> None:
    with Nftables() as nft:
        nft.apply(render(Settings(networks)))


def counters() -> dict[str, int]:
    """Packets by the rule set's counters."""
    listing = json.loads(sh(f"nft --json list counters table inet {allocs.NFTABLES_TABLE}"))
    return {
        item["counter"]["name"]: item["counter"]["packets"]
        for item in listing["nftables"]
        if "counter" in item
    }


def mac(name: str) -> bytes:
    """Of this namespace's end of a link."""
    return bytes([2, 0, 0, 0, 0, list(LINKS).index(name)])


@pytest.fixture
def world() -> Iterator[None]:
    """A namespace behind each link; this one forwards."""
    try:
        for name, group in LINKS.items():
            connect(name, group)
        sh("ip link set lo up")
        for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", path).write_text("1")
        for version in (4, 6):
            sh(f"ip -{version} route add {POD[version]} dev pod")
            neighbour(version, POD[version], "pod")
        yield
    finally:
        for name in LINKS:
            subprocess.run(["ip", "link", "del", name], check=False)
            subprocess.run(["ip", "netns", "del", f"n-{name}"], check=False)
        sh("nft flush ruleset")


def near(version: int, name: str, host: int = 1) -> str:
    """An address of a link's own network; this namespace's is 1."""
    number = list(LINKS).index(name)
    return f"10.1.{number}.{host}" if version == 4 else f"fd01:{number}::{host}"


def neighbour(version: int, address: str, name: str) -> None:
    """Nobody is asked who has it: packet sockets answer nothing."""
    ether = "lladdr 02:00:00:00:00:99 nud permanent"
    sh(f"ip -{version} neighbour add {address} dev {name} {ether}")


def connect(name: str, group: int) -> None:
    """A link of the group, and a namespace at its far end."""
    sh(f"ip netns add n-{name}")
    peer = f"peer name eth0 netns n-{name}"
    sh(f"ip link add {name} address {mac(name).hex(':')} type veth {peer}")
    sh(f"ip link set {name} up group {group}")
    sh(f"nsenter --net=/run/netns/n-{name} ip link set eth0 up promisc on")
    for version, bits in ((4, 24), (6, 64)):
        nodad = "nodad" if version == 6 else ""
        sh(f"ip address add {near(version, name)}/{bits} dev {name} {nodad}")
        neighbour(version, near(version, name, 2), name)


def route(version: int, by: str) -> None:
    """The far pod is by that link."""
    sh(f"ip -{version} route replace {FAR_POD[version]} via {near(version, by, 2)} dev {by}")


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: str, to: str, payload: bytes = b"pods") -> bytes:
    """An IP packet of UDP, from port 9 to port 7777."""
    a, b = ip_address(source).packed, ip_address(to).packed
    length = 8 + len(payload)
    body = struct.pack("!HHHH", 9, 7777, length, 0) + payload
    if len(a) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0) + a + b
        return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + body
    checksum = _checksum(a + b + struct.pack("!II", length, 17) + body) or 0xFFFF
    body = body[:6] + struct.pack("!H", checksum) + body[8:]
    return struct.pack("!IHBB", 6 << 28, length, 17, 64) + a + b + body


@contextlib.contextmanager
def raw(name: str, version: int) -> Iterator[socket.socket]:
    """A packet socket at the far end of a link."""
    home = netns.open_current()
    there = os.open(f"/run/netns/n-{name}", os.O_RDONLY | os.O_CLOEXEC)
    ether = 0x0800 if version == 4 else 0x86DD
    try:
        with netns.Inside(there, home):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ether))
            sock.bind(("eth0", ether))
    finally:
        os.close(home)
        os.close(there)
    with sock:
        yield sock


def send(sock: socket.socket, by: str, data: bytes) -> None:
    """From the far end of a link to this namespace."""
    ether = 0x0800 if data[0] >> 4 == 4 else 0x86DD
    sock.sendto(data, ("eth0", ether, 0, 0, mac(by)))


def heard(sock: socket.socket, payload: bytes) -> bool:
    """Whether a packet that ends so is what comes, within a while."""
    while select.select([sock], [], [], LIMIT_S)[0]:
        data = sock.recv(2000)
        if b"pods" in data:
            return data.endswith(payload)
    raise AssertionError("nothing came, not even the last")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("by", ["up0", "overlay"])
@pytest.mark.parametrize("origin", ["pod", "node"])
def test_what_is_for_a_pod_leaves_by_the_overlay_only(
    world: None, version: int, by: str, origin: str
) -> None:
    """A pod's and the node's own packets; the next to somebody else goes."""
    apply(NETWORKS)
    route(version, by)
    far = near(version, by, 2)
    with (
        raw(by, version) as receiver,
        raw("pod", version) as pod,
        socket.socket(FAMILY[version], socket.SOCK_DGRAM) as node,
    ):
        for to, payload in ((FAR_POD[version], b"pods-1"), (far, b"pods-2")):
            if origin == "pod":
                send(pod, "pod", packet(POD[version], to, payload))
            else:
                with contextlib.suppress(PermissionError):  # dropped, and told so
                    node.sendto(payload, (to, 7777))
        assert heard(receiver, b"pods-1") is (by == "overlay")
    assert counters()["pod_network_unencrypted"] == (by == "up0")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("by", ["up0", "overlay"])
@pytest.mark.parametrize("to", ["pod", "node"])
def test_what_is_from_a_pod_enters_by_the_overlay_only(
    world: None, version: int, by: str, to: str
) -> None:
    apply(NETWORKS)
    route(version, by)
    own = near(version, by)
    far = near(version, by, 2)
    target = POD[version] if to == "pod" else own
    with (
        raw(by, version) as sender,
        raw("pod", version) as pod,
        socket.socket(FAMILY[version], socket.SOCK_DGRAM) as node,
    ):
        node.bind(("", 7777))
        receiver = pod if to == "pod" else node
        for source, payload in ((FAR_POD[version], b"pods-1"), (far, b"pods-2")):
            send(sender, by, packet(source, target, payload))
        assert heard(receiver, b"pods-1") is (by == "overlay")
    assert counters()["pod_network_forged"] == (by == "up0")


def test_within_the_node_nothing_is_dropped(world: None) -> None:
    """The node's address in the overlay, from itself."""
    apply(NETWORKS)
    sh("ip address add 10.192.0.0/32 dev overlay")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("10.192.0.0", 0))
        server.settimeout(LIMIT_S)
        client.sendto(b"hello", server.getsockname())
        assert server.recvfrom(100)[1][0] == "10.192.0.0"


def test_rendering() -> None:
    """Without networks as ever; with more, longer sets and no more rules."""
    assert "pods" not in render(Settings())
    many: list[IPv4Network | IPv6Network] = [ip_network(f"10.{n}.0.0/16") for n in range(200)]
    few = render(Settings(tuple(many[:1])))
    assert few.count("\n") == render(Settings(tuple(many))).count("\n")
    assert "ipv6_addr" not in few


def test_networks_that_change_and_touch(world: None) -> None:
    """Neighbours in an interval set, and the table made anew."""
    apply((IPv4Network("10.0.0.0/16"), IPv4Network("10.1.0.0/16"), IPv4Network("10.0.3.0/24")))
    assert "10.0.0.0/15" in sh("nft list set inet metropolis pods_ipv4")
    apply(())
    assert "pods" not in sh("nft list ruleset")
