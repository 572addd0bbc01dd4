# SPDX-License-Identifier: Apache-2.0
"""Addresses in use on links, in a fresh network namespace."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path

import pytest

from osbase.net import occupied

LIMIT_S = 30
OWN_GROUPS, OWN_PROTOCOLS = (8, 9), (77, 78)


def sh(command: str) -> None:
    """Run a command; its output is part of an error."""
    done = subprocess.run(
        command.split(), check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"


RULES = ("priority 5270 lookup 52", "priority 5271 lookup 5200", "priority 5272 fwmark 1 lookup 53")


@pytest.fixture(autouse=True)
def links() -> Iterator[None]:
    """An uplink, a bridge without a port, a tunnel, and a workload's link."""
    sh("ip link set lo up")
    sh("ip link add up0 type veth peer name up1")
    sh("ip link set up1 up")
    sh("ip link set up0 up")
    sh("ip link add br0 type bridge")
    sh("ip link add wl0 group 8 type veth peer name wl1")
    sh("ip link set wl1 up")
    sh("ip link set wl0 up")
    sh("ip tuntap add dev tun0 mode tun")
    sh("ip link set tun0 up")
    try:
        yield
    finally:
        for link in ("up0", "br0", "wl0", "tun0"):
            sh(f"ip link del {link}")
        for version in (4, 6):
            for rule in RULES:
                subprocess.run(["ip", f"-{version}", *f"rule del {rule}".split()], check=False)
        for command in (
            "ip nexthop flush",
            "ip address flush dev lo scope global",
            "ip -4 route flush table main",  # what is through no link
            "ip -6 route flush table main",
        ):
            sh(command)


def found() -> set[str]:
    """Return all in words, except those of the loopback."""
    looked = occupied.look(own_groups=OWN_GROUPS, own_protocols=OWN_PROTOCOLS)
    return {
        f"{one.kind.value} {one.network} {one.link}"
        + (f" via {one.gateway}" if one.gateway else "")
        for one in looked
        if not one.network.is_loopback
    }


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (["address add 192.0.2.7/24 dev up0"],
         {"network 192.0.2.0/24 up0", "address 192.0.2.7/32 up0"}),
        (["address add 2001:db8:2::7/64 dev up0 nodad"],
         {"network 2001:db8:2::/64 up0", "address 2001:db8:2::7/128 up0"}),
        # Down, so without a route.
        (["address add 172.17.0.1/16 dev br0"],
         {"network 172.17.0.0/16 br0", "address 172.17.0.1/32 br0"}),
        (["address add 10.9.0.7/32 dev lo"], {"address 10.9.0.7/32 lo"}),
        (["address add 192.0.2.7/32 dev up0"], {"address 192.0.2.7/32 up0"}),
        (["address add 192.0.2.7/24 dev up0 noprefixroute"], {"address 192.0.2.7/32 up0"}),
        (["address add 10.8.0.2 peer 10.8.0.1/32 dev tun0"],
         {"network 10.8.0.1/32 tun0", "address 10.8.0.2/32 tun0"}),
        (["address add 10.8.0.2/24 dev tun0"],
         {"network 10.8.0.0/24 tun0", "address 10.8.0.2/32 tun0"}),
        (["route add 10.0.0.0/8 dev tun0", "route add 128.0.0.0/1 dev tun0"],
         {"route 10.0.0.0/8 tun0", "route 128.0.0.0/1 tun0"}),
        (["route add 10.7.0.0/16 dev up0"], {"network 10.7.0.0/16 up0"}),
        (["route add 192.0.2.1 dev up0", "route add default via 192.0.2.1 dev up0"],
         {"network 192.0.2.1/32 up0", "gateway 192.0.2.1/32 up0"}),
        (["route add 10.7.0.0/16 via 192.0.2.1 dev up0 onlink proto 76"],
         {"route 10.7.0.0/16 up0 via 192.0.2.1", "gateway 192.0.2.1/32 up0"}),
        (["route add 2001:db8:7::/48 via fe80::7 dev up0"],
         {"route 2001:db8:7::/48 up0 via fe80::7"}),
        (["route add 10.7.0.0/16 via inet6 2001:db8::7 dev up0 onlink"],
         {"route 10.7.0.0/16 up0 via 2001:db8::7", "gateway 2001:db8::7/128 up0"}),
        (["route add 10.7.0.0/16 nexthop via 192.0.2.1 dev up0 onlink "
          "nexthop via 192.0.2.2 dev tun0 onlink"],
         {"route 10.7.0.0/16 up0 via 192.0.2.1", "gateway 192.0.2.1/32 up0",
          "route 10.7.0.0/16 tun0 via 192.0.2.2", "gateway 192.0.2.2/32 tun0"}),
        (["nexthop add id 7 via 192.0.2.1 dev up0 onlink", "route add 10.7.0.0/16 nhid 7"],
         {"route 10.7.0.0/16 up0 via 192.0.2.1", "gateway 192.0.2.1/32 up0"}),
        # Routes that locate no host, or are the caller's.
        (["route add blackhole 10.7.0.0/16", "route add unreachable 2001:db8:7::/64"], set()),
        (["route add 10.7.0.0/16 dev up0 table 100"], set()),
        (["address add 10.7.0.1/24 dev wl0", "address add fe80::1/64 dev wl0 nodad"], set()),
        (["route add 10.7.0.1 dev wl0 proto 77", "route add 2001:db8:7::7 dev up0 proto 78"],
         set()),
    ],
)  # fmt: skip
def test_what_is_in_use(commands: list[str], expected: set[str]) -> None:
    for command in commands:
        version = "-6 " if "2001:db8" in command.split("via inet6")[0] else ""
        sh(f"ip {version}{command}")
    assert found() == expected


