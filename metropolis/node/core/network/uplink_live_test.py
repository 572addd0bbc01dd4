# SPDX-License-Identifier: Apache-2.0
"""The uplink on a real link, beside a server with odd leases and programs that
take things away.

this namespace: up0 ----- veth ----- srv0: namespace "srv", 192.0.2.1
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface
from pathlib import Path

import pytest
from google.protobuf import text_format

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from metropolis.node.core.network.testing.uplinks import Node, running, until
from osbase.net.config import Dhcp4, Interface, Problems, interface
from osbase.net.dhcp4.packet import Option
from osbase.net.dhcp4.testserver import Server
from osbase.net.spec import net_pb2
from osbase.test.namespaces import LIMIT_S, inside, sh

ROUTER = IPv4Address("192.0.2.1")
BY_DHCP = Interface("up0", dhcp4=Dhcp4())
BY_HAND = Interface(
    "up0",
    addresses=(ip_interface("192.0.2.7/24"), ip_interface("2001:db8::7/64")),
    gateways=(ROUTER, ip_address("2001:db8::1")),
    dns=(ip_address("192.0.2.53"),),
)


def srv(command: str) -> str:
    """Run a command in the server's namespace."""
    return sh(f"nsenter --net=/run/netns/srv {command}")


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    """The link and the server's namespace."""
    sh("ip netns add srv")
    add_link()
    sysctls.apply(sysctls.NODE)
    sh("ip link set lo up")  # tables of routes come with it
    yield
    for link in json.loads(sh("ip -json link")):
        if link["ifname"].startswith("up"):
            subprocess.run(["ip", "link", "del", link["ifname"]], check=False)
    sh("ip netns del srv")


def add_link() -> None:
    sh("ip link add up0 address 02:00:00:00:00:07 type veth peer name srv0 netns srv")
    srv("ip address add 192.0.2.1/24 dev srv0")
    srv("ip address add 2001:db8::1/64 dev srv0 nodad")
    srv("ip link set srv0 up")


@contextlib.contextmanager
def leases(options: dict[int, bytes | None]) -> Iterator[Server]:
    """A server of 192.0.2.50, renewed each 2 s."""
    server = Server("srv0", ROUTER, IPv4Address("192.0.2.50"), 60, 2, 50, options=options)
    with inside("srv"):
        server.open()
    with server:
        yield server


def link(name: str = "up0") -> dict[str, object]:
    (found,) = json.loads(sh(f"ip -json link show dev {name}"))
    assert isinstance(found, dict)
    return found


def addresses(version: int = 4) -> set[str]:
    """The global ones, with prefix lengths."""
    return {
        f"{one['local']}/{one['prefixlen']}"
        for entry in json.loads(sh(f"ip -json -{version} address show dev up0 scope global"))
        for one in entry.get("addr_info", [])
        if one  # "{}" for each that is not shown
    }


def default_routes(version: int = 4) -> list[str]:
    return [
        f"{one.get('gateway')} {one['protocol']}"
        for one in json.loads(sh(f"ip -json -{version} route show default dev up0"))
    ]


_OURS = f"{ROUTER} {allocs.ROUTE_PROTOCOL_UPLINK}"


