# SPDX-License-Identifier: Apache-2.0
"""New flows of a workload, and flows that are not tracked.

The attacker is a pod that begins flows as fast as it can.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules.base import render
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.lab import (
    FAMILY,
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
from metropolis.node.core.network.rules.testing.packets import ACK, SYN
from osbase.netlink import netns
from osbase.test.namespaces import LIMIT_S, sh

pytestmark = pytest.mark.usefixtures("links")

FAMILIES = pytest.mark.parametrize("version", [4, 6])
RATE = 10
SLOW = Settings(NETWORKS, new_flows_per_second=RATE)


def entries() -> int:
    """Return the number of conntrack's flows."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


@FAMILIES
@pytest.mark.parametrize("to", ["world", "pod", "node"])
def test_a_workload_begins_no_more_flows_than_its_rate(version: int, to: str) -> None:
    """For any protocol and destination; its older flow continues, and another
    workload begins flows.
    """
    apply(SLOW)
    target = {"world": WORLD, "pod": POD_B, "node": {v: near(v, "up0") for v in (4, 6)}}[to]
    mine, other = POD[version], POD_B[version]
    with taps("pod", "pod-b", "up0") as (pod, neighbour, world):
        pod.send(packets.udp(mine, WORLD[version], (500, 500), b"before"))
        world.until(b"before")
        start = entries()
        sent = 300
        for port in range(1, sent + 1):
            kinds = [
                packets.udp(mine, target[version], (port, 7), b"flood"),
                packets.tcp(mine, target[version], (port, 8), SYN),
                packets.tcp(mine, target[version], (port, 9), ACK),
                packets.echo(mine, target[version], b"flood", number=port),
            ]
            pod.send(kinds[port % 4])
        pod.send(packets.udp(mine, WORLD[version], (500, 500), b"goes-on"))
        world.until(b"goes-on")
        made = entries() - start
        neighbour.send(packets.udp(other, WORLD[version], (600, 7), b"another"))
        world.until(b"another")
    # The burst, and those that a slow machine has time for.
    assert made <= sent // 2
    dropped = counters()["new_flow_rate"]
    assert sent // 2 <= dropped < sent


@FAMILIES
def test_a_stream_that_is_not_answered_is_one_flow(version: int) -> None:
    """Each of its packets is `new` to conntrack."""
    apply(SLOW)
    with taps("pod", "up0") as (pod, world):
        for number in range(200):
            pod.send(packets.udp(POD[version], WORLD[version], (700, 7), b"stream-%d;" % number))
        got = world.until(b"stream-199;")
    assert len(got) == 200
    assert "new_flow_rate" not in counters()


def test_nobody_refuses_a_link_for_ever() -> None:
    """Nor those of another program, which does not close its end."""
    apply(Settings(NETWORKS))
    sh("nft add element inet metropolis refused_links { lo }")
    assert "lo expires " in sh("nft list set inet metropolis refused_links").replace('"', "")


@FAMILIES
def test_links_that_are_refused_begin_nothing(version: int) -> None:
    """For as long as conntrack's guard says; also over an update of the rules.
    Their older flows continue, and new flows to them are answered.
    """
    apply(Settings(NETWORKS))
    index = socket.if_nametoindex("pod")
    rules = RuleSet(Settings(NETWORKS))
    mine, to = POD[version], WORLD[version]
    with taps("pod", "pod-b", "up0") as (pod, neighbour, world):
        pod.send(packets.udp(mine, to, (800, 7), b"before"))
        asked = world.until(b"before")[-1]
        sh(f"nft add element inet metropolis refused_links {{ {index} timeout 1h }}")
        rules.update(new_flows_per_second=999)
        pod.send(packets.udp(mine, to, (801, 7), b"refused"))
        pod.send(packets.udp(mine, to, (800, 7), b"goes-on"))
        neighbour.send(packets.udp(POD_B[version], to, (801, 7), b"another"))
        got = {one.data[-7:] for one in world.until(b"another")}
        assert got == {b"goes-on", b"another"}
        world.send(packets.udp(to, asked.source, asked.ports[::-1], b"answer"))
        pod.until(b"answer")
        assert counters()["conntrack_offender"] == 1
        sh(f"nft delete element inet metropolis refused_links {{ {index} }}")
        pod.send(packets.udp(mine, to, (801, 7), b"again"))
        world.until(b"again")


