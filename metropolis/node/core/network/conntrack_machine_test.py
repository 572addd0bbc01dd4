# SPDX-License-Identifier: Apache-2.0
"""A table that is full, and what of the node works all the same.

    pod -- (group 8) this machine up0 -- world: etcd's port, a WireGuard peer

WireGuard and node core's own connections to etcd are not tracked: by its port,
and by the cgroup of this process. What is tracked is tried too, that the table
is known to be full.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core import cgroup
from metropolis.node.core.network import conntrack as guarding
from metropolis.node.core.network.rules.base import render
from metropolis.node.core.network.rules.settings import Settings
from osbase import conntrack
from osbase.netlink import netns
from osbase.nftables import Nftables

LIMIT = 500
TIMEOUT_S = 30.0
LIMIT_FILE = Path("/proc/sys/net/netfilter/nf_conntrack_max")
# The third byte, and its like, of a link's addresses.
NUMBERS = {"pod": 1, "up0": 2}
HOPS = {4: allocs.FIRST_HOP_IPV4, 6: allocs.FIRST_HOP_IPV6}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
TUNNEL = {4: "10.9.0.", 6: "fd09::"}


def sh(command: str, stdin: str = "") -> str:
    """Run a command without a shell; returns its output."""
    done = subprocess.run(
        command.split(), input=stdin, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def far(name: str) -> str:
    """Run the rest of the command at the far end of a link."""
    return f"ip netns exec n-{name}"


def address(version: int, name: str, host: int) -> str:
    """1: this machine; 2: the far end."""
    number = NUMBERS[name]
    return f"10.1.{number}.{host}" if version == 4 else f"fd01:{number}::{host}"


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Sockets made in the block are of the far end of a link."""
    home, there = netns.open_current(), netns.open_path(f"/run/netns/n-{name}")
    try:
        with netns.Inside(there, home):
            yield
    finally:
        os.close(home)
        os.close(there)


def connect(name: str) -> None:
    """A link, of a workload's group or of none, and its far end."""
    group = allocs.LINK_GROUP_WORKLOAD if name == "pod" else 0
    sh(f"ip netns add n-{name}")
    sh(f"ip link add {name} type veth peer name eth0 netns n-{name}")
    sh(f"ip link set {name} up group {group}")
    sh(f"{far(name)} ip link set eth0 up")
    for version, bits, net, more in ((4, 32, 24, ""), (6, 128, 64, " nodad")):
        own, far_end = address(version, name, 1), address(version, name, 2)
        if name == "up0":
            sh(f"ip address add {own}/{net} dev {name}{more}")
            sh(f"{far(name)} ip address add {far_end}/{net} dev eth0{more}")
            sh(f"{far(name)} ip -{version} route add default via {own}")
            continue
        # A workload asks for the first hop alone.
        hop = HOPS[version]
        if version == 6:
            sh(f"ip address add {hop}/64 dev {name} nodad")
        sh(f"ip -{version} route add {far_end}/{bits} dev {name}")
        sh(f"{far(name)} ip address add {far_end}/{bits} dev eth0{more}")
        sh(f"{far(name)} ip -{version} route add {hop} dev eth0")
        sh(f"{far(name)} ip -{version} route add default via {hop} dev eth0")


def wireguard(before: str, number: int, key: str, peer: str, endpoint: str) -> None:
    """One end of a tunnel; before: how to run commands there."""
    sh(f"{before} ip link add wg0 type wireguard")
    Path("/tmp/key").write_text(key)
    sh(
        f"{before} wg set wg0 listen-port {allocs.WIREGUARD_PORT} private-key /tmp/key "
        f"peer {peer} endpoint {endpoint} allowed-ips 0.0.0.0/0,::/0"
    )
    for version, bits in ((4, 24), (6, 64)):
        sh(f"{before} ip address add {TUNNEL[version]}{number}/{bits} dev wg0")
    sh(f"{before} ip link set wg0 up")


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    """The machine's settings, as node core makes them; links; rules."""
    path = cgroup.own()
    assert path == cgroup.NAME
    assert cgroup.own() == path
    sh(f"ip address add {allocs.FIRST_HOP_IPV4}/32 dev lo")
    for name in NUMBERS:
        connect(name)
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", setting).write_text("1")
    keys = [sh("wg genkey").strip() for _ in range(2)]
    public = [sh("wg pubkey", stdin=key).strip() for key in keys]
    port = allocs.WIREGUARD_PORT
    wireguard("env", 1, keys[0], public[1], f"{address(4, 'up0', 2)}:{port}")
    wireguard(far("up0"), 2, keys[1], public[0], f"{address(4, 'up0', 1)}:{port}")
    with Nftables() as nft:
        nft.apply(render(Settings(overlay=True, cgroup=path, new_flows_per_second=1_000_000)))
        yield


