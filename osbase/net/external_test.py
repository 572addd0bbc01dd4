# SPDX-License-Identifier: Apache-2.0
"""The addresses by which others reach us, in a fresh network namespace."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address

import pytest

from osbase import event
from osbase.ip import IPAddress
from osbase.net import external
from osbase.netlink.address import (
    IFA_F_DADFAILED,
    IFA_F_DEPRECATED,
    IFA_F_TEMPORARY,
    IFA_F_TENTATIVE,
    Address,
)
from osbase.netlink.route import RT_SCOPE_LINK

LIMIT_S = 30


def sh(command: str) -> None:
    """Run a command; its output is part of an error."""
    subprocess.run(command.split(), check=True, capture_output=True, timeout=LIMIT_S)


@pytest.fixture(autouse=True)
def link() -> Iterator[None]:
    """A link `up0` of index 77, and another."""
    sh("ip link add up0 index 77 type veth peer name up1")
    sh("ip link set up1 up")
    sh("ip link set up0 up")
    yield
    subprocess.run(["ip", "link", "del", "up0"], check=False, capture_output=True)


@contextlib.asynccontextmanager
async def following() -> AsyncIterator[event.Watcher[tuple[IPAddress, ...]]]:
    """A watcher of the addresses of up0."""
    value = event.Value[tuple[IPAddress, ...]]("addresses")
    task = asyncio.create_task(external.follow(77, value))
    try:
        async with asyncio.timeout(LIMIT_S):
            yield value.watch()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def has(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(map(ip_address, texts))


async def test_changes_are_reported() -> None:
    """Added, unique at last, deprecated, removed, and the link gone."""
    async with following() as watcher:
        assert await watcher.get() == ()
        # Others' do not count.
        sh("ip address add 198.51.100.9/24 dev up1")
        sh("ip address add 2001:db8::5/64 dev up0 nodad")
        assert await watcher.get() == has("2001:db8::5")
        sh("ip address add 192.0.2.7/24 dev up0")
        assert await watcher.get() == has("192.0.2.7", "2001:db8::5")
        sh("ip address add 2001:db8::6/64 dev up0")  # tentative for a second
        sh("ip address add 2001:db8::5/64 dev up1 nodad")
        both = await watcher.get(lambda found: ip_address("2001:db8::6") in found)
        assert set(both) == set(has("192.0.2.7", "2001:db8::5", "2001:db8::6"))
        last = both[-1]  # the kernel's order; it may be either
        first = both[1]
        sh(f"ip address change {first}/64 dev up0 preferred_lft 0")
        await watcher.get(lambda found: found == (*has("192.0.2.7"), last, first))
        sh("ip address del 192.0.2.7/24 dev up0")
        await watcher.get(lambda found: ip_address("192.0.2.7") not in found)
        sh("ip link del up0")
        await watcher.get(lambda found: found == ())


async def test_an_address_ends_by_itself() -> None:
    """For example that of a lease without renewal."""
    async with following() as watcher:
        sh("ip address add 192.0.2.7/24 dev up0 valid_lft 2 preferred_lft 2")
        await watcher.get(lambda found: found == has("192.0.2.7"))
        await watcher.get(lambda found: found == ())


def test_choice_and_order() -> None:
    """IPv4, then IPv6 by preference; no temporary ones."""

    def address(text: str, flags: int = 0, scope: int = 0) -> Address:
        return Address(77, ip_address(text), 64, flags, scope)

    assert external.choose(
        [
            address("fd00::1"),
            address("2001:db8::1", IFA_F_DEPRECATED),
            address("2001:db8::2"),
            address("2001:db8::3", IFA_F_TEMPORARY),
            address("2001:db8::4", IFA_F_TENTATIVE),
            address("2001:db8::5", IFA_F_TENTATIVE | IFA_F_DADFAILED),
            address("fe80::1", scope=RT_SCOPE_LINK),
            address("169.254.1.1"),
            address("192.0.2.2", scope=RT_SCOPE_LINK),
            address("192.0.2.1"),
            # IFA_F_SECONDARY has the bit of IFA_F_TEMPORARY.
            address("192.0.2.9", IFA_F_TEMPORARY),
        ]
    ) == has("192.0.2.1", "192.0.2.9", "2001:db8::2", "fd00::1", "2001:db8::1")