@FAMILIES
def test_wireguard_is_not_tracked(version: int) -> None:
    """In either direction, at the node's own port; all others are tracked."""
    apply(Settings(NETWORKS, overlay=True))
    own, peer = near(version, "up0"), near(version, "up0", 2)
    with taps("up0") as (world,):
        for port, tracked in ((allocs.WIREGUARD_PORT, 0), (allocs.WIREGUARD_PORT + 1, 1)):
            with node_socket(version, port) as node:
                before = entries()
                node.sendto(b"out", (peer, 9))
                world.until(b"out")
                assert entries() - before == tracked
                before = entries()
                world.send(packets.udp(peer, own, (10, port), b"into"))
                assert received(node, b"into") == [b"into"]
                assert entries() - before == tracked


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup of version 2 at nft's place, if the machine lets us make one."""
    root = Path("/sys/fs/cgroup")
    try:
        os.unshare(os.CLONE_NEWCGROUP)
    except OSError as error:
        pytest.skip(f"unshare cgroups: {error}; tests of the whole node have it")
    done = subprocess.run(["mount", "-t", "cgroup2", "cgroup2", root], check=False)
    path = root / f"metropolis-test-{os.getpid()}"
    try:
        if done.returncode == 0:
            path.mkdir()
    except OSError as error:
        pytest.skip(f"make a cgroup: {error}; tests of the whole node have it")
    finally:
        if not path.is_dir():
            subprocess.run(["umount", root], check=False, capture_output=True)
    if done.returncode != 0:
        pytest.skip("mount cgroup2: refused; tests of the whole node have it")
    try:
        yield path.name
    finally:
        path.rmdir()
        sh(f"umount {root}")


@FAMILIES
def test_connections_of_a_cgroup_are_not_tracked(version: int, cgroup: str) -> None:
    """By socket: another process's flow to the same port is tracked."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("32768 60999")
    RuleSet(Settings(NETWORKS, cgroup=cgroup)).apply(fresh=True)
    script = f"""
import socket, sys, pathlib
if sys.argv[1] == "in":
    pathlib.Path("/sys/fs/cgroup/{cgroup}/cgroup.procs").write_text("0")
s = socket.create_connection((sys.argv[2], 2379), {LIMIT_S})
assert s.recv(100) == b"hello"
s.send(b"bye")
s.close()  # first: the peer's FIN comes to what is left of a socket
"""
    server_address = near(version, "up0", 9)
    with _served(version, server_address) as listener:
        for place, tracked in (("in", 0), ("out", 1)):
            before = entries()
            client = subprocess.Popen([sys.executable, "-c", script, place, server_address])
            peer, (_, peer_port, *_) = listener.accept()
            peer.settimeout(LIMIT_S)
            with peer:
                peer.send(b"hello")
                assert peer.recv(100) == b"bye"
                assert client.wait(LIMIT_S) == 0
                assert peer.recv(100) == b""
                assert entries() - before == tracked
            assert _ends(peer_port)
    assert not counters().keys() & {"invalid_tcp", "invalid"}


def _ends(port: int) -> bool:
    """Whether the server's end of a connection is acknowledged to be closed."""
    command = f"nsenter --net=/run/netns/n-up0 ss -Htan dport = :{port}"
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if not sh(command).strip():
            return True
    return False


