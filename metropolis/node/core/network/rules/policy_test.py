# SPDX-License-Identifier: Apache-2.0
"""Which new flows pass: by real connections, in both families.

The workloads have the identities 5 (pod), 7 (pod-b) and 9 (overlay, of another
node); up0 is the world.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.policy.kernel import PolicyKernel
from metropolis.node.core.network.policy.model import Protocol
from metropolis.node.core.network.policy.tables import PairPorts, Tables, WorldRange
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.ends import (
    ADDRESSES,
    NODE,
    address,
    connect,
    marks,
    ping,
    server,
    try_tcp,
    try_udp,
)
from metropolis.node.core.network.rules.testing.lab import (
    ALL,
    NETWORKS,
    apply,
    counters,
    taps,
)
from osbase import conntrack
from osbase.nftables import Nftables
from osbase.test.namespaces import sh

pytestmark = pytest.mark.usefixtures("links")

FAMILIES: Final = pytest.mark.parametrize("version", [4, 6])
TABLE: Final = f"inet {allocs.NFTABLES_WORKLOADS}"
IDENTITIES: Final = {
    ip_address(ADDRESSES[place][version]): identity
    for place, identity in (("pod", 5), ("pod-b", 7), ("overlay", 9))
    for version in (4, 6)
}
NOBODY: Final = Tables(IDENTITIES)
INGRESS: Final = replace(NOBODY, isolated_ingress=frozenset({7}))
EGRESS: Final = replace(NOBODY, isolated_egress=frozenset({5}))
ALL_PORTS: Final = (0, 65535)


@pytest.fixture(scope="module", autouse=True)
def addressed(links: None) -> None:
    """Each refusal is answered, as if it were the first in a while."""
    address()
    sh("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0")


@pytest.fixture(autouse=True)
def table(addressed: None) -> Iterator[None]:
    """Host ports 8080 and 8081 of all addresses lead to port 80 of pod and
    pod-b.
    """
    apply(Settings(NETWORKS, node_access=ALL, overlay=True))
    with Nftables() as nft:
        nft.apply(host_ports.render_whole())
        for version, bracket in ((4, "{}"), (6, "{}")):
            for place, port in (("pod", 8080), ("pod-b", 8081)):
                own = bracket.format(ADDRESSES[place][version])
                nft.apply(
                    f"add element {TABLE} any{version} {{ tcp . {port} : {own} . 80, "
                    f"udp . {port} : {own} . 80 }}\n"
                    f"add element {TABLE} self{version} {{ {own} . {own} }}"
                )
    conntrack.flush()
    yield
    sh("nft flush ruleset")


def load(tables: Tables, *, policed: bool = True) -> None:
    PolicyKernel().replace(tables, policed=policed)


def world(identity: int, place: str, version: int, *ports: object) -> WorldRange:
    """The address of a place, as of the world."""
    ip = ip_address(ADDRESSES[place][version])
    return WorldRange(identity, ip, ip, *ports)  # type: ignore[arg-type]


def tcp(version: int, source: str, to: str, port: int = 80) -> str:
    """Connect to a server that listens there."""
    with server(version, to, port):
        return try_tcp(source, ADDRESSES[to][version], port)


def udp(version: int, source: str, to: str, port: int = 80) -> str:
    with server(version, to, port, "udp") as answers:
        return try_udp(source, ADDRESSES[to][version], port, answers)


def by_host_port(version: int, source: str, to: str, port: int) -> str:
    with server(version, to, 80):
        return try_tcp(source, ADDRESSES[NODE][version], port)


WAYS: Final = [
    ("pod", "pod-b"),
    ("pod", "overlay"),
    ("overlay", "pod"),
    ("pod", "up0"),
    ("pod", NODE),
    (NODE, "pod"),
]


@FAMILIES
@pytest.mark.parametrize("policed", [False, True])
def test_whom_no_policy_is_about_reaches_all(version: int, policed: bool) -> None:
    """Without policies also those whose tables are left; marks are touched only
    with policies.
    """
    load(NOBODY if policed else replace(EGRESS, isolated_ingress=frozenset({5})), policed=policed)
    for source, to in WAYS:
        assert tcp(version, source, to) == "passes", (source, to)
        assert udp(version, source, to) == "passes", (source, to)
    assert ping("pod", ADDRESSES["pod-b"][version])
    assert by_host_port(version, "up0", "pod-b", 8081) == "passes"
    found = {mark for _, mark in marks()}
    both = {5 << 16 | 7, 5 << 16 | 9, 9 << 16 | 5, 5 << 16, 7, 0}
    assert found == (both if policed else {0})


@FAMILIES
def test_ingress(version: int) -> None:
    """From whatever source but the node; the other direction is free."""
    load(INGRESS)
    for source in ("pod", "overlay"):
        assert tcp(version, source, "pod-b") == "reset"
        assert udp(version, source, "pod-b") == "prohibited"
        assert not ping(source, ADDRESSES["pod-b"][version])
    assert by_host_port(version, "up0", "pod-b", 8081) == "reset"
    assert by_host_port(version, "pod", "pod-b", 8081) == "reset"
    assert tcp(version, NODE, "pod-b") == "passes"
    assert udp(version, NODE, "pod-b") == "passes"
    assert ping(NODE, ADDRESSES["pod-b"][version])
    for to in ("pod", "overlay", "up0", NODE):
        assert tcp(version, "pod-b", to) == "passes"
        assert udp(version, "pod-b", to) == "passes"
    assert counters().keys() & {"policy_ingress", "policy_egress"} == {"policy_ingress"}


@FAMILIES
def test_egress(version: int) -> None:
    """To whatever destination, the node's services too."""
    load(EGRESS)
    for to in ("pod-b", "overlay", "up0", NODE):
        assert tcp(version, "pod", to) == "reset"
        assert udp(version, "pod", to) == "prohibited"
    for to in ("pod-b", "overlay", NODE):
        assert not ping("pod", ADDRESSES[to][version])
    assert by_host_port(version, "pod", "pod-b", 8081) == "reset"
    for source in ("pod-b", "overlay", NODE):
        assert tcp(version, source, "pod") == "passes"
    assert by_host_port(version, "up0", "pod", 8080) == "passes"
    assert counters().keys() & {"policy_ingress", "policy_egress"} == {"policy_egress"}