def fill(version: int) -> None:
    """The pod sends to ports until there is no more room."""
    with inside("pod"):
        sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    with sock:
        for port in range(1, 4 * LIMIT):
            sock.sendto(b"x", (address(version, "up0", 2), port))


def listen(version: int) -> socket.socket:
    """Where etcd would be."""
    with inside("up0"):
        return socket.create_server(("", allocs.CURATOR_PORT), family=FAMILY[version])


def reaches(version: int, to: str) -> None:
    """This process connects to etcd's port there, and has an answer."""
    with listen(version) as server, socket.socket(FAMILY[version]) as client:
        client.settimeout(TIMEOUT_S)
        client.connect((to, allocs.CURATOR_PORT))
        served, _ = server.accept()
        with served:
            served.sendall(b"yes")
            assert client.recv(3) == b"yes"


def shake_hands(version: int) -> None:
    """Forget the peer's session: the next packet has to make a new one."""
    peer = sh(f"{far('up0')} wg show wg0 public-key").strip()
    to = address(version, "up0", 2)
    sh(f"wg set wg0 peer {peer} remove")
    sh(
        f"wg set wg0 peer {peer} allowed-ips 0.0.0.0/0,::/0 "
        f"endpoint {f'[{to}]' if version == 6 else to}:{allocs.WIREGUARD_PORT}"
    )


# In a process of its own, that leaves the cgroup before it makes a socket.
STRANGER = """
import os, socket, sys
with open("/sys/fs/cgroup/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
sock = socket.socket(int(sys.argv[1]))
sock.settimeout(2)
sock.connect((sys.argv[2], int(sys.argv[3])))
"""


def test_the_machine_tracks_enough(world: None) -> None:
    """More than a kernel's default for so little memory, with the buckets."""
    guarding.prepare()
    buckets = int(Path("/sys/module/nf_conntrack/parameters/hashsize").read_text())
    assert conntrack.limit() >= 65_536
    assert buckets >= 65_536
    before = conntrack.limit()
    guarding.prepare()
    assert conntrack.limit() == before


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_may_have_an_etcd(world: None, version: int) -> None:
    """Its connection to that port is tracked and masqueraded like any other."""
    with listen(version) as server:
        with inside("pod"):
            client = socket.socket(FAMILY[version])
        with client:
            client.settimeout(TIMEOUT_S)
            client.connect((address(version, "up0", 2), allocs.CURATOR_PORT))
            _, peer = server.accept()
            assert peer[0] == address(version, "up0", 1)


@pytest.mark.parametrize("version", [4, 6])
def test_a_full_table(world: None, version: int) -> None:
    """Node core reaches etcd, WireGuard its peer; another process nobody."""
    LIMIT_FILE.write_text(str(LIMIT))
    fill(version)
    assert conntrack.count() >= LIMIT - 10
    with listen(version):
        command = [sys.executable, "-c", STRANGER, str(int(FAMILY[version]))]
        done = subprocess.run(
            [*command, address(version, "up0", 2), str(allocs.CURATOR_PORT)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert "TimeoutError" in done.stderr
    reaches(version, address(version, "up0", 2))
    shake_hands(version)
    # What goes through the tunnel is of this process, so not tracked either.
    reaches(version, f"{TUNNEL[version]}2")
    assert conntrack.count() >= LIMIT - 10
