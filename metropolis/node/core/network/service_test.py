# SPDX-License-Identifier: Apache-2.0
"""The whole node core, in namespaces.

    pod-a -+
           +- this namespace: node core ---- up0 = srv0 ---- "srv": dnsmasq
    pod-b -+                                                 (DHCP, RA), peers

Node core is a process of its own; workloads are attached over its socket. The
server's namespace has no route to workloads: only masqueraded flows return.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import time
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.testing.datagrams import (
    FAMILY,
    PORT,
    SERVER,
    heard,
    listen,
    listen_here,
    node_address,
)
from metropolis.node.core.network.testing.nodecore import CONFIG, NodeCore, add_uplink, dnsmasq
from osbase.ip import IPAddress
from osbase.test.namespaces import LIMIT_S, inside, sh


def counters() -> dict[str, int]:
    """Packets by the rule set's counters."""
    listing = json.loads(sh(f"nft --json list counters table inet {allocs.NFTABLES_TABLE}"))
    return {
        item["counter"]["name"]: item["counter"]["packets"]
        for item in listing["nftables"]
        if "counter" in item
    }


@pytest.mark.parametrize("version", [4, 6])
def test_traffic_out_is_masqueraded(uplink: None, core: NodeCore, version: int) -> None:
    """The peer sees the node's address, and its answer reaches the pod."""
    core.start()
    address = core.attach("pod-a")[version]
    with listen("srv", version) as server, listen("pod-a", version, 0) as pod:
        seen = heard(server, pod, SERVER[version], PORT)
        assert seen == node_address(version)
        assert seen != address
        pod.sendto(b"again", (str(SERVER[version]), PORT))
        data, source = server.recvfrom(100)
        while data != b"again":
            data, source = server.recvfrom(100)
        server.sendto(b"answer", source)
        assert pod.recvfrom(100)[0] == b"answer"


@pytest.mark.parametrize("version", [4, 6])
def test_pods_see_each_other_unmasqueraded(uplink: None, core: NodeCore, version: int) -> None:
    """Within the node, a source is a workload's own."""
    core.start()
    one, two = core.attach("pod-a")[version], core.attach("pod-b")[version]
    with listen("pod-b", version) as receiver, listen("pod-a", version, 0) as sender:
        assert heard(receiver, sender, two, PORT) == one


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("has_uplink", [True, False])
def test_node_and_pod_reach_each_other(
    world: None, core: NodeCore, tmp_path: Path, version: int, has_uplink: bool
) -> None:
    """Also on a node that has no uplink at all."""
    with contextlib.ExitStack() as stack:
        if has_uplink:
            add_uplink()
            stack.enter_context(dnsmasq(tmp_path))
        else:
            core.config = CONFIG.replace("uplink", "# uplink")
        core.start()
        if has_uplink:
            core.wait_for("up0 has 192.0.2.50/24")
        address = core.attach("pod-a")[version]
        with listen("pod-a", version) as pod, listen_here(version, 0) as here:
            source = heard(pod, here, address, PORT)
            # The answer to whatever source the node chose.
            scope = 0
            if source.version == 6 and source.is_link_local:
                with inside("pod-a"):
                    scope = socket.if_nametoindex("eth0")
            here.sendto(b"once more", (str(address), PORT))
            reply_to = pod.recvfrom(100)[1]
            while True:
                try:
                    pod.sendto(b"answer", reply_to)
                    break
                except BlockingIOError:
                    continue
            assert here.recvfrom(100)[0] == b"answer", (source, scope)


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def ping(namespace: str, to: IPAddress, device: str) -> None:
    """An echo request, repeated until its reply comes."""
    is_v4 = to.version == 4
    with inside(namespace):
        protocol = socket.IPPROTO_ICMP if is_v4 else socket.IPPROTO_ICMPV6
        sock = socket.socket(FAMILY[to.version], socket.SOCK_RAW, protocol)
        scope = socket.if_nametoindex(device)
    with sock:
        request_type, reply_type = (8, 0) if is_v4 else (128, 129)
        body = struct.pack("!BBHHH", request_type, 0, 0, 0x4D4E, 1) + b"payload"
        if is_v4:  # the kernel does it for ICMPv6
            body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
        target = (str(to), 0) if is_v4 else (str(to), 0, 0, scope)
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            sock.sendto(body, target)
            until = time.monotonic() + 0.5
            while (left := until - time.monotonic()) > 0:
                if not select.select([sock], [], [], left)[0]:
                    break
                data = sock.recv(2048)
                icmp = data[(data[0] & 0xF) * 4 :] if is_v4 else data
                if icmp[0] == reply_type and icmp[8:] == b"payload":
                    return
    raise AssertionError(f"{to} does not answer in {namespace}")