@FAMILIES
@pytest.mark.parametrize("isolated", [INGRESS, EGRESS])
def test_pairs(version: int, isolated: Tables) -> None:
    """Each kind opens what it says, and no more."""
    load(replace(isolated, pairs=frozenset({(5, 7)})))
    assert tcp(version, "pod", "pod-b") == udp(version, "pod", "pod-b") == "passes"
    assert ping("pod", ADDRESSES["pod-b"][version])
    load(replace(isolated, pairs=frozenset({(7, 5), (5, 9), (9, 7)})))
    assert tcp(version, "pod", "pod-b") == "reset"

    def ports(first: int, last: int) -> None:
        allowed = PairPorts(5, 7, Protocol.TCP, first, last)
        load(replace(isolated, pair_ports=frozenset({allowed})))

    for span in (ALL_PORTS, (80, 80), (79, 81), (80, 90), (70, 80)):
        ports(*span)
        assert tcp(version, "pod", "pod-b") == "passes"
        assert udp(version, "pod", "pod-b") == "prohibited"
        assert not ping("pod", ADDRESSES["pod-b"][version])
    for span in ((79, 79), (81, 90), (70, 79)):
        ports(*span)
        assert tcp(version, "pod", "pod-b") == "reset"


@FAMILIES
def test_the_world_from_inside(version: int) -> None:
    """By address, with and without ports; the node is a part of it."""
    for to in ("up0", NODE):
        load(replace(EGRESS, world_egress=frozenset({world(5, to, version)})))
        assert tcp(version, "pod", to) == udp(version, "pod", to) == "passes"
        assert ping("pod", ADDRESSES[to][version])
        for ports in (ALL_PORTS, (80, 80), (10, 100)):
            allowed = world(5, to, version, Protocol.UDP, *ports)
            load(replace(EGRESS, world_egress=frozenset({allowed})))
            assert udp(version, "pod", to) == "passes"
            assert tcp(version, "pod", to) == "reset"
        refused = [
            world(5, to, version, Protocol.TCP, 81, 90),
            world(7, to, version),
            world(5, "pod-b", version),
        ]
        load(replace(EGRESS, world_egress=frozenset(refused)))
        assert tcp(version, "pod", to) == "reset"
        load(replace(EGRESS, world_ingress=frozenset({world(5, to, version)})))
        assert tcp(version, "pod", to) == "reset"


