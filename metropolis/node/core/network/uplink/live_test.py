# SPDX-License-Identifier: Apache-2.0
"""The uplink on a real link: odd leases, restarts, and links that change.

this namespace: up0 ----- veth ----- srv0: namespace "srv", 192.0.2.1
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface
from pathlib import Path

import pytest
from google.protobuf import text_format

from metropolis.node import allocs
from metropolis.node.core.network.testing.uplinks import Node, running, until
from metropolis.node.core.network.uplink.testing import (
    BY_DHCP,
    BY_HAND,
    OURS,
    ROUTER,
    add_link,
    addresses,
    default_routes,
    leases,
    link,
)
from osbase.net.config import Dhcp4, Interface, Problems, interface
from osbase.net.dhcp4.packet import Option
from osbase.net.spec import net_pb2
from osbase.test.namespaces import LIMIT_S, sh

pytestmark = pytest.mark.usefixtures("world")


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
    """The kernel accepts them, and a look finds nothing to restore."""
    with leases(options):
        async with running(BY_DHCP, tmp_path) as node:
            await node.has(address)
            assert addresses() == {address}
            ours = f"{router} {allocs.ROUTE_PROTOCOL_UPLINK}"
            assert default_routes() == ([ours] if router is not None else [])
            assert await node.keys() == set()


async def test_name_servers_that_cannot_be_written(tmp_path: Path) -> None:
    """The address does not need them; a look reports and later writes them."""
    there = tmp_path / "resolv.conf"
    there.mkdir()
    async with running(BY_HAND, tmp_path) as node:
        await node.has("192.0.2.7/24")
        assert default_routes() == [OURS]
        assert ["Is a directory" in one.error for one in await node.look()] == [True]
        there.rmdir()
        assert await node.keys() == {f"file {there}"}
        assert there.is_file()


@pytest.mark.parametrize("gateway", ["172.31.1.1", "fd00:1::1"])
async def test_a_gateway_beside_a_single_address(gateway: str, tmp_path: Path) -> None:
    """A static one, as providers of single addresses have it."""
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
    """A renewal sets it, also to a larger one; the former one comes back."""
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


async def test_a_restart_without_a_server(tmp_path: Path) -> None:
    """Until one answers, the former lease stays; the link is kept all the
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
    """Its lease is used for the rest of its time, with MTU and names; static
    addresses are those configured now, and do not wait.
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
        assert default_routes() == [OURS]
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


async def test_a_link_that_is_renamed(tmp_path: Path) -> None:
    """As udev does: the uplink follows, if it is not chosen by name."""
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