@pytest.mark.parametrize(
    ("options", "address", "router"),
    [
        ({Option.SUBNET_MASK: None}, "192.0.2.50/24", ROUTER),
        ({Option.SUBNET_MASK: b"\0\0\0\0"}, "192.0.2.50/24", ROUTER),
        ({Option.SUBNET_MASK: b"\xff\xff\0\xff"}, "192.0.2.50/32", ROUTER),
        ({Option.SUBNET_MASK: b"\xff\xff\xff\xff"}, "192.0.2.50/32", ROUTER),
        (
            {Option.ROUTER: IPv4Address("169.254.1.1").packed, Option.SUBNET_MASK: b"\xff" * 4},
            "192.0.2.50/32",
            IPv4Address("169.254.1.1"),
        ),
        ({Option.ROUTER: IPv4Address("192.0.2.50").packed}, "192.0.2.50/24", None),
        (
            {Option.ROUTER: IPv4Address("192.0.2.50").packed + ROUTER.packed},
            "192.0.2.50/24",
            ROUTER,
        ),
        ({Option.ROUTER: None}, "192.0.2.50/24", None),
        ({Option.LEASE_TIME: None}, "192.0.2.50/24", ROUTER),
        ({Option.LEASE_TIME: b"\xff" * 4}, "192.0.2.50/24", ROUTER),
        ({Option.SERVER_ID: None}, "192.0.2.50/24", ROUTER),
        ({Option.INTERFACE_MTU: (68).to_bytes(2)}, "192.0.2.50/24", ROUTER),
    ],
)
async def test_odd_leases_work(
    options: dict[int, bytes | None], address: str, router: IPv4Address | None, tmp_path: Path
) -> None:
    """The kernel takes them, and a look finds nothing to put back."""
    with leases(options):
        async with running(BY_DHCP, tmp_path) as node:
            await node.has(address)
            assert addresses() == {address}
            ours = f"{router} {allocs.ROUTE_PROTOCOL_UPLINK}"
            assert default_routes() == ([ours] if router is not None else [])
            assert await node.keys() == set()


async def test_name_servers_that_cannot_be_written(tmp_path: Path) -> None:
    """The address does not need them; a look says so, and writes them later."""
    there = tmp_path / "resolv.conf"
    there.mkdir()
    async with running(BY_HAND, tmp_path) as node:
        await node.has("192.0.2.7/24")
        assert default_routes() == [_OURS]
        assert ["Is a directory" in one.error for one in await node.look()] == [True]
        there.rmdir()
        assert await node.keys() == {f"file {there}"}
        assert there.is_file()


@pytest.mark.parametrize("gateway", ["172.31.1.1", "fd00:1::1"])
async def test_a_gateway_beside_a_single_address(gateway: str, tmp_path: Path) -> None:
    """By hand, as providers of single addresses have it."""
    version = ip_address(gateway).version
    own = {4: "203.0.113.5/32", 6: "2001:db8:5::1/128"}[version]
    text = f'name: "up0" static {{ address: "{own}" gateway: "{gateway}" }}'
    problems = Problems()
    config = interface(text_format.Parse(text, net_pb2.Interface()), "uplink", problems)
    assert not problems.found
    async with running(config, tmp_path) as node:
        await node.has(own)
        ours = f"{gateway} {allocs.ROUTE_PROTOCOL_UPLINK}"
        assert default_routes(version) == [ours]
        assert await node.keys() == set()
        sh(f"ip -{version} route flush dev up0 proto {allocs.ROUTE_PROTOCOL_UPLINK}")
        assert len(await node.keys()) == 2
        assert default_routes(version) == [ours]


async def mtu_of(node: Node, mtu: int) -> None:
    await node.when(lambda now: now.link is not None and now.link.mtu == mtu)


def marks() -> list[str]:
    found = link().get("altnames", [])
    assert isinstance(found, list)
    return [name for name in found if name.startswith(allocs.UPLINK_MTU_MARK)]


async def test_an_mtu_that_is_withdrawn(tmp_path: Path) -> None:
    """At a renewal, and by a larger one; what was before comes back."""
    sh("ip link set up0 mtu 1450")
    with leases({Option.INTERFACE_MTU: (1400).to_bytes(2)}) as server:
        async with running(BY_DHCP, tmp_path) as node:
            await mtu_of(node, 1400)
            assert [name.split(".")[1] for name in marks()] == ["1450"]
            server.options = {Option.INTERFACE_MTU: (1300).to_bytes(2)}
            await mtu_of(node, 1300)
            server.options = {Option.INTERFACE_MTU: (1420).to_bytes(2)}
            await mtu_of(node, 1420)
            server.options = {Option.INTERFACE_MTU: (9000).to_bytes(2)}
            await mtu_of(node, 1450)
            await until(lambda: not marks())
            server.options = {Option.INTERFACE_MTU: (1400).to_bytes(2)}
            await mtu_of(node, 1400)
            server.options = {}
            await mtu_of(node, 1450)