@FAMILIES
def test_the_world_from_outside(version: int) -> None:
    """By the client's true address, and the port of the workload."""

    def reached(*allowed: WorldRange) -> str:
        load(replace(INGRESS, world_ingress=frozenset(allowed)))
        return by_host_port(version, "up0", "pod-b", 8081)

    assert reached(world(7, "up0", version)) == "passes"
    assert reached(world(7, "up0", version, Protocol.TCP, 80, 80)) == "passes"
    assert reached(world(7, "up0", version, Protocol.TCP, 8081, 8081)) == "reset"
    assert reached(world(7, "up0", version, Protocol.UDP, 80, 80)) == "reset"
    assert reached(world(5, "up0", version), world(7, NODE, version)) == "reset"
    assert reached() == "reset"


@FAMILIES
def test_a_prefix_does_not_open_a_peer(version: int) -> None:
    """What the source may do with the world is not about workloads."""
    everything = ("0.0.0.0", "255.255.255.255") if version == 4 else ("::", "f" * 4 + ":ffff" * 7)
    first, last = map(ip_address, everything)
    both = replace(EGRESS, isolated_ingress=frozenset({7}))
    load(replace(both, world_egress=frozenset({WorldRange(5, first, last)})))
    assert tcp(version, "pod", "up0") == "passes"
    assert tcp(version, "pod", NODE) == "passes"
    assert tcp(version, "pod", "pod-b") == "reset"
    load(replace(both, world_ingress=frozenset({WorldRange(7, first, last)})))
    assert by_host_port(version, "up0", "pod-b", 8081) == "passes"
    assert tcp(version, "overlay", "pod-b") == "reset"


@FAMILIES
def test_a_workload_reaches_itself(version: int) -> None:
    """By a port of the node, also if nothing else is allowed."""
    closed = frozenset({5, 7})
    load(replace(NOBODY, isolated_egress=closed, isolated_ingress=closed))
    assert by_host_port(version, "pod", "pod", 8080) == "passes"
    assert tcp(version, "pod", "pod") == "passes"
    assert by_host_port(version, "pod", "pod-b", 8081) == "reset"


@FAMILIES
def test_a_workload_that_is_not_known_yet(version: int) -> None:
    """Nothing passes but the node's own, while there are policies."""
    known = {ip: identity for ip, identity in IDENTITIES.items() if identity != 7}
    load(Tables(known, isolated_egress=frozenset({9})))
    for source, to in (("pod", "pod-b"), ("pod-b", "pod"), ("pod-b", "up0"), ("pod-b", NODE)):
        assert tcp(version, source, to) == "reset", (source, to)
    assert by_host_port(version, "up0", "pod-b", 8081) == "reset"
    assert tcp(version, NODE, "pod-b") == "passes"
    assert by_host_port(version, "pod-b", "pod-b", 8081) == "passes"
    assert tcp(version, "pod", "up0") == "passes"
    assert set(counters()) & {"policy_unknown", "policy_egress"} == {"policy_unknown"}


@FAMILIES
def test_neighbour_discovery_passes(version: int) -> None:
    """Else an isolated workload could not reach what it is allowed to."""
    load(replace(EGRESS, pairs=frozenset({(5, 7)})))
    sh("nsenter --net=/run/netns/n-pod ip neigh flush dev eth0")
    assert tcp(version, "pod", "pod-b") == "passes"


@FAMILIES
@pytest.mark.parametrize("direction", ["isolated_egress", "isolated_ingress"])
@pytest.mark.parametrize("who", [5, 7])
def test_tcp_of_no_flow(version: int, direction: str, who: int) -> None:
    """Either end counts, in either direction; without policies it passes."""
    mine, other = ADDRESSES["pod"][version], ADDRESSES["pod-b"][version]
    allowed = frozenset({(5, 7), (7, 5)})
    kinds = [
        packets.ACK, packets.ACK | packets.PSH, packets.SYN | packets.ACK, packets.FIN | packets.ACK
    ]  # fmt: skip
    with taps("pod", "pod-b") as (pod, neighbour):
        isolated: dict[str, Any] = {direction: frozenset({who})}
        for tables, passes in (
            (replace(NOBODY, pairs=allowed, **isolated), False),
            (replace(NOBODY, isolated_egress=frozenset({9})), True),
        ):
            conntrack.flush()
            load(tables)
            before = counters().get("policy_not_syn", 0)
            for port, flags in enumerate(kinds, 100):
                pod.send(packets.tcp(mine, other, (port, 90), flags))
            pod.send(packets.tcp(mine, other, (99, 91), packets.SYN))
            got = neighbour.frames()
            seen: list[int] = []
            while not seen or seen[-1] != 91:
                found = packets.parse(next(got)[1])
                if found.protocol == packets.TCP:
                    seen.append(found.ports[1])
            # conntrack itself refuses a SYN-ACK, and the rules what it refuses.
            assert (90 in seen) is passes
            assert (counters().get("policy_not_syn", 0) > before) is not passes


