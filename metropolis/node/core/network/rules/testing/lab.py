# SPDX-License-Identifier: Apache-2.0
"""A node's links, and packet sockets at their far ends.

    pod, pod-b -- (group 8) --+                 +-- up0, lan  (group 0)
                              | this namespace  |
                              +--- forwards ----+-- overlay   (group 9)

Far ends have no addresses: only the test answers. The overlay is a veth here,
since the rules know links by their group and name.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Final, Self

from metropolis.node import allocs
from metropolis.node.core.config import AccessMode, NodeAccess
from metropolis.node.core.network.rules.base import render
from metropolis.node.core.network.rules.settings import IPNetwork, Settings
from metropolis.node.core.network.rules.testing import packets
from osbase.nftables import Nftables
from osbase.test.namespaces import LIMIT_S, inside, sh

NETWORKS: Final[tuple[IPNetwork, ...]] = (
    ip_network("10.192.0.0/16"),
    ip_network("10.200.0.0/16"),
    ip_network("fd00:10:192::/64"),
)
"""A cluster's; a single node's own prefixes are treated the same."""

ALL: Final = NodeAccess(AccessMode.ALL)

MODES_OF_A_NODE: Final = {
    "cluster": Settings(NETWORKS, node_access=ALL, overlay=True),
    "single": Settings(NETWORKS, node_access=ALL),
    # While no prefix is accepted, or after it was withdrawn: pods keep running.
    "withdrawn": Settings(node_access=ALL),
    "routed": Settings(NETWORKS, node_access=ALL, routed_pods=True),
}
"""By name; pods may reach everything on the node."""

POD: Final = {4: "10.192.0.7", 6: "fd00:10:192::7"}
POD_B: Final = {4: "10.192.0.8", 6: "fd00:10:192::8"}
OWN: Final = {"pod": POD, "pod-b": POD_B}
FAR_POD: Final = {4: "10.192.1.7", 6: "fd00:10:192::1:7"}
"""A pod of another node; its route is on the overlay."""
WORLD: Final = {4: "198.51.100.9", 6: "2001:db8:9::9"}
"""A host beyond the uplink's router."""
METADATA: Final = "169.254.169.254"

LINKS: Final = {
    "pod": allocs.LINK_GROUP_WORKLOAD,
    "pod-b": allocs.LINK_GROUP_WORKLOAD,
    "up0": 0,
    "lan": 0,
    "overlay": allocs.LINK_GROUP_OVERLAY,
}
FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
FAR_MAC: Final = bytes.fromhex("020000000099")


def mac(name: str) -> bytes:
    """Return the MAC of a link's near end; the far end's is FAR_MAC."""
    if LINKS[name] == allocs.LINK_GROUP_WORKLOAD:
        return allocs.FIRST_HOP_MAC
    return bytes([2, 0, 0, 0, 0, list(LINKS).index(name)])


def near(version: int, name: str, host: int = 1) -> str:
    """Return an address in a foreign link's network; the near end's is 1."""
    number = list(LINKS).index(name)
    return f"10.1.{number}.{host}" if version == 4 else f"fd01:{number}::{host}"


def link_local(name: str) -> str:
    """Return the link-local address, with a route, of a link's workload."""
    return f"fe80::{list(LINKS).index(name) + 0x70:x}"


@contextlib.contextmanager
def lab() -> Iterator[None]:
    """Make the links, their routes and neighbours; this namespace forwards."""
    try:
        _build()
        yield
    finally:
        for name in LINKS:
            subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", f"n-{name}"], check=False, capture_output=True)
        sh("nft flush ruleset")


def _build() -> None:
    sh("ip link set lo up")
    sh(f"ip address replace {allocs.FIRST_HOP_IPV4}/32 dev lo scope link")
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", path).write_text("1")
    for path in ("ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"):
        Path("/proc/sys/net", path).write_text("0")
    Path("/proc/sys/net/ipv6/conf/default/accept_ra").write_text("0")
    for name, group in LINKS.items():
        sh(f"ip netns add n-{name}")
        peer = f"peer name eth0 address {FAR_MAC.hex(':')} netns n-{name}"
        sh(f"ip link add {name} address {mac(name).hex(':')} group {group} type veth {peer}")
        sh(f"nsenter --net=/run/netns/n-{name} ip link set eth0 up promisc on addrgenmode none")
        if group != allocs.LINK_GROUP_WORKLOAD:
            sh(f"ip link set {name} up")
            for version, bits in ((4, 24), (6, 64)):
                nodad = "nodad" if version == 6 else ""
                sh(f"ip address add {near(version, name)}/{bits} dev {name} {nodad}")
                _neighbour(version, near(version, name, 2), name)
            continue
        # As an attachment's batch makes it.
        sh(f"ip link set {name} addrgenmode none up")
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("1")
        sh(f"ip address add {allocs.FIRST_HOP_IPV6}/128 dev {name} nodad")
        sh(f"ip route add {OWN[name][4]} dev {name} src {allocs.FIRST_HOP_IPV4}")
        for address in (OWN[name][6], link_local(name)):
            sh(f"ip -6 route add {address} dev {name}")
            _neighbour(6, address, name)
        _neighbour(4, OWN[name][4], name)
    for version in (4, 6):
        route(version, FAR_POD[version], "overlay")
        sh(f"ip -{version} route add default via {near(version, 'up0', 2)} dev up0")


