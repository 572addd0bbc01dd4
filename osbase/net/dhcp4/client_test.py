# SPDX-License-Identifier: Apache-2.0
"""The client against a real server (dnsmasq) in another namespace.

this namespace: up0 ----- veth ----- srv0: namespace "srv", dnsmasq
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from osbase import event
from osbase.net.dhcp4 import Client, Lease
from osbase.net.dhcp4.packet import Type
from osbase.net.dhcp4.testserver import Seen, Server
from osbase.netlink import netns

MAC = bytes.fromhex("020000000007")
SERVER = IPv4Address("192.0.2.1")
_LIMIT_S = 60


def sh(command: str) -> None:
    """Run a command without a shell; an error contains its output."""
    subprocess.run(command.split(), check=True, capture_output=True, timeout=_LIMIT_S)


@pytest.fixture
def link() -> Iterator[None]:
    """A veth between here and the server's namespace."""
    sh("ip netns add srv")
    try:
        sh("ip link add up0 address 02:00:00:00:00:07 type veth peer name srv0 netns srv")
        sh("nsenter --net=/run/netns/srv ip address add 192.0.2.1/24 dev srv0")
        sh("nsenter --net=/run/netns/srv ip link set srv0 up")
        sh("ip link set up0 up")
        yield
    finally:
        sh("ip netns del srv")
        subprocess.run(["ip", "link", "del", "up0"], check=False, capture_output=True)