@FAMILIES
def test_others_bits_of_marks(version: int) -> None:
    """The packet's mark survives from prerouting to postrouting; conntrack's is
    not touched on flows that are no workload's.
    """
    with Nftables() as nft:
        nft.apply(
            "table inet others {\n"
            "  chain before { type filter hook prerouting priority mangle;"
            " meta iifgroup 8 meta mark set 0xdeadcafe; }\n"
            "  chain foreign { type filter hook output priority 0; ct mark set 0x77; }\n"
            "  counter kept { }\n  counter lost { }\n"
            "  chain after { type filter hook postrouting priority srcnat; meta iifgroup 8"
            " jump { meta mark 0xdeadcafe counter name kept return; counter name lost; }; }\n}"
        )
    load(replace(EGRESS, pairs=frozenset({(5, 7)})))
    assert tcp(version, "pod", "pod-b") == "passes"
    assert tcp(version, "pod-b", "up0") == "passes"
    assert tcp(version, NODE, "up0") == "passes"
    found = counters()
    assert "lost" not in found
    assert found["kept"] >= 4
    own = ip_address(ADDRESSES[NODE][version]).packed
    assert {mark for source, mark in marks() if source == own} == {0x77}


@FAMILIES
def test_errors_are_not_answered(version: int) -> None:
    """Neither those of a flow, which pass, nor those of none."""
    load(replace(EGRESS, isolated_ingress=frozenset({7}), pairs=frozenset({(5, 7)})))
    mine, other = ADDRESSES["pod"][version], ADDRESSES["pod-b"][version]
    with taps("pod", "pod-b") as (pod, neighbour):
        asked = packets.udp(mine, other, (1000, 2000), b"known")
        pod.send(asked)
        neighbour.until(b"known")
        neighbour.send(packets.port_unreachable(other, asked))
        pod.until(b"known")
        stranger = packets.udp(mine, other, (3, 4), b"stranger")
        neighbour.send(packets.port_unreachable(other, stranger))
        pod.send(packets.udp(mine, other, (1000, 2000), b"after"))
        got = neighbour.until(b"after")
    assert all(one.protocol == packets.UDP for one in got)


@FAMILIES
def test_flows_that_exist_go_on(version: int) -> None:
    """Without looks into sets: also when nothing is allowed any more."""
    load(replace(EGRESS, pairs=frozenset({(5, 7)})))
    with server(version, "pod-b", 80) as listener:
        client = connect("pod", ADDRESSES["pod-b"][version], 80)
        peer, _ = listener.accept()
        with client, peer:
            load(EGRESS)
            for one, other in ((client, peer), (peer, client)):
                one.sendall(b"on")
                assert other.recv(10) == b"on"
        assert try_tcp("pod", ADDRESSES["pod-b"][version], 80) == "reset"


def test_rules_are_put_back_and_elements_stay() -> None:
    load(replace(EGRESS, pairs=frozenset({(5, 7)})))
    kernel = PolicyKernel()
    loaded = kernel.read()
    sh(f"nft flush table {TABLE}")
    with Nftables() as nft:
        nft.apply(host_ports.render())
    assert kernel.read() == loaded
    assert kernel.policed()
    assert tcp(4, "pod", "pod-b") == "passes"
    assert tcp(4, "pod", "up0") == "reset"


def test_the_number_of_sets_is_constant() -> None:
    """Each costs every program on the node that uses nft."""
    text = sh("nft --stateless list ruleset")
    part = text[text.index(f"table {TABLE}") :]
    named = part.count("\tset ") + part.count("\tmap ")
    unnamed = len(re.findall(r"^\t\t(?!elements).*{ ", part, re.MULTILINE))
    assert named + unnamed <= 25