async def test_an_mtu_that_is_withdrawn_while_the_service_is_away(tmp_path: Path) -> None:
    with leases({Option.INTERFACE_MTU: (1400).to_bytes(2)}) as server:
        for _ in range(2):
            async with running(BY_DHCP, tmp_path) as node:
                await mtu_of(node, 1400)
        assert [name.split(".")[1] for name in marks()] == ["1500"]
        server.options = {}
        async with running(BY_DHCP, tmp_path) as node:
            await mtu_of(node, 1500)
            await node.has("192.0.2.50/24")
            await until(lambda: not marks())


async def test_a_smaller_mtu_is_kept_against_others(tmp_path: Path) -> None:
    with leases({Option.INTERFACE_MTU: (1400).to_bytes(2)}):
        async with running(BY_DHCP, tmp_path) as node:
            await node.has("192.0.2.50/24")
            await mtu_of(node, 1400)
            sh("ip link set up0 mtu 1500")
            assert await node.keys() == {"MTU of up0"}
            assert link()["mtu"] == 1400
            assert await node.keys() == set()


ADDRESSES = {"address 192.0.2.7/24", "address 2001:db8::7/64"}
ROUTES = {"route 0.0.0.0/0", "route ::/0"}
LINK_LOCAL = "link-local address of up0"


def state() -> list[list[str]]:
    """All addresses and routes, in any order, be they sure or not."""
    commands = ("ip -o address show dev up0", "ip route show", "ip -6 route show")
    return [
        sorted(word for word in sh(command).split() if word not in ("nodad", "tentative"))
        for command in commands
    ]


@pytest.mark.parametrize(
    ("command", "put_back"),
    [
        ("ip address flush dev up0", {*ADDRESSES, "route 0.0.0.0/0", LINK_LOCAL}),
        ("ip -4 address flush dev up0", {"address 192.0.2.7/24", "route 0.0.0.0/0"}),
        ("ip -6 address flush dev up0", {"address 2001:db8::7/64", LINK_LOCAL}),
        ("ip address del 192.0.2.7/24 dev up0", {"address 192.0.2.7/24", "route 0.0.0.0/0"}),
        ("ip -4 route flush proto 76", {"route 0.0.0.0/0"}),
        ("ip -6 route flush proto 76", {"route ::/0"}),
        ("ip -4 route flush table main", {"route 192.0.2.0/24", "route 0.0.0.0/0"}),
        ("ip -6 route flush table main", {"route 2001:db8::/64", "route fe80::/64", "route ::/0"}),
        ("ip route replace default via 192.0.2.9 metric 100", {"route 0.0.0.0/0"}),
        ("ip address change 192.0.2.7/24 dev up0 valid_lft 99 preferred_lft 99", ADDRESSES),
        ("ip link set up0 down", {"link up0", *ROUTES, "address 2001:db8::7/64"}),
        ("sysctl net.ipv6.conf.up0.accept_ra=2", {"sysctl net.ipv6.conf.up0.accept_ra"}),
        (
            "sysctl net.ipv6.conf.up0.disable_ipv6=1",
            {
                "sysctl net.ipv6.conf.up0.disable_ipv6",
                "address 2001:db8::7/64",
                "route ::/0",
            },
        ),
        ("sysctl net.ipv4.conf.up0.rp_filter=1", {"sysctl net.ipv4.conf.up0.rp_filter"}),
        # The rules would take it for a pod's, and masquerade nothing.
        (f"ip link set up0 group {allocs.LINK_GROUP_WORKLOAD}", {"group of up0"}),
        (f"ip link set up0 group {allocs.LINK_GROUP_OVERLAY}", {"group of up0"}),
    ],
)
async def test_what_others_take_is_put_back(
    command: str, put_back: set[str], tmp_path: Path
) -> None:
    """By one look, and the next finds nothing."""
    async with running(BY_HAND, tmp_path) as node:
        await node.has("192.0.2.7/24")
        assert await node.keys() == set()
        before = state()
        if command.startswith("sysctl "):
            path, value = command.removeprefix("sysctl ").split("=")
            await asyncio.to_thread(Path("/proc/sys", *path.split(".")).write_text, value)
        else:
            sh(command)
        # A lifetime is changed of one, and noticed of one.
        expected = {"address 192.0.2.7/24"} if "valid_lft" in command else put_back
        assert await node.keys() == expected
        assert await node.keys() == set()
        assert addresses(4) == {"192.0.2.7/24"}
        assert addresses(6) == {"2001:db8::7/64"}
        assert default_routes(4) == [_OURS]
        assert default_routes(6) == [f"2001:db8::1 {allocs.ROUTE_PROTOCOL_UPLINK}"]
        assert state() == before
        assert link()["group"] == "default"