@pytest.mark.parametrize("version", [4, 6])
def test_tables_that_come_before_the_main(version: int) -> None:
    """As VPNs have them; networks larger than the caller's count, too."""
    to = {4: ("10.7.0.0/16", "10.0.0.0/8"), 6: ("2001:db8:7::/48", "2001:db8::/32")}[version]
    sh(f"ip -{version} route add {to[0]} dev tun0 table 52")
    sh(f"ip -{version} route add default dev tun0 table 52")
    sh(f"ip -{version} route add {to[1]} dev up0 proto 77 table 5200")
    sh(f"ip -{version} route add {to[1]} dev tun0 table 53")
    assert found() == set()
    for rule in RULES:
        sh(f"ip -{version} rule add {rule}")
    assert found() == {f"preferred route {to[0]} tun0", f"preferred route {to[1]} up0"}
    sh(f"ip -{version} rule add priority 5000 lookup main")
    try:
        assert found() == set()
    finally:
        sh(f"ip -{version} rule del priority 5000")


def test_addresses_come_first() -> None:
    """For a network of both an address and the kernel's own route."""
    sh("ip address add 192.0.2.7/24 dev up0")
    looked = occupied.look(own_groups=OWN_GROUPS, own_protocols=OWN_PROTOCOLS)
    (network,) = [one for one in looked if str(one.network) == "192.0.2.0/24"]
    assert network.by_address


@contextlib.asynccontextmanager
async def following() -> AsyncIterator[AsyncGenerator[None]]:
    async with contextlib.aclosing(occupied.changes(OWN_PROTOCOLS)) as changes:
        await anext(changes)
        yield changes


@pytest.mark.parametrize(
    "command",
    [
        "address add 192.0.2.7/24 dev up0",
        "address add 192.0.2.7/32 dev up0 scope link",
        "address add 2001:db8:2::7/64 dev up0 nodad",
        "address add 172.17.0.1/16 dev br0",
        "route add 10.7.0.0/16 dev up0",
        "-6 route add default via fe80::7 dev up0",
        "-6 route add 2001:db8:7::/48 dev up0 proto 76",
        "route add 10.8.0.0/16 dev up0 table 52",
        "-6 route add 2001:db8:7::/48 dev up0 table 5200",
        "rule add priority 5270 lookup 52",
        "-6 rule add priority 5270 lookup 52",
    ],
)
async def test_every_change_is_reported(command: str) -> None:
    async with following() as changes, asyncio.timeout(LIMIT_S):
        await asyncio.to_thread(sh, f"ip {command}")
        await anext(changes)
        # Several events may be one change, or two.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                while True:
                    await anext(changes)
    async with following() as changes, asyncio.timeout(LIMIT_S):
        await asyncio.to_thread(sh, "ip " + command.replace(" add ", " del ").replace(" nodad", ""))
        await anext(changes)


async def test_workloads_wake_nobody() -> None:
    """Nor do the changes of an attach and a detach on the host."""
    async with following() as changes:
        for command in (
            "address add fe80::1/64 dev wl0 nodad",
            "route add 10.7.0.1 dev wl0 proto 77",
            "-6 route add 2001:db8:7::7 dev wl0 proto 77",
            "-6 route add 2001:db8:7::/64 dev up0 proto 78",
            "route add local 10.8.0.0/16 dev lo table local",
            "link set wl0 down",
            "link set wl0 up",
        ):
            await asyncio.to_thread(sh, f"ip {command}")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await anext(changes)


async def test_an_overrun_is_a_change(tmp_path: Path) -> None:
    batch = tmp_path / "batch"
    batch.write_text(
        "".join(
            f"route {verb} 10.{n // 250}.{n % 250}.0/24 dev up0\n"
            for _ in range(3)
            for verb in ("add", "del")
            for n in range(1000)
        )
    )
    async with following() as changes, asyncio.timeout(LIMIT_S):
        await asyncio.to_thread(sh, f"ip -batch {batch}")
        await anext(changes)
        await asyncio.to_thread(sh, "ip route add 10.7.0.0/16 dev up0")
        await anext(changes)
