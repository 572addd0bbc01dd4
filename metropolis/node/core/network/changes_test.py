# SPDX-License-Identifier: Apache-2.0
"""The whole node core, while it restarts and its uplink changes.

The namespaces are those of service_test.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import struct
import threading
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from metropolis.node.core.network.testing.datagrams import (
    PORT,
    SERVER,
    heard,
    listen,
    listen_here,
    node_address,
)
from metropolis.node.core.network.testing.nodecore import NodeCore, add_uplink, dnsmasq
from metropolis.node.core.network.workloads.spec import workload_pb2
from osbase.net.dhcp4.testserver import Server
from osbase.test.namespaces import LIMIT_S, inside, sh


class Chatter:
    """Numbered datagrams from a workload to the server and back, without
    pause, so that any interruption of traffic is a missing number.
    """

    def __init__(self, version: int) -> None:
        """Open the sockets."""
        self._server = listen("srv", version, 7000 + version)
        self._pod = listen("pod-a", version, 0)
        self._target = (str(SERVER[version]), 7000 + version)
        self._asked = threading.Event()
        self._stop = threading.Event()
        self.sent = 0
        self.lost: list[int] = []  # their numbers
        self._threads = [threading.Thread(target=self._echo), threading.Thread(target=self._talk)]

    def _echo(self) -> None:
        while not self._asked.is_set():
            if select.select([self._server], [], [], 0.1)[0]:
                data, source = self._server.recvfrom(100)
                self._server.sendto(data, source)

    def _talk(self) -> None:
        while not self._stop.wait(0.01):
            number = struct.pack("!I", self.sent)
            self._pod.sendto(number, self._target)
            self.sent += 1
            while True:
                if not select.select([self._pod], [], [], 2)[0]:
                    self.lost.append(self.sent - 1)
                    break
                if self._pod.recv(100) == number:
                    break

    def __enter__(self) -> Chatter:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the workload first: its last datagram is answered."""
        echo, talk = self._threads
        self._stop.set()
        talk.join(LIMIT_S)
        self._asked.set()
        echo.join(LIMIT_S)
        self._server.close()
        self._pod.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restart_does_not_touch_traffic(
    uplink: None, core: NodeCore, number: signal.Signals
) -> None:
    """Not one datagram of either family is lost, and addresses stay."""
    core.start()
    core.wait_for("up0 has 192.0.2.50/24")
    first = core.attach("pod-a")
    for version in (4, 6):
        with listen("srv", version) as server, listen("pod-a", version, 0) as pod:
            heard(server, pod, SERVER[version], PORT)
    addresses = {version: node_address(version) for version in (4, 6)}
    with Chatter(4) as four, Chatter(6) as six:
        for _ in range(2):
            status = core.stop(number)
            assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)
            core.start()
            core.wait_for("up0 has 192.0.2.50/24")
    assert (four.lost, six.lost) == ([], [])
    assert min(four.sent, six.sent) > 20
    assert {version: node_address(version) for version in (4, 6)} == addresses
    listed = core.stub().List(workload_pb2.ListRequest(), timeout=LIMIT_S).attachments
    assert [attachment.workload_id for attachment in listed] == ["pod-a"]
    assert core.attach("pod-a") == first
    second = core.attach("pod-b")
    assert not set(second.values()) & set(first.values())


def test_uplink_that_appears_late_vanishes_and_returns(
    world: None, core: NodeCore, tmp_path: Path
) -> None:
    """Workloads are served meanwhile; a link's MTU becomes theirs."""
    core.start()
    core.wait_for("waiting for up0 to appear")
    addresses = core.attach("pod-a")
    with listen("pod-a", 4) as pod, listen_here(4, 0) as here:
        heard(pod, here, addresses[4], PORT)

    add_uplink(mtu=1400)
    with dnsmasq(tmp_path):
        core.wait_for("up0 has 192.0.2.50/24")
        core.wait_for("MTU of new workloads is 1400")
        resolv = (core.runtime.parent / "resolv.conf").read_text()
        assert "search example.org" in resolv
        assert resolv.index("2001:db8:2::53") < resolv.index("192.0.2.53")
        core.attach("pod-b")
        (link,) = json.loads(sh("nsenter --net=/run/netns/pod-b ip -json link show eth0"))
        assert link["mtu"] == 1400

        core.seen.clear()
        sh("ip link del up0")
        core.wait_for("up0 is gone")
        core.wait_for("waiting for up0 to appear")
    add_uplink()
    with dnsmasq(tmp_path):
        core.wait_for("up0 has 192.0.2.50/24")
        with listen("srv", 4) as server, listen("pod-a", 4, 0) as pod:
            assert heard(server, pod, SERVER[4], PORT) == IPv4Address("192.0.2.50")


def test_external_addresses_are_told(uplink: None, core: NodeCore) -> None:
    """The lease has one, and so have the router's advertisements."""
    core.start()
    core.wait_for("reachable by 192.0.2.50, 2001:db8:2:")


@pytest.mark.parametrize(
    "suspended_s", [0, 1_000_000], ids=["never suspended", "was suspended before"]
)
def test_a_lease_that_ends(world: None, core: NodeCore, suspended_s: int) -> None:
    """The address goes in time, and masquerading ends. Leases end
    by a clock that counts suspension, and by no other.
    """
    if suspended_s:
        core.prefix = ("unshare", "--time", "--boottime", str(suspended_s))
    add_uplink()
    lease = Server("srv0", IPv4Address("192.0.2.1"), IPv4Address("192.0.2.50"), 8, 2, 5)
    with inside("srv"):
        lease.open()
    with lease:
        core.start()
        core.attach("pod-a")
        with listen("srv", 4) as server, listen("pod-a", 4, 0) as pod:
            assert heard(server, pod, SERVER[4], PORT) == lease.address
            lease.silent = True
            core.wait_for("up0 has no address")
            assert "inet " not in sh("ip -4 address show dev up0")
            assert sh("ip -4 route show default") == ""
            for _ in range(5):
                with contextlib.suppress(OSError):  # there is no route
                    pod.sendto(b"lost", (str(SERVER[4]), PORT))
            with inside("srv"):
                end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with end:
                end.sendto(b"end", (str(SERVER[4]), PORT))
            while (data := server.recv(100)) != b"end":
                assert data == b"hello"  # sent before
            lease.address, lease.silent = IPv4Address("192.0.2.51"), False
            core.wait_for("up0 has 192.0.2.51/24")
            deadline = time.monotonic() + LIMIT_S
            while heard(server, pod, SERVER[4], PORT) != lease.address:
                assert time.monotonic() < deadline


def test_static_uplink(world: None, core: NodeCore) -> None:
    """Both families are static; a former configuration's are removed."""
    add_uplink()
    static = """
    network {{
      uplink {{ name: "up0" static {{
        address: "192.0.2.{n}/24" gateway: "192.0.2.1"
        address: "2001:db8:2::{n}/64" gateway: "2001:db8:2::1" dns: "192.0.2.53"
      }} }}
      pod_prefix: "10.192.0.0/24" pod_prefix: "fd00:10:192::/112"
    }}"""
    for number in (7, 8):
        core.config = static.format(n=number)
        core.start()
        core.wait_for(f"up0 has 192.0.2.{number}/24, 2001:db8:2::{number}/64")
        listing = sh("ip address show dev up0 scope global")
        assert listing.count("inet") == 2, listing
        core.attach("pod-a")
        for version in (4, 6):
            with listen("srv", version) as server, listen("pod-a", version, 0) as pod:
                seen = heard(server, pod, SERVER[version], PORT)
                assert seen == node_address(version)
        assert core.stop() == 0
