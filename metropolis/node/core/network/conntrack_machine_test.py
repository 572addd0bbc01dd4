# SPDX-License-Identifier: Apache-2.0
"""conntrack's table is full, and the node's own connections work all the same.

    pod -- (group 8) this machine up0 -- world: etcd's port, a WireGuard peer

WireGuard and node core's own connections to etcd are not tracked: by its port,
and by the cgroup of this process. What is tracked is tried too, that the table
is known to be full.
"""

from __future__ import annotations

import contextlib
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
from metropolis.node.core.network.testing.farends import FAMILY, address, connect, far
from osbase import conntrack
from osbase.nftables import Nftables
from osbase.test.namespaces import LIMIT_S, sh

LIMIT = 200
LIMIT_FILE = Path("/proc/sys/net/netfilter/nf_conntrack_max")
TUNNEL = {4: "10.9.0.", 6: "fd09::"}


# Before a command: it is run at the far end of the uplink.
AT_FAR_END = "ip netns exec n-up0"


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
    connect(("pod", "up0"))
    keys = [sh("wg genkey").strip() for _ in range(2)]
    public = [sh("wg pubkey", stdin=key).strip() for key in keys]
    port = allocs.WIREGUARD_PORT
    wireguard("env", 1, keys[0], public[1], f"{address(4, 'up0', 2)}:{port}")
    wireguard(AT_FAR_END, 2, keys[1], public[0], f"{address(4, 'up0', 1)}:{port}")
    with Nftables() as nft:
        nft.apply(render(Settings(overlay=True, cgroup=path, new_flows_per_second=1_000_000)))
        yield


@contextlib.contextmanager
def full_table(version: int) -> Iterator[None]:
    """The pod makes connections until there is no more room.

    They are established: of other flows a full table drops one, now and then,
    to make room for a new one (early_drop, and gc_worker above 95 %).
    """
    before = LIMIT_FILE.read_text()
    conntrack.flush()
    with contextlib.ExitStack() as stack:
        stack.callback(LIMIT_FILE.write_text, before)
        LIMIT_FILE.write_text(str(LIMIT))
        with far("up0"):
            server = socket.create_server(("", 7), family=FAMILY[version])
        stack.enter_context(server)
        while conntrack.count() < LIMIT:
            with far("pod"):
                client = stack.enter_context(socket.socket(FAMILY[version]))
            client.settimeout(LIMIT_S)
            client.connect((address(version, "up0"), 7))
            stack.enter_context(server.accept()[0])
        yield


def listen(version: int) -> socket.socket:
    """Where etcd would be."""
    with far("up0"):
        return socket.create_server(("", allocs.CURATOR_PORT), family=FAMILY[version])


def reaches(version: int, to: str) -> None:
    """This process connects to etcd's port there, and has an answer."""
    with listen(version) as server, socket.socket(FAMILY[version]) as client:
        client.settimeout(LIMIT_S)
        client.connect((to, allocs.CURATOR_PORT))
        served, _ = server.accept()
        with served:
            served.sendall(b"yes")
            assert client.recv(3) == b"yes"


def shake_hands(version: int) -> None:
    """Forget the peer's session: the next packet has to make a new one."""
    peer = sh(f"{AT_FAR_END} wg show wg0 public-key").strip()
    to = address(version, "up0")
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
        with far("pod"):
            client = socket.socket(FAMILY[version])
        with client:
            client.settimeout(LIMIT_S)
            client.connect((address(version, "up0"), allocs.CURATOR_PORT))
            _, peer = server.accept()
            assert peer[0] == address(version, "up0", 1)


@pytest.mark.parametrize("version", [4, 6])
def test_a_full_table(world: None, version: int) -> None:
    """Node core reaches etcd, WireGuard its peer; another process nobody."""
    with full_table(version):
        with listen(version):
            command = [sys.executable, "-c", STRANGER, str(int(FAMILY[version]))]
            done = subprocess.run(
                [*command, address(version, "up0"), str(allocs.CURATOR_PORT)],
                capture_output=True,
                text=True,
                check=False,
            )
        assert "TimeoutError" in done.stderr
        reaches(version, address(version, "up0"))
        shake_hands(version)
        # What goes through the tunnel is of this process: not tracked either.
        reaches(version, f"{TUNNEL[version]}2")
        assert conntrack.count() >= LIMIT
