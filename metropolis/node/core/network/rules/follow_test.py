# SPDX-License-Identifier: Apache-2.0
"""Whether the reverse path is strict follows the kernel's default routes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network

import pytest
import pytest_asyncio

from metropolis.node.core.network.rules import reverse_path
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.rules.settings import Settings
from osbase import event
from osbase.net.links import LinkState
from osbase.netlink.route import RTN_UNREACHABLE, Route
from osbase.test.namespaces import LIMIT_S, sh

UPLINK = LinkState(10, "up0", b"\2" * 6, 1500, True, True)


def default(ifindex: int | None, kind: int = 1) -> Route:
    """A default route of IPv4."""
    return Route(ip_network("0.0.0.0/0"), ifindex, 3, kind=kind)


@pytest.mark.parametrize(
    ("link", "routes", "strict", "why"),
    [
        (UPLINK, [default(10)], True, "strict on up0"),
        (UPLINK, [default(10), default(10)], True, "strict on up0"),
        (UPLINK, [default(10), default(None, RTN_UNREACHABLE)], True, "strict on up0"),
        (UPLINK, [], False, "off: no default route"),
        (UPLINK, [default(None, RTN_UNREACHABLE)], False, "off: no default route"),
        (UPLINK, [default(10), default(11)], False, "off: 2 default routes, 1 not by up0"),
        (UPLINK, [default(11)], False, "off: 1 default routes, 1 not by up0"),
        (UPLINK, [default(None)], False, "off: 1 default routes, 1 not by up0"),
        (None, [default(10)], False, "off: no uplink"),
        (LinkState(10, "up*", b"", 1500, True, True), [default(10)], False, "off: the uplink's"),
        (LinkState(10, 'a"b', b"", 1500, True, True), [default(10)], False, "off: the uplink's"),
    ],
)
def test_judgement(link: LinkState | None, routes: list[Route], strict: bool, why: str) -> None:
    """A multipath route has no one link; an unreachable one is no way."""
    on, text = reverse_path.judge(link, routes)
    assert on is strict
    assert text.startswith(why)


@pytest.fixture
def homes() -> Iterator[LinkState]:
    """Two links with a router each; the first is the uplink."""
    for number, name in enumerate(("up0", "lan")):
        sh(f"ip link add {name} type veth peer name {name}-far")
        for one in (name, f"{name}-far"):
            sh(f"ip link set {one} addrgenmode none up")
        sh(f"ip address add 192.0.{number}.2/24 dev {name}")
        sh(f"ip address add 2001:db8:{number}::2/64 dev {name} nodad")
    index = int(sh("ip -oneline link show up0").split(":")[0])
    yield LinkState(index, "up0", b"\2" * 6, 1500, True, True)
    for name in ("up0", "lan"):
        subprocess.run(["ip", "link", "del", name], check=False)
    sh("nft flush ruleset")


class Followed:
    """A running follower, and its last result."""

    def __init__(self, link: LinkState) -> None:
        """link: the uplink at first."""
        self.link = event.Value[LinkState | None]("uplink")
        self.link.set(link)
        self.rules = RuleSet(Settings())
        self.notes: dict[str, str] = {}
        self.changed = asyncio.Event()

    def note(self, key: str, text: str) -> None:
        """Record a note."""
        self.notes[key] = text
        self.changed.set()

    async def until(self, ipv4: str, ipv6: str) -> None:
        """Wait until the notes begin so; the rules are as they say."""
        wanted = {"reverse_path_ipv4": ipv4, "reverse_path_ipv6": ipv6}
        async with asyncio.timeout(LIMIT_S):
            while not all(self.notes.get(k, "").startswith(v) for k, v in wanted.items()):
                await self.changed.wait()
                self.changed.clear()
        listing = sh("nft list ruleset")
        for version, text in ((4, ipv4), (6, ipv6)):
            assert (f'iifname "up0" goto strict_ipv{version}' in listing) is (
                text == "strict on up0"
            )


@pytest_asyncio.fixture
async def followed(homes: LinkState) -> AsyncIterator[Followed]:
    """It also looks without an event, in the end."""
    it = Followed(homes)
    task = asyncio.create_task(reverse_path.follow(it.link, it.rules, it.note, look_s=0.5))
    yield it
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.asyncio
async def test_it_follows_routes_and_the_uplink(followed: Followed, homes: LinkState) -> None:
    """Each family for itself; routes that come, go, and go without an event."""
    strict, none, several = "strict on up0", "off: no default route", "off: 2 default routes"
    await followed.until(none, none)
    sh("ip route add default via 192.0.0.1 dev up0")
    await followed.until(strict, none)
    sh("ip -6 route add default via 2001:db8:0::1 dev up0")
    await followed.until(strict, strict)
    sh("ip route add default via 192.0.1.1 dev lan metric 500")
    await followed.until(several, strict)
    sh("ip -6 route add default via 2001:db8:1::1 dev lan metric 5000")
    await followed.until(several, several)
    sh("ip -6 route del default via 2001:db8:1::1 dev lan metric 5000")
    await followed.until(several, strict)
    sh("ip link set lan down")  # the IPv4 route vanishes without an event
    await followed.until(strict, strict)
    followed.link.set(None)
    await followed.until("off: no uplink", "off: no uplink")
    followed.link.set(homes)
    await followed.until(strict, strict)
    sh("ip route replace default via 192.0.0.1 dev up0 table 100")  # none of ours
    sh("ip route del default")
    await followed.until(none, strict)


@pytest.mark.asyncio
async def test_a_vpn_for_all_traffic_is_another_home(followed: Followed) -> None:
    """By a rule and a table of its own, or by parts that together are all."""
    strict, none = "strict on up0", "off: no default route"
    await followed.until(none, none)
    sh("ip route add default via 192.0.0.1 dev up0")
    sh("ip -6 route add default via 2001:db8:0::1 dev up0")
    await followed.until(strict, strict)
    for version, halves in ((4, ("0.0.0.0/1", "128.0.0.0/1")), (6, ("2000::/3",))):
        sh(f"ip -{version} rule add not fwmark 51820 table 51820")
        policy, split = "off: 1 routing rules", "off: "
        await followed.until(*((policy, strict) if version == 4 else (strict, policy)))
        sh(f"ip -{version} rule del not fwmark 51820 table 51820")
        await followed.until(strict, strict)
        for half in halves:
            sh(f"ip -{version} route add {half} dev lan")
        await followed.until(*((split, strict) if version == 4 else (strict, split)))
        for half in halves:
            sh(f"ip -{version} route del {half} dev lan")
        await followed.until(strict, strict)
    # A half alone is no default route.
    sh("ip route del default")
    sh("ip route add 0.0.0.0/1 dev up0")
    await followed.until(none, strict)
    sh("ip route del 0.0.0.0/1 dev up0")
