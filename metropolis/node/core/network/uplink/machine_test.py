# SPDX-License-Identifier: Apache-2.0
"""An uplink of a VLAN on a bond, in a machine: its effect on neighbours.

    here                 "net"
    vlan7
    bond0 -- m0 ---- p0 [left]  left0 ---- l0
             m1 ---- p1 [right] right0 --- r0  [core] core.7: 192.0.2.1

Three bridges: `core` learns by which of the other two the node is reached, and
only the node informs it of a change.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from metropolis.node.core.network.testing.uplinks import running, until
from osbase.net.config import Bond, BondMode, Dhcp4, Interface, Vlan
from osbase.net.dhcp4.packet import Option, Type
from osbase.net.dhcp4.testserver import Server
from osbase.test.namespaces import LIMIT_S, inside, sh

NODE = {4: IPv4Address("192.0.2.7"), 6: IPv6Address("2001:db8::7")}
ROUTER = IPv4Address("192.0.2.1")
PORT = 7777
BOND = Bond(BondMode.ACTIVE_BACKUP, ("m0", "m1"), primary="m0")
CONFIG = Interface(
    bond=BOND,
    vlan=Vlan(7, "vlan7"),
    mtu=1400,
    addresses=(ip_interface("192.0.2.7/24"), ip_interface("2001:db8::7/64")),
    gateways=(ROUTER,),
    dns=(ip_address("192.0.2.53"),),
    search=("example.org",),
)


def net(command: str) -> str:
    """Run a command in the network's namespace."""
    return sh(f"ip netns exec net {command}")


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    """The bridges, and the node's ports, down."""
    sh("ip netns add net")
    for bridge in ("left", "right", "core"):
        net(f"ip link add {bridge} type bridge")
        net(f"ip link set {bridge} up")
    for one, other, low, high in (
        ("left0", "l0", "left", "core"),
        ("right0", "r0", "right", "core"),
    ):
        net(f"ip link add {one} type veth peer name {other}")
        for name, master in ((one, low), (other, high)):
            net(f"ip link set {name} master {master}")
            net(f"ip link set {name} up")
    for number, bridge in ((0, "left"), (1, "right")):
        sh(f"ip link add m{number} type veth peer name p{number} netns net")
        net(f"ip link set p{number} master {bridge}")
        net(f"ip link set p{number} up")
    net("ip link add link core name core.7 type vlan id 7")
    net(f"ip address add {ROUTER}/24 dev core.7")
    net("ip address add 2001:db8::1/64 dev core.7 nodad")
    net("ip link set core.7 up")
    sysctls.apply(sysctls.NODE)
    yield
    for name in ("bond0", "m0", "m1"):
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
    sh("ip netns del net")