@contextlib.contextmanager
def _served(version: int, address: str) -> Iterator[socket.socket]:
    """A TCP server in the namespace behind up0."""
    inside = "nsenter --net=/run/netns/n-up0 ip"
    bits, nodad = (24, "") if version == 4 else (64, "nodad")
    sh(f"{inside} address add {address}/{bits} dev eth0 {nodad}")
    home = netns.open_current()
    there = os.open("/run/netns/n-up0", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netns.Inside(there, home):
            listener = socket.socket(FAMILY[version])
        with listener:
            listener.settimeout(LIMIT_S)
            listener.bind((address, 2379))
            listener.listen()
            yield listener
    finally:
        os.close(home)
        os.close(there)
        sh(f"{inside} address del {address}/{bits} dev eth0")


def test_without_its_cgroup_there_are_rules_all_the_same() -> None:
    """nft refuses a path that does not exist."""
    RuleSet(Settings(NETWORKS, cgroup="no/such")).apply()
    assert "cgroupv2" not in sh("nft list ruleset")


def test_an_update_keeps_what_is_counted() -> None:
    """Counters, rates and refused links stay; another layout is replaced, and
    nothing of it stays; damage by others is repaired.
    """
    rules = RuleSet(SLOW)
    rules.apply(fresh=True)
    with taps("pod", "up0") as (pod, world):
        pod.send(*(packets.udp(WORLD[4], POD_B[4], (9, 9), b"forged") for _ in range(3)))
        pod.send(packets.udp(POD[4], WORLD[4], (9, 9), b"honest"))
        world.until(b"honest")
    assert counters()["spoofed_ipv4"] == 3
    changes: tuple[dict[str, Any], ...] = (
        {"networks": ()},
        {"networks": NETWORKS[:1]},
        {"networks": NETWORKS[1:], "routed_pods": True, "strict": ((4, "up0"),)},
        {"networks": NETWORKS, "routed_pods": False, "strict": ()},
    )
    for change in changes:
        rules.update(**change)
        assert counters()["spoofed_ipv4"] == 3
        listed = sh("nft list set inet metropolis pods_ipv4")
        assert ("10.200.0.0/16" in listed) is (NETWORKS[1] in change["networks"])
        assert "expires" in sh("nft list set inet metropolis new_flows")
    updated = sh("nft --stateless list ruleset")
    rules.apply(fresh=True)
    assert "spoofed_ipv4" not in counters()
    assert _without_elements(sh("nft --stateless list ruleset")) == _without_elements(updated)


def _without_elements(listing: str) -> str:
    """Elements by link come and go."""
    lines = (line.partition("#")[0].rstrip() for line in listing.splitlines())
    return "\n".join(
        line for line in lines if "limit rate over 10/second burst 20 packets }" not in line
    )


BROKEN = {
    "flushed": "flush ruleset",
    "no table": "delete table inet metropolis",
    "no ARP": "delete table arp metropolis",
    "no chain": "flush chain inet metropolis leaving; delete chain inet metropolis leaving",
    "no rules": "flush table inet metropolis",
    "an older layout": "destroy table inet metropolis; table inet metropolis {"
    " set pods_ipv4 { type ipv4_addr; flags interval; auto-merge; };"
    " chain pods_enter { type filter hook prerouting priority -299; policy drop; }; }",
    "another set of the name": "destroy table inet metropolis; table inet metropolis {"
    " set pods_ipv4 { type ipv6_addr; }; }",
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_others_broke_is_mended(how: str) -> None:
    """In any state, and in one transaction."""
    rules = RuleSet(Settings(NETWORKS))
    rules.apply(fresh=True)
    whole = sh("nft --stateless list ruleset")
    sh_nft(BROKEN[how])
    assert sh("nft --stateless list ruleset") != whole
    rules.apply()
    assert _sorted(sh("nft --stateless list ruleset")) == _sorted(whole)


def _sorted(listing: str) -> list[str]:
    """A chain that was made again is the last."""
    return sorted(line for line in listing.splitlines() if line.strip())


def sh_nft(text: str) -> None:
    """Run nft with a text."""
    subprocess.run(["nft", text], check=True, timeout=LIMIT_S)


def test_the_price_of_a_rule_set_is_constant() -> None:
    """With more networks the same rules, with more settings a few more."""
    many = tuple(ip_network(f"10.{n}.0.0/16") for n in range(0, 200, 2))
    few = render(replace(SLOW, networks=many[:1]))
    assert few.count("\n") == render(replace(SLOW, networks=many)).count("\n")