async def test_a_lease_is_put_back_for_the_rest_of_its_time(tmp_path: Path) -> None:
    with leases({}):
        async with running(BY_DHCP, tmp_path) as node:
            await node.has("192.0.2.50/24")
            sh("ip address flush dev up0")
            assert {"address 192.0.2.50/24", "route 0.0.0.0/0"} <= await node.keys()
            (found,) = json.loads(sh("ip -json -4 address show dev up0"))
            assert 0 < found["addr_info"][0]["valid_life_time"] <= 60
            assert default_routes() == [_OURS]


async def test_a_restart_without_a_server(tmp_path: Path) -> None:
    """Until one answers, the lease of before stays; the link is kept all the
    same.
    """
    with leases({}) as server:
        async with running(BY_DHCP, tmp_path) as node:
            await node.has("192.0.2.50/24")
        server.silent = True
        while not server.seen.empty():
            server.seen.get()
        async with running(BY_DHCP, tmp_path) as node:
            asked = await asyncio.to_thread(server.seen.get, True, LIMIT_S)
            assert asked.requested == server.address
            await node.has("192.0.2.50/24")
            assert await node.keys() == set()
            assert addresses() == {"192.0.2.50/24"}
            sh("ip link set up0 down")
            await asyncio.to_thread(Path("/proc/sys/net/ipv4/conf/up0/rp_filter").write_text, "1")
            setting = "sysctl net.ipv4.conf.up0.rp_filter"
            assert await node.keys() == {"link up0", setting, "route 0.0.0.0/0"}
            server.silent = False
            await until(lambda: server.seen.qsize() > 1)
            assert await node.keys() == set()


async def test_what_a_former_run_had_and_a_server_that_is_away(tmp_path: Path) -> None:
    """Its lease is put back for the rest of its time, with MTU and names; what
    is by hand is as it is configured now, and does not wait.
    """
    options: dict[int, bytes | None] = {
        Option.DNS: bytes([192, 0, 2, 53]),
        Option.DOMAIN_NAME: b"example.org",
        Option.INTERFACE_MTU: (1400).to_bytes(2),
    }
    with leases(options):
        async with running(BY_DHCP, tmp_path) as node:
            await node.has("192.0.2.50/24")
            await mtu_of(node, 1400)
    config = replace(
        BY_DHCP,
        addresses=(ip_interface("2001:db8::8/64"),),
        dns=(ip_address("2001:db8::53"),),
    )
    async with running(config, tmp_path) as node:
        status = await node.has("2001:db8::8/64")
        assert ip_interface("192.0.2.50/24") in status.addresses
        assert list(map(str, status.dns)) == ["2001:db8::53", "192.0.2.53"]
        assert "search example.org" in node.resolv_conf.read_text()
        assert await node.keys() == set()
        sh("ip address flush dev up0 scope global")
        sh("ip link set up0 mtu 1500")
        repaired = await node.keys()
        assert {"address 192.0.2.50/24", "route 0.0.0.0/0", "MTU of up0"} <= repaired
        assert addresses() == {"192.0.2.50/24"}
        assert addresses(6) == {"2001:db8::8/64"}
        assert default_routes() == [_OURS]
        assert link()["mtu"] == 1400
        (found,) = json.loads(sh("ip -json -4 address show dev up0"))
        assert 0 < found["addr_info"][0]["valid_life_time"] <= 60
        ours = f"proto {allocs.ROUTE_PROTOCOL_UPLINK}"
        sh(f"ip address change 192.0.2.50/24 dev up0 {ours} valid_lft 4 preferred_lft 4")
    async with running(config, tmp_path) as node:
        await node.has("2001:db8::8/64")
        await node.when(lambda now: len(now.addresses) == 1)
        await until(lambda: not addresses())
        await mtu_of(node, 1500)
        assert await node.keys() == set()
        assert "example.org" not in node.resolv_conf.read_text()