def _neighbour(version: int, address: str, name: str) -> None:
    """Add a neighbour: packet sockets answer no solicitation."""
    ether = f"lladdr {FAR_MAC.hex(':')} nud permanent"
    sh(f"ip -{version} neighbour replace {address} dev {name} {ether}")


def route(version: int, to: str, by: str) -> None:
    """Route an address to a link that is not a workload's."""
    sh(f"ip -{version} route replace {to} via {near(version, by, 2)} dev {by}")


def apply(settings: Settings) -> None:
    """Load the rules; counters are 0."""
    with Nftables() as nft:
        nft.apply(render(settings))


def counters() -> dict[str, int]:
    """Return the counters that are not 0, in packets."""
    listing = json.loads(sh("nft --json list counters"))
    return {
        item["counter"]["name"]: item["counter"]["packets"]
        for item in listing["nftables"]
        if "counter" in item and item["counter"]["packets"]
    }


class Tap:
    """A packet socket at the far end of a link."""

    def __init__(self, name: str) -> None:
        """name: of the link."""
        self._name = name
        with inside(f"n-{name}"):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            self._socket.bind(("eth0", 3))

    def __enter__(self) -> Self:
        """Return it; it is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._socket.close()

    def send(self, *data: bytes) -> None:
        """Send IP packets to this namespace."""
        for one in data:
            ether = packets.ETHER_IPV4 if one[0] >> 4 == 4 else packets.ETHER_IPV6
            self.send_as(ether, one)

    def send_as(self, ether: int, data: bytes, to: bytes | None = None) -> None:
        """Send a frame. to: the link address."""
        self._socket.sendto(data, ("eth0", ether, 0, 0, to or mac(self._name)))

    def frames(self, until: bytes | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield Ethernet type and content of each frame, up to the one that
        contains `until`, which must come.
        """
        deadline = time.monotonic() + LIMIT_S
        while select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            data, (_, ether, kind, _, _) = self._socket.recvfrom(70000)
            if kind == socket.PACKET_OUTGOING:
                continue
            yield ether, data
            if until is not None and until in data:
                return
        raise AssertionError(f"{until or 'more'!r} did not come to {self._name}: {counters()}")

    def tcp(self, flags: int) -> packets.Packet:
        """Return the next TCP packet with exactly these flags."""
        for ether, data in self.frames():
            if ether in (packets.ETHER_IPV4, packets.ETHER_IPV6):
                found = packets.parse(data)
                if found.protocol == packets.TCP and found.flags == flags:
                    return found
        raise AssertionError("frames end only so")

    def until(self, marker: bytes) -> list[packets.Packet]:
        """Return the IP packets up to the one that contains the marker, which
        must come; without those that the kernel sends by itself.
        """
        return [
            packets.parse(data)
            for ether, data in self.frames(marker)
            if ether in (packets.ETHER_IPV4, packets.ETHER_IPV6) and not _chatter(data)
        ]


def _chatter(data: bytes) -> bool:
    """Return whether it is link-local multicast: solicitations, MLD reports."""
    found = packets.parse(data)
    return found.to.startswith(("ff02:", "224.0.0."))


@contextlib.contextmanager
def taps(*names: str) -> Iterator[list[Tap]]:
    """Open taps at the far ends of several links."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Tap(name)) for name in names]


@contextlib.contextmanager
def node_socket(version: int, port: int = 0) -> Iterator[socket.socket]:
    """A UDP socket of the node, on all its addresses."""
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as sock:
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", port))
        sock.settimeout(LIMIT_S)
        yield sock


def received(sock: socket.socket, last: bytes) -> list[bytes]:
    """Return what the node's socket receives, up to `last`, which must come."""
    found: list[bytes] = []
    while not found or found[-1] != last:
        try:
            found.append(sock.recv(2000))
        except TimeoutError as error:
            raise AssertionError(f"{last!r} did not come: {found}, {counters()}") from error
    return found
