# SPDX-License-Identifier: Apache-2.0
"""The uplink's state is restored after programs change it.

this namespace: up0 ----- veth ----- srv0: namespace "srv", 192.0.2.1
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.testing.uplinks import Node, running, until
from metropolis.node.core.network.uplink.testing import (
    BY_DHCP,
    BY_HAND,
    OURS,
    addresses,
    default_routes,
    leases,
    link,
)
from osbase.net.config import Interface
from osbase.test.namespaces import LIMIT_S, inside, sh

pytestmark = pytest.mark.usefixtures("world")


ADDRESSES = {"address 192.0.2.7/24", "address 2001:db8::7/64"}
ROUTES = {"route 0.0.0.0/0", "route ::/0"}
LINK_LOCAL = "link-local address of up0"


def state() -> list[list[str]]:
    """Return all addresses and routes, in any order, tentative or not."""
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
        (f"ip link set up0 group {allocs.LINK_GROUP_REMOVAL}", {"group of up0"}),
    ],
)
async def test_what_others_take_is_put_back(
    command: str, put_back: set[str], tmp_path: Path
) -> None:
    """One look restores it, and the next finds nothing."""
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
        assert default_routes(4) == [OURS]
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
            assert default_routes() == [OURS]


async def test_what_is_not_allowed_is_left(tmp_path: Path) -> None:
    """It is reported; the rest is restored."""
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
    """As with a directory in the place of resolv.conf: otherwise the rest would
    not be counted, and a fight would not end.
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
    """Wait until the router's address and route exist, and a look has seen
    them: the kernel may be faster than the uplink.
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
    """An uplink by router advertisements only: no DHCP, nothing static."""
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
    """As hardening guides set it for all later links, and as others set it at
    run time.
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