async def test_what_is_not_allowed_is_left(tmp_path: Path) -> None:
    """It is reported; the rest is put back."""
    async with running(BY_HAND, tmp_path) as node:
        await node.has("192.0.2.7/24")
        sh("ip -4 route flush proto 76")
        sh("ip -6 route flush proto 76")
        repairs = await node.look("route 0.0.0.0/0")
        assert {one.key: one.left for one in repairs} == {
            "route 0.0.0.0/0": True,
            "route ::/0": False,
        }
        assert default_routes(4) == []
        assert await node.keys() == {"route 0.0.0.0/0"}


async def test_what_is_put_back_before_an_error_counts(tmp_path: Path) -> None:
    """As with a directory in the place of resolv.conf: else who counts never
    hears of the rest, and a fight has no end.
    """
    async with running(BY_HAND, tmp_path) as node:
        await node.has("192.0.2.7/24")
        node.resolv_conf.unlink()
        (node.resolv_conf / "busy").mkdir(parents=True)
        sh("ip -4 address flush dev up0")
        *done, last = await node.look()
        assert {one.key for one in done} == {"address 192.0.2.7/24", "route 0.0.0.0/0"}
        assert not any(one.error for one in done)
        assert "Is a directory" in last.error
        (node.resolv_conf / "busy").rmdir()
        node.resolv_conf.rmdir()


async def test_what_is_refused_is_said(tmp_path: Path) -> None:
    """The gateway cannot be reached without the address."""
    async with running(BY_HAND, tmp_path) as node:
        await node.has("192.0.2.7/24")
        sh("ip -4 address flush dev up0")
        repairs = {one.key: one for one in await node.look("address 192.0.2.7/24")}
        assert repairs["address 192.0.2.7/24"].left
        assert "add route 0.0.0.0/0" in repairs["route 0.0.0.0/0"].error


async def test_name_servers_are_put_back(tmp_path: Path) -> None:
    async with running(BY_HAND, tmp_path) as node:
        await node.has("192.0.2.7/24")
        wanted = node.resolv_conf.read_text()
        assert "nameserver 192.0.2.53" in wanted
        node.resolv_conf.write_text("nameserver 6.6.6.6\n")
        assert await node.keys() == {f"file {node.resolv_conf}"}
        assert node.resolv_conf.read_text() == wanted
        node.resolv_conf.unlink()
        assert await node.keys() == {f"file {node.resolv_conf}"}
        assert node.resolv_conf.read_text() == wanted