@pytest.mark.parametrize("hop", [allocs.FIRST_HOP_IPV4, allocs.FIRST_HOP_IPV6])
def test_first_hop_answers(world: None, core: NodeCore, hop: IPAddress) -> None:
    """As the gateway of a workload is expected to."""
    core.start()
    core.attach("pod-a")
    ping("pod-a", hop, "eth0")


def udp_packet(source: IPAddress, to: IPAddress, port: int, payload: bytes) -> bytes:
    """An IP packet with UDP in it."""
    udp = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
    pseudo = source.packed + to.packed + struct.pack("!II", len(udp), 17)
    udp = udp[:6] + struct.pack("!H", _checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + source.packed + to.packed + udp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    head += source.packed + to.packed
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + udp


SPOOFED = {
    4: {
        "spoofed_ipv4": ["the other", "the node", "the first hop", "the server", "198.51.100.7"],
        "impossible_source": ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"],
    },
    6: {
        "spoofed_ipv6": ["the other", "the node", "the server", "2001:db8:9::7"],
        "": ["::1", "ff02::1"],  # the kernel drops them before any rule
        "link_local": ["the first hop", "fe80::7", "::"],
    },
}


@pytest.mark.parametrize("version", [4, 6])
def test_spoofed_sources_are_dropped(uplink: None, core: NodeCore, version: int) -> None:
    """To the node, to another workload, to the world: none arrives, all are
    counted, and an honest packet after them does arrive.
    """
    core.config = CONFIG.replace("network {", 'network { node_access { mode: "all" }', 1)
    core.start()
    core.wait_for("up0 has 192.0.2.50/24")
    own, other = core.attach("pod-a")[version], core.attach("pod-b")[version]
    with (
        listen("srv", version) as server,
        listen("pod-b", version) as neighbour,
        listen_here(version) as node,
        listen("pod-a", version, 0) as honest,
    ):
        assert heard(server, honest, SERVER[version], PORT) == node_address(version)
        named = {
            "the other": other,
            "the node": node_address(version),
            "the first hop": allocs.FIRST_HOP_IPV4 if version == 4 else allocs.FIRST_HOP_IPV6,
            "the server": SERVER[version],
        }
        targets = {server: SERVER[version], neighbour: other, node: node_address(version)}
        with inside("pod-a"):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        ether = 0x0800 if version == 4 else 0x86DD
        link = ("eth0", ether, 0, 0, allocs.FIRST_HOP_MAC)
        before = counters()
        with raw:
            for texts in SPOOFED[version].values():
                for text in texts:
                    source = named.get(text) or ip_address(text)
                    for to in targets.values():
                        raw.sendto(udp_packet(source, to, PORT, b"spoofed"), link)
            for to in targets.values():
                raw.sendto(udp_packet(own, to, PORT, b"honest"), link)
        for receiver in targets:
            data, _ = receiver.recvfrom(100)
            while data == b"hello":
                data, _ = receiver.recvfrom(100)
            assert data == b"honest"
        after = counters()
        for counter, texts in SPOOFED[version].items():
            if not counter:
                continue
            grown = after[counter] - before[counter]
            # A workload's own chatter may be counted with link_local.
            expected = len(texts) * len(targets)
            assert grown == expected or (counter == "link_local" and grown > expected), counter


@pytest.mark.parametrize("version", [4, 6])
def test_the_node_is_not_for_workloads(uplink: None, core: NodeCore, version: int) -> None:
    """Nor are metadata services beyond it, unless the configuration says so."""
    core.start()
    core.wait_for("up0 has 192.0.2.50/24")
    core.attach("pod-a")
    metadata = ip_address("169.254.169.254" if version == 4 else "fd00:ec2::254")
    hops = [allocs.FIRST_HOP_IPV4] if version == 4 else []
    with (
        listen("srv", version) as server,
        listen("pod-a", version, 0) as pod,
        listen_here(version) as node,
    ):
        heard(server, pod, SERVER[version], PORT)
        for to in (node_address(version), *hops, metadata):
            pod.sendto(b"secret", (str(to), PORT))
        pod.sendto(b"honest", (str(SERVER[version]), PORT))
        while (data := server.recv(100)) != b"honest":
            assert data == b"hello"
        node.setblocking(False)
        with pytest.raises(BlockingIOError):
            node.recv(100)
    counted = counters()
    assert counted["node_access"] >= 1 + len(hops)
    assert counted["not_forwarded"] == 1


def test_the_reverse_path_is_strict_on_the_uplink(uplink: None, core: NodeCore) -> None:
    """In the families that have their default route there: here both, until
    another uplink comes. Links of workloads have the kernel's check for ARP.
    """
    core.start()
    core.wait_for("up0 has 192.0.2.50/24")
    core.attach("pod-a")
    (link,) = [
        one["ifname"]
        for one in json.loads(sh("ip -json link"))
        if one["group"] == str(allocs.LINK_GROUP_WORKLOAD)
    ]
    assert Path(f"/proc/sys/net/ipv4/conf/{link}/rp_filter").read_text() == "1\n"
    deadline = time.monotonic() + LIMIT_S

    def strict() -> set[str]:
        listing = sh("nft list table inet metropolis")
        return {v for v in ("4", "6") if f'iifname "up0" goto strict_ipv{v}' in listing}

    while strict() != {"4", "6"}:
        assert time.monotonic() < deadline
    sh("ip link add other type veth peer name other-far")
    try:
        sh("ip link set other up")
        sh("ip address add 203.0.113.2/24 dev other")
        sh("ip route add default via 203.0.113.1 dev other metric 900")
        while strict() != {"6"}:
            assert time.monotonic() < deadline
    finally:
        sh("ip link del other")


def router_advertisement(prefix: str) -> bytes:
    """An IPv6 packet: fe80::7 is a router, and addresses are to be made."""
    option = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 86400, 0) + IPv6Address(prefix).packed
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 9000, 0, 0) + option
    source, to = IPv6Address("fe80::7"), IPv6Address("ff02::1")
    checksum = _checksum(source.packed + to.packed + struct.pack("!II", len(body), 58) + body)
    body = body[:2] + struct.pack("!H", checksum) + body[4:]
    return struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + source.packed + to.packed + body