@contextlib.contextmanager
def dnsmasq(tmp_path: Path, addresses: str, *options: str) -> Iterator[None]:
    """Run a server; its renewal time is 10 s, the shortest that it sends."""
    command = [
        *(
            "nsenter",
            "--net=/run/netns/srv",
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
        ),
        *("--port=0", "--user=root", "--group=", "--no-ping", "--dhcp-authoritative"),
        *("--pid-file=", "--interface=srv0", "--bind-interfaces", "--log-facility=-"),
        f"--dhcp-leasefile={tmp_path}/leases",
        f"--dhcp-range={addresses},255.255.255.0,120",
        *("--dhcp-option=58,10", "--dhcp-option=59,100"),
        *("--dhcp-option=option:dns-server,192.0.2.53", "--domain=example.org"),
        *options,
    ]
    with (tmp_path / "dnsmasq.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
            assert server.poll() is None, (tmp_path / "dnsmasq.log").read_text()
        finally:
            server.terminate()
            server.wait(_LIMIT_S)


@contextlib.asynccontextmanager
async def client(hint: IPv4Address | None = None) -> AsyncIterator[event.Value[Lease | None]]:
    """A running client's leases."""
    value = event.Value[Lease | None]("lease")
    running = asyncio.create_task(Client("up0", MAC, value, hint=hint).run())
    try:
        async with asyncio.timeout(_LIMIT_S):
            yield value
    finally:
        if running.done():
            running.result()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_obtains_and_renews(link: None, tmp_path: Path) -> None:
    """A lease, and a renewal that keeps the address."""
    with dnsmasq(tmp_path, "192.0.2.50,192.0.2.50", "--dhcp-option=option:mtu,1400"):
        async with client() as leases:
            watcher = leases.watch()
            first = await watcher.get()
            assert first is not None
            assert first.address == IPv4Interface("192.0.2.50/24")
            assert first.routes == ((IPv4Network("0.0.0.0/0"), SERVER),)
            assert first.dns == (IPv4Address("192.0.2.53"),)
            assert (first.search, first.mtu, first.length_s) == (("example.org",), 1400, 120)
            assert 9 <= first.renew_s <= 10
            sh("ip address replace 192.0.2.50/24 dev up0")  # unicast needs it
            renewed = await watcher.get()
            assert renewed is not None
            assert renewed.address == first.address
            assert renewed.start > first.start


async def test_waits_for_the_server(link: None, tmp_path: Path) -> None:
    """The server starts after the client's first discover was lost."""
    async with client() as leases:
        await asyncio.sleep(0)  # the client's start is its first discover
        with dnsmasq(tmp_path, "192.0.2.50,192.0.2.99"):
            assert await leases.watch().get() is not None


async def test_asks_for_the_address_of_a_former_run(link: None, tmp_path: Path) -> None:
    """It asks for the address that is on the link, and gets it if free."""
    with dnsmasq(tmp_path, "192.0.2.50,192.0.2.99"):
        async with client(hint=IPv4Address("192.0.2.77")) as leases:
            lease = await leases.watch().get()
            assert lease is not None
            assert lease.address.ip == IPv4Address("192.0.2.77")


async def test_loses_what_the_server_takes_back(
    link: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server with another range refuses the renewal: the lease is lost, then
    there is another. A late reader sees only the new one.
    """
    async with client() as leases:
        watcher = leases.watch()
        with dnsmasq(tmp_path, "192.0.2.50,192.0.2.50"):
            first = await watcher.get()
            assert first is not None
        (tmp_path / "leases").unlink()
        with dnsmasq(tmp_path, "192.0.2.60,192.0.2.60"):
            other = IPv4Address("192.0.2.60")
            await watcher.get(lambda lease: lease is not None and lease.address.ip == other)
        assert f"the server took back {first.address}" in caplog.text


async def test_classless_routes_override_the_router(link: None, tmp_path: Path) -> None:
    """Both are sent; the router does not count (RFC 3442)."""
    options = (
        "--dhcp-option=option:router,192.0.2.66",
        "--dhcp-option=option:classless-static-route,10.0.0.0/8,192.0.2.9,0.0.0.0/0,192.0.2.1",
    )
    with dnsmasq(tmp_path, "192.0.2.50,192.0.2.50", *options):
        async with client() as leases:
            lease = await leases.watch().get()
            assert lease is not None
            assert lease.routes == (
                (IPv4Network("10.0.0.0/8"), IPv4Address("192.0.2.9")),
                (IPv4Network("0.0.0.0/0"), SERVER),
            )


@contextlib.contextmanager
def short_leases() -> Iterator[Server]:
    """Leases of 8 s: renewed after 2, rebound after 5."""
    address = IPv4Address("192.0.2.50")
    home, there = netns.open_current(), netns.open_path("/run/netns/srv")
    server = Server("srv0", SERVER, address, lease_s=8, renew_s=2, rebind_s=5)
    try:
        with netns.Inside(there, home):
            server.open()
        with server:
            yield server
    finally:
        os.close(home)
        os.close(there)


async def next_seen(server: Server) -> Seen:
    return await asyncio.to_thread(server.seen.get, True, _LIMIT_S)


async def test_renews_rebinds_and_ends(link: None) -> None:
    """On a real clock: renewal by unicast, then by broadcast, then the end."""
    with short_leases() as server:
        async with client() as leases:
            watcher = leases.watch()
            first = await watcher.get()
            assert first is not None
            # The first message on a new link may be lost, and is sent again.
            while (await next_seen(server)).message.kind is not Type.REQUEST:
                pass
            sh("ip address replace 192.0.2.50/24 dev up0")  # unicast needs it
            renewal = await next_seen(server)
            assert renewal.unicast
            assert renewal.message.client == server.address
            server.silent = True
            last = await watcher.get()
            assert last is not None
            assert last.start == pytest.approx(first.start + 2, abs=1)
            assert (await next_seen(server)).unicast
            rebinding = await next_seen(server)
            assert not rebinding.unicast
            assert rebinding.message.client == server.address
            assert await watcher.get() is None
            ended = asyncio.get_running_loop().time()
            assert last.end is not None
            assert ended >= last.end
            discover = await next_seen(server)
            assert discover.message.kind is Type.DISCOVER
            assert discover.requested == server.address
            # It answers again, with another address.
            server.address = IPv4Address("192.0.2.51")
            server.silent = False
            other = await watcher.get()
            assert other is not None
            assert other.address == IPv4Interface("192.0.2.51/24")


async def test_rebinding_is_answered(link: None) -> None:
    """The lease continues, although unicasts are lost."""
    with short_leases() as server:
        async with client() as leases:
            watcher = leases.watch()
            assert await watcher.get() is not None
            server.silent = True
            while (await next_seen(server)).message.client != server.address:
                pass
            server.silent = False  # after the renewal, which is not repeated
            rebound = await watcher.get()
            assert rebound is not None
            assert rebound.address.ip == server.address


async def test_refused_reboot_is_followed_by_a_discover(link: None) -> None:
    """The address of an earlier run now belongs to another host."""
    with short_leases() as server:
        async with client(hint=IPv4Address("192.0.2.77")) as leases:
            reboot = await next_seen(server)
            assert (reboot.message.kind, reboot.unicast) == (Type.REQUEST, False)
            assert reboot.requested == IPv4Address("192.0.2.77")
            discover = await next_seen(server)
            while discover.message.kind is Type.REQUEST:  # sent again
                discover = await next_seen(server)
            assert (discover.message.kind, discover.requested) == (Type.DISCOVER, None)
            lease = await leases.watch().get()
            assert lease is not None
            assert lease.address.ip == server.address


async def test_survives_garbage(link: None, tmp_path: Path) -> None:
    """Garbage arrives at its port, before and while it has a lease."""
    noise = [
        b"",
        b"\0" * 300,
        b"\x02\x01\x06\x00" + b"\xff" * 296,
        b"\x02\x01\x06\x00" + b"\0" * 232 + b"\x63\x82\x53\x63" + b"\x35",
        b"\x02\x01\x06\x00" + b"\0" * 232 + b"\x63\x82\x53\x63" + b"\xff" * 60,
        b"\xff" * 1400,
    ]

    def shout() -> None:
        script = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n"
            "s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'srv0')\n"
            "for data in map(bytes.fromhex, sys.argv[1:]):\n"
            "    [s.sendto(data, ('255.255.255.255', 68)) for _ in range(50)]\n"
        )
        subprocess.run(
            ["nsenter", "--net=/run/netns/srv", "python3", "-c", script, *(n.hex() for n in noise)],
            check=True,
            timeout=_LIMIT_S,
        )

    async with client() as leases:
        await asyncio.to_thread(shout)
        with dnsmasq(tmp_path, "192.0.2.50,192.0.2.50"):
            watcher = leases.watch()
            assert await watcher.get() is not None
            await asyncio.to_thread(shout)
            sh("ip address replace 192.0.2.50/24 dev up0")
            assert await watcher.get() is not None


async def test_link_down_and_up(link: None, tmp_path: Path) -> None:
    """A link that is down is not an error; then there is a lease again."""
    value = event.Value[Lease | None]("lease")
    dhcp = Client("up0", MAC, value)
    with dnsmasq(tmp_path, "192.0.2.50,192.0.2.50"):
        running = asyncio.create_task(dhcp.run())
        async with asyncio.timeout(_LIMIT_S):
            watcher = value.watch()
            await watcher.get()
            sh("ip link set up0 down")
            sh("ip link set up0 up")
            dhcp.link_came_up()
            lease = await watcher.get()
            assert lease is not None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_link_that_is_gone_is_an_error() -> None:
    """The error has operation, link and errno."""
    with pytest.raises(OSError, match="open a packet socket on up9: ENODEV"):
        await Client("up9", MAC, event.Value[Lease | None]("lease")).run()


async def test_no_socket_is_left_behind(link: None) -> None:
    """A cancelled client closes what it opened."""
    before = _packet_sockets()
    async with client():
        await asyncio.sleep(0)
        assert _packet_sockets() == before + 1
    assert _packet_sockets() == before


def _packet_sockets() -> int:
    assert socket.AF_PACKET
    return len(Path("/proc/net/packet").read_text().splitlines())
