# SPDX-License-Identifier: Apache-2.0
"""What workloads reach on the node itself, by the setting `node_access`.

The attacker is a pod, here or on another node of the cluster.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from metropolis.node import allocs
from metropolis.node.core.config import AccessMode, NodeAccess, Ports
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.lab import (
    FAMILY,
    FAR_POD,
    NETWORKS,
    POD,
    apply,
    counters,
    near,
    node_socket,
    received,
    taps,
)
from metropolis.node.core.network.rules.testing.packets import ACK, SYN
from osbase.test.namespaces import LIMIT_S

pytestmark = pytest.mark.usefixtures("links")

FAMILIES = pytest.mark.parametrize("version", [4, 6])
FROM = pytest.mark.parametrize("by", ["pod", "overlay"])
LISTED = NodeAccess(
    AccessMode.LISTED, (Ports("tcp", 10250, 10250), Ports("udp", 7000, 7002), Ports("sctp", 9, 9))
)


def settings(access: NodeAccess) -> Settings:
    """Return the settings of a node in a cluster."""
    return Settings(NETWORKS, node_access=access, overlay=True)


def source(version: int, by: str) -> str:
    """Return an address of the pod behind the link."""
    return POD[version] if by == "pod" else FAR_POD[version]


def targets(version: int, by: str) -> list[str]:
    """Return the node's addresses, on any link."""
    found = [near(version, name) for name in ("up0", "lan", "overlay")]
    if version == 4 and by == "pod":
        found += [str(allocs.FIRST_HOP_IPV4)]
    return found


@contextlib.contextmanager
def tcp_listener(version: int, port: int) -> Iterator[socket.socket]:
    """Return a listening socket of the node, on all its addresses."""
    with socket.socket(FAMILY[version]) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", port))
        sock.listen()
        sock.settimeout(LIMIT_S)
        yield sock


@pytest.mark.parametrize(
    ("access", "ports"),
    [
        (NodeAccess(), {}),
        (LISTED, {"tcp": {10250}, "udp": {7000, 7001, 7002}}),
        (NodeAccess(AccessMode.ALL), {"tcp": {10250, 10251}, "udp": set(range(6999, 7004))}),
    ],
    ids=["nothing", "listed", "all"],
)
@FAMILIES
@FROM
def test_what_the_setting_says_is_reached(
    access: NodeAccess, ports: dict[str, set[int]], version: int, by: str
) -> None:
    """By each of the node's addresses, the first hop's among them; ICMP and
    neighbour discovery always.
    """
    apply(settings(access))
    attacker = source(version, by)
    with contextlib.ExitStack() as stack:
        (tap,) = stack.enter_context(taps(by))
        udp = {p: stack.enter_context(node_socket(version, p)) for p in range(6999, 7004)}
        for port in (10250, 10251):
            stack.enter_context(tcp_listener(version, port))
        for to in targets(version, by):
            for port, sock in udp.items():
                tap.send(packets.udp(attacker, to, (6000, port), b"%d" % port))
                sock.setblocking(False)
            for port in (10250, 10251):
                tap.send(packets.tcp(attacker, to, (6000, port), SYN))
            tap.send(packets.echo(attacker, to, b"ping"))
            got = tap.until(b"ping")
            assert got[-1].source == to
            open_tcp = {one.ports[0] for one in got if one.flags == SYN | ACK}
            assert open_tcp == ports.get("tcp", set()), to
            open_udp = set()
            for port, sock in udp.items():
                with contextlib.suppress(BlockingIOError):
                    assert sock.recv(100) == b"%d" % port
                    open_udp.add(port)
            assert open_udp == ports.get("udp", set()), to
    refused = 7 - sum(map(len, ports.values()))
    # An unfinished handshake is tried again.
    assert counters().get("node_access", 0) >= refused * len(targets(version, by))


@FAMILIES
def test_the_link_local_first_hop_is_no_way_around(version: int) -> None:
    """With IPv6, from an address of the pod and from its link-local one."""
    apply(settings(NodeAccess()))
    hop = str(allocs.FIRST_HOP_IPV6 if version == 6 else allocs.FIRST_HOP_IPV4)
    sources = [POD[version]] + (["fe80::70"] if version == 6 else [])
    with taps("pod") as (pod,), node_socket(version, 7000) as node, tcp_listener(version, 10250):
        for attacker in sources:
            pod.send(
                packets.udp(attacker, hop, (6000, 7000), b"around"),
                packets.tcp(attacker, hop, (6001, 10250), SYN),
            )
            pod.send(packets.echo(attacker, hop, b"ping"))
            got = pod.until(b"ping")
            assert 6001 not in {one.ports[1] for one in got}
        node.setblocking(False)
        with pytest.raises(BlockingIOError):
            node.recv(100)


@FAMILIES
@FROM
def test_the_node_reaches_its_pods(version: int, by: str) -> None:
    """Health checks: answers by UDP, TCP and errors pass, requests do not."""
    apply(settings(NodeAccess()))
    pod_ip = source(version, by)
    with taps(by) as (pod,), node_socket(version) as node:
        node.connect((pod_ip, 8080))
        node.send(b"are-you-well")
        asked = pod.until(b"are-you-well")[-1]
        pod.send(packets.udp(pod_ip, asked.source, asked.ports[::-1], b"yes"))
        assert received(node, b"yes") == [b"yes"]
        pod.send(packets.port_unreachable(pod_ip, asked.data))
        with pytest.raises(ConnectionRefusedError):
            node.recv(100)
        with socket.socket(FAMILY[version]) as client:
            # Closed with a RST: later tests do not get its repeated FIN.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((pod_ip, 8080))
            syn = pod.tcp(SYN)
            sequence = int.from_bytes(syn.data[24:28] if version == 4 else syn.data[44:48])
            pod.send(
                packets.tcp(pod_ip, syn.source, syn.ports[::-1], SYN | ACK, seq=9, ack=sequence + 1)
            )
            pod.tcp(ACK)
    assert "node_access" not in counters()


@FAMILIES
def test_other_links_are_not_asked(version: int) -> None:
    """It is a setting for workloads: a host on the uplink reaches the node."""
    apply(settings(NodeAccess()))
    with taps("up0") as (world,), node_socket(version) as node:
        to = near(version, "up0")
        port = node.getsockname()[1]
        world.send(packets.udp(near(version, "up0", 2), to, (9, port), b"outside"))
        assert received(node, b"outside") == [b"outside"]
