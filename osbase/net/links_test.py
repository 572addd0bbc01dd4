# SPDX-License-Identifier: Apache-2.0
"""Following a link, in a fresh network namespace."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from osbase import event
from osbase.net import links
from osbase.net.links import LinkState
from osbase.netlink.link import Link

LIMIT_S = 30


def sh(command: str) -> None:
    """Run a command; its output is part of an error."""
    subprocess.run(command.split(), check=True, capture_output=True, timeout=LIMIT_S)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Remove the links that a test made."""
    yield
    for name in ("up0", "up1", "noise0"):
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)


@contextlib.asynccontextmanager
async def following(name: str) -> AsyncIterator[event.Watcher[LinkState | None]]:
    """A watcher of a followed link."""
    value = event.Value[LinkState | None]("link")
    task = asyncio.create_task(links.follow(name, value))
    try:
        async with asyncio.timeout(LIMIT_S):
            yield value.watch()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_life() -> None:
    """Absent, present, up, another MTU, no carrier, gone, present again."""
    async with following("up0") as watcher:
        assert await watcher.get() is None
        for mtu in (1400, 1300):
            sh("ip link add up0 type veth peer name up1")
            there = await watcher.get(lambda state: state is not None)
            assert there is not None
            assert (there.name, there.up, there.carrier, there.mtu) == ("up0", False, False, 1500)
            sh("ip link set up0 up")
            sh("ip link set up1 up")
            await watcher.get(lambda state: state is not None and state.up and state.carrier)
            sh(f"ip link set up0 mtu {mtu}")
            assert (state := await watcher.get()) is not None
            assert state.mtu == mtu
            sh("ip link set up1 down")
            await watcher.get(lambda state: state is not None and state.up and not state.carrier)
            sh("ip link del up0")
            await watcher.get(lambda state: state is None)


async def test_renamed_is_gone() -> None:
    """It is followed by its name."""
    sh("ip link add up0 type veth peer name up1")
    async with following("up0") as watcher:
        assert await watcher.get() is not None
        sh("ip link set up0 name noise0")
        await watcher.get(lambda state: state is None)
        sh("ip link set noise0 name up0")
        await watcher.get(lambda state: state is not None)


async def test_other_links_do_not_wake() -> None:
    """Ten others come and go; the next event is of the followed one."""
    sh("ip link add up0 type veth peer name up1")
    async with following("up0") as watcher:
        assert await watcher.get() is not None
        for _ in range(10):
            sh("ip link add noise0 type veth peer name noise1")
            sh("ip link del noise0")
        assert not watcher.changed()
        sh("ip link set up0 mtu 1400")
        state = await watcher.get()
        assert state is not None
        assert state.mtu == 1400


def _link(
    ifindex: int, name: str, kind: bytes = b"", flags: int = 0, mac: bytes = b"123456"
) -> Link:
    return Link(
        ifindex=ifindex,
        flags=flags,
        name=name,
        mac=mac,
        mtu=1500,
        peer=None,
        alias=b"",
        group=0,
        kind=kind,
        altnames=(),
    )


def test_choose_hardware_or_by_name() -> None:
    """The lowest index with a MAC that is neither software nor loopback."""
    lo = _link(1, "lo", flags=0x8)
    bridge = _link(2, "br0", b"bridge")
    tunnel = _link(3, "tun0", mac=b"")
    second = _link(5, "eth1")
    first = _link(4, "eth0")
    every = [second, lo, bridge, tunnel, first]
    assert links.choose(every, "") is first
    assert links.choose(every, "br0") is bridge
    assert links.choose(every, "eth9") is None
    assert links.choose([lo, bridge, tunnel], "") is None


def test_choose_by_hardware_address() -> None:
    """The hardware's address counts; a link without one counts by its present
    address; a link that copies another's address is not chosen.
    """
    mac = bytes.fromhex("525400123456")
    member = replace(_link(4, "eth0", mac=b"bonded"), permanent_mac=mac)
    vlan = _link(2, "vlan7", b"vlan", mac=mac)
    bond = _link(3, "bond0", b"bond", mac=mac)
    borrowed = replace(_link(1, "eth9", mac=mac), permanent_mac=b"other!")
    assert links.choose([vlan, bond, borrowed, member], "", mac) is member
    assert links.choose([vlan, bond, borrowed], "", mac) is None
    plain = _link(5, "veth0", b"veth", mac=mac)
    assert links.choose([vlan, plain], "", mac) is plain


async def test_followed_by_its_address_when_renamed() -> None:
    """The name does not matter; the new one is reported."""
    value = event.Value[LinkState | None]("link")
    task = asyncio.create_task(links.follow("", value, bytes.fromhex("020000000009")))
    watcher = value.watch()
    async with asyncio.timeout(LIMIT_S):
        assert await watcher.get() is None
        sh("ip link add up1 type veth peer name noise0")
        sh("ip link add up0 address 02:00:00:00:00:09 type veth peer name noise1")
        state = await watcher.get(lambda state: state is not None)
        assert state is not None
        assert state.name == "up0"
        sh("ip link set up0 name up9")
        renamed = await watcher.get(lambda state: state is not None and state.name == "up9")
        assert renamed is not None
        assert renamed.ifindex == state.ifindex
        sh("ip link del up9")
        assert await watcher.get() is None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