def test_workload_cannot_be_a_router(uplink: None, core: NodeCore) -> None:
    """A router advertisement from a workload changes nothing on the node."""
    core.start()
    core.attach("pod-a")
    packet = router_advertisement("2001:db8:bad::")
    before = counters()["link_local"]
    with inside("pod-a"):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    with raw:
        raw.sendto(packet, ("eth0", 0x86DD, 0, 0, bytes.fromhex("333300000001")))
    ping("pod-a", allocs.FIRST_HOP_IPV6, "eth0")  # in order: what came before was handled
    assert counters()["link_local"] > before
    assert "2001:db8:bad" not in sh("ip -6 route") + sh("ip -6 address")


def test_server_takes_no_advertisement(world: None) -> None:
    """The tests' own server still answers from the requested address."""
    add_uplink()
    sh("ip link set up0 up")
    (link,) = json.loads(sh("nsenter --net=/run/netns/srv ip -json link show srv0"))
    last = udp_packet(IPv6Address("2001:db8:2::9"), SERVER[6], PORT, b"last")
    with (
        listen("srv", 6) as server,
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as raw,
    ):
        packet = router_advertisement("2001:db8:2::")
        raw.sendto(packet, ("up0", 0x86DD, 0, 0, bytes.fromhex("333300000001")))
        raw.sendto(last, ("up0", 0x86DD, 0, 0, bytes.fromhex(link["address"].replace(":", ""))))
        assert server.recv(100) == b"last"  # in order: what came before was handled
    (link,) = json.loads(sh("nsenter --net=/run/netns/srv ip -json -6 address show srv0"))
    found = {ip_address(entry["local"]) for entry in link["addr_info"]}
    assert {address for address in found if not address.is_link_local} == {SERVER[6]}


def test_a_node_that_is_in_no_cluster_any_more(world: None, core: NodeCore) -> None:
    """By another configuration: nothing is left of the overlay, by which other
    nodes' pods reached its own; a pod has its network all the while. Here the
    link is a bridge, of which the routes are the same.
    """
    group = f"group {allocs.LINK_GROUP_OVERLAY}"
    sh(f"ip link add overlay {group} type bridge")
    sh("ip link set overlay up")
    proto = f"proto {allocs.ROUTE_PROTOCOL_OVERLAY}"
    for command in (
        f"ip address add 10.192.0.0/32 dev overlay {proto}",
        f"ip route add 10.192.0.0/16 dev overlay src 10.192.0.0 {proto}",
        f"ip route add unreachable 10.192.0.0/24 {proto}",
        f"ip -6 route add fd00:10:192::/64 dev overlay {proto}",
        f"ip -6 route add unreachable fd00:10:192::/112 {proto}",
    ):
        sh(command)
    core.config = 'network { pod_prefix: "10.193.0.0/24" }'
    core.start()
    assert "overlay" not in sh("ip -brief link")
    for family in ("-4", "-6"):
        assert sh(f"ip {family} route show {proto}") == ""
    assert core.attach("pod-a")
    assert core.problem() == ""


def test_rules_and_cost(world: None, core: NodeCore) -> None:
    """The rule set is the same with a workload as without."""
    core.start()
    before = sh("nft --stateless list ruleset")
    core.attach("pod-a")
    core.attach("pod-b")
    assert sh("nft --stateless list ruleset") == before


def test_sockets_are_private(world: None, core: NodeCore) -> None:
    """Directory 0700, sockets 0600."""
    core.start()
    core.wait_for("root.network.workloads.grpc: serving")
    assert core.runtime.stat().st_mode & 0o7777 == 0o700
    assert (core.runtime / "workload.sock").stat().st_mode & 0o777 == 0o600