class Heard:
    """Announcements on a link of the network, with their time."""

    def __init__(self, link: str) -> None:
        with inside("net"):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._socket.bind((link, 3))
        self._socket.settimeout(LIMIT_S)
        self.times: list[tuple[float, IPv4Address | IPv6Address]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = self._socket.recv(2048)
                # The tag is not in the data (it is in the auxiliary data).
                kind = int.from_bytes(data[12:14])
                if kind == 0x0806 and data[28:32] == data[38:42]:
                    self.times.append((time.monotonic(), IPv4Address(data[28:32])))
                elif kind == 0x86DD and data[20] == 58 and data[54] == 136 and data[58] & 0x20:
                    self.times.append((time.monotonic(), IPv6Address(data[62:78])))

    def since(self, begin: float, version: int) -> int:
        """Return how many times the node's address was announced."""
        return sum(at >= begin and one == NODE[version] for at, one in self.times)

    def close(self) -> None:
        self._socket.close()


class Stream:
    """Numbered datagrams from the router to the node, 5 ms apart, without
    answers. The number of lost ones says more than times: the machine may be
    emulated.
    """

    def __init__(self) -> None:
        self._in = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in.bind(("", PORT))
        self._in.settimeout(0.5)
        with inside("net"):
            self._out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._ended = threading.Event()
        self.arrivals: list[int] = []
        self._threads = [threading.Thread(target=one) for one in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        for number in itertools.count():
            self._out.sendto(number.to_bytes(4), (str(NODE[4]), PORT))
            if self._ended.wait(0.005):
                return

    def _receive(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                self.arrivals.append(int.from_bytes(self._in.recv(16)))

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._in.close()
        self._out.close()

    def lost(self, seen: int) -> int:
        """Return how many did not arrive after the first `seen` ones."""
        after = self.arrivals[seen - 1 :]
        return after[-1] - after[0] + 1 - len(after)


def active() -> str:
    return Path("/sys/class/net/bond0/bonding/active_slave").read_text().strip()


async def taken_over(name: str, then: str, stream: Stream, heard: Heard) -> None:
    """Set the port of m0 down or up, and check that another member takes over.

    It is far from `core`, which uses the old path until it is informed.
    """
    begin, before = time.monotonic(), len(stream.arrivals)
    net(f"ip link set p0 {name}")
    await until(lambda: active() == then)
    seen = len(stream.arrivals)
    await until(lambda: len(stream.arrivals) > seen + 100)
    await until(lambda: heard.since(begin, 4) >= 3 and heard.since(begin, 6) >= 1)
    print(
        f"m0 {name}, {then} takes over: {stream.lost(before)} datagrams lost, 5 ms apart; "
        f"{heard.since(begin, 4)} ARP, {heard.since(begin, 6)} NA"
    )


def carrier_changes() -> dict[str, str]:
    return {
        name: Path("/sys/class/net", name, "carrier_changes").read_text()
        + Path("/sys/class/net", name, "ifindex").read_text()
        for name in ("bond0", "m0", "m1", "vlan7")
    }


async def test_failover_and_restart(tmp_path: Path) -> None:
    """The other member takes over, since the network is informed; a new run of
    the service changes nothing.
    """
    logging.basicConfig(level=logging.INFO)
    with contextlib.ExitStack() as closing:
        heard = Heard("core.7")
        closing.callback(heard.close)
        begin = time.monotonic()
        async with running(CONFIG, tmp_path) as node:
            status = await node.when(
                lambda found: len(found.external) == 2 and bool(found.addresses)
            )
            assert status.external == (NODE[4], NODE[6])
            assert status.link is not None
            assert (status.link.name, status.link.mtu) == ("vlan7", 1400)
            assert (status.dns, status.search) == (CONFIG.dns, CONFIG.search)
            assert "search example.org" in (tmp_path / "resolv.conf").read_text()
            # A static address on a link that is up: announced twice, 2 s apart.
            await until(lambda: min(heard.since(begin, v) for v in (4, 6)) >= 2)
            print(f"address set: {heard.since(begin, 4)} ARP, {heard.since(begin, 6)} NA")
            await until(lambda: active() == "m0")

            stream = Stream()
            closing.callback(stream.close)
            await until(lambda: len(stream.arrivals) > 100)
            for name, then in (("down", "m1"), ("up", "m0")):
                await taken_over(name, then, stream, heard)

        before = carrier_changes()
        seen = len(stream.arrivals)
        async with running(CONFIG, tmp_path) as node:
            await node.when(lambda found: len(found.external) == 2)
            await until(lambda: len(stream.arrivals) > seen + 200)
            assert stream.lost(seen) == 0
        assert carrier_changes() == before


async def test_late_member_and_another_configuration(tmp_path: Path) -> None:
    """It waits for a first member; a VLAN that is not wanted any more goes."""
    sh("ip link del m0")
    sh("ip link set m1 name x1")
    config = replace(CONFIG, vlan=None, bond=replace(BOND, members=("m1", "m2"), primary=""))
    async with running(CONFIG, tmp_path) as node:
        assert (await node.when(lambda _: True)).link is None
        sh("ip link set x1 name m1")
        await node.when(lambda found: found.external == (NODE[4], NODE[6]))
    async with running(config, tmp_path) as node:
        status = await node.when(lambda found: found.external == (NODE[4], NODE[6]))
        assert status.link is not None
        assert status.link.name == "bond0"
        assert "vlan7" not in sh("ip link")
        assert f"group {allocs.LINK_GROUP_UPLINK} " in sh("ip link show bond0")


async def test_dhcp_over_it(tmp_path: Path) -> None:
    """The lease's MTU counts where none is configured; when all ports come back
    the address is confirmed, and announced.
    """
    address = IPv4Address("192.0.2.50")
    mtu: dict[int, bytes] = {Option.INTERFACE_MTU: (1300).to_bytes(2)}
    server = Server("core.7", ROUTER, address, 600, 300, 500, options=mtu)
    with inside("net"):
        server.open()
    config = Interface(bond=BOND, vlan=CONFIG.vlan, dhcp4=Dhcp4("node-1"))
    with server:
        async with running(config, tmp_path) as node:
            await node.when(
                lambda found: (
                    found.external == (address,)
                    and found.link is not None
                    and found.link.mtu == 1300
                )
            )
            await until(lambda: active() == "m0")
            begin = time.monotonic()
            for port in ("p0", "p1"):
                net(f"ip link set {port} down")
            await node.when(lambda found: found.link is not None and not found.link.carrier)
            while not server.seen.empty():
                server.seen.get()
            heard = Heard("core.7")
            net("ip link set p1 up")
            await node.when(lambda found: found.link is not None and found.link.carrier)
            seen = await asyncio.to_thread(server.seen.get, True, LIMIT_S)
            assert (seen.message.kind, seen.requested) == (Type.REQUEST, address)
            await until(lambda: [one for _, one in heard.times].count(address) >= 2)
            heard.close()
            print(f"all ports lost and back: {time.monotonic() - begin:.1f} s with announcements")
        async with running(replace(config, mtu=1400), tmp_path) as node:
            await node.when(
                lambda found: (
                    found.external == (address,)
                    and found.link is not None
                    and found.link.mtu == 1400
                    and bool(found.addresses)
                )
            )