@contextlib.contextmanager
def router(tmp_path: Path) -> Iterator[None]:
    """Advertises; by itself once in ten minutes."""
    with inside("srv"):
        Path("/proc/sys/net/ipv6/conf/srv0/forwarding").write_text("1")
    command = [
        *("nsenter", "--net=/run/netns/srv", "dnsmasq", "--keep-in-foreground"),
        *("--conf-file=/dev/null", "--port=0", "--user=root", "--group=", "--pid-file="),
        *("--interface=srv0", "--log-facility=-", f"--dhcp-leasefile={tmp_path}/leases"),
        *("--enable-ra", "--dhcp-range=2001:db8::,ra-only", "--ra-param=srv0,600,1800"),
    ]
    with (tmp_path / "dnsmasq.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
            assert server.poll() is None, (tmp_path / "dnsmasq.log").read_text()
        finally:
            server.terminate()
            server.wait(LIMIT_S)


async def settled(node: Node) -> None:
    """Wait until the router's address and route are there, and a look looks:
    the kernel may be faster than the uplink.
    """
    await until(lambda: bool(addresses(6) and default_routes(6)))
    ward = node.uplink.ward()
    await until(lambda: ward.aim is not None and ward.aim.addressing is not None)


@pytest.mark.parametrize(
    "command",
    [
        "ip -6 address flush dev up0",
        "ip -6 address flush dev up0 scope global",
        "ip -6 route flush proto ra",
    ],
)
async def test_router_advertisements_are_asked_for_again(command: str, tmp_path: Path) -> None:
    """An uplink by router advertisements alone: no DHCP, nothing by hand."""
    with router(tmp_path):
        async with running(Interface("up0"), tmp_path) as node:
            await settled(node)
            assert await node.keys() == set()
            sh(command)
            (key,) = await node.keys()
            assert key in {LINK_LOCAL, "router advertisements on up0"}
            await settled(node)
            assert await node.keys() == set()


TAKEN_OF_ROUTERS = ("accept_ra_defrtr", "accept_ra_pinfo", "autoconf", "router_solicitations")


async def test_what_is_taken_of_routers(tmp_path: Path) -> None:
    """As guides to hardening have it for all links that are made later, and as
    others set it while it runs.
    """

    def refuse(name: str) -> None:
        for one in TAKEN_OF_ROUTERS:
            Path("/proc/sys/net/ipv6/conf", name, one).write_text("0")

    await asyncio.to_thread(refuse, "up0")
    sh(f"ip link set up0 group {allocs.LINK_GROUP_WORKLOAD}")
    with router(tmp_path):
        async with running(Interface("up0"), tmp_path) as node:
            await settled(node)
            assert link()["group"] == "default"
            assert await node.keys() == set()
            await asyncio.to_thread(refuse, "up0")
            assert await node.keys() == {f"sysctl net.ipv6.conf.up0.{n}" for n in TAKEN_OF_ROUTERS}
            assert await node.keys() == set()


async def test_routers_that_are_silent_are_not_asked_for_ever(tmp_path: Path) -> None:
    with router(tmp_path):
        async with running(Interface("up0"), tmp_path) as node:
            await settled(node)
            assert await node.keys() == set()
            sh("nft add table inet quiet")
            sh("nft add chain inet quiet in { type filter hook prerouting priority 0 ; }")
            sh("nft add rule inet quiet in icmpv6 type nd-router-advert drop")
            try:
                sh("ip -6 address flush dev up0 scope global")
                sh("ip -6 route flush proto ra")
                asked = [bool(await node.keys()) for _ in range(6)]
                assert asked == [True, True, True, False, False, False]
            finally:
                sh("nft delete table inet quiet")


async def test_a_link_that_is_renamed(tmp_path: Path) -> None:
    """As udev does: the uplink follows, when it is not chosen by the name."""
    with leases({}):
        config = Interface(dhcp4=Dhcp4(), hardware_address=bytes.fromhex("020000000007"))
        async with running(config, tmp_path) as node:
            await node.has("192.0.2.50/24")
            sh("ip link set up0 name up7")
            status = await node.when(
                lambda now: now.link is not None and now.link.name == "up7" and bool(now.addresses)
            )
            assert [str(one) for one in status.addresses] == ["192.0.2.50/24"]
            # The server's answer to the new client may put it back first, once.
            found: list[set[str]] = []
            for _ in range(3):
                sh("ip -4 address flush dev up7")
                found.append(await node.keys())
            assert any("address 192.0.2.50/24" in keys for keys in found), found


async def test_a_link_that_comes_back(tmp_path: Path) -> None:
    """With another index; nothing is put back on the one that is gone."""
    with leases({}):
        async with running(BY_DHCP, tmp_path) as node:
            await node.has("192.0.2.50/24")
            sh("ip link del up0")
            await node.when(lambda now: now.link is None)
            assert await node.look() == ()
    add_link()
    with leases({}):
        async with running(BY_DHCP, tmp_path) as node:
            await node.has("192.0.2.50/24")


async def test_another_mac(tmp_path: Path) -> None:
    """Another client to the server, with the same link."""
    with leases({}) as server:
        async with running(BY_DHCP, tmp_path) as node:
            await node.has("192.0.2.50/24")
            sh("ip link set up0 address 02:00:00:00:00:08")
            server.address = IPv4Address("192.0.2.51")
            await node.has("192.0.2.51/24")
            assert addresses() == {"192.0.2.51/24"}
