# SPDX-License-Identifier: Apache-2.0
"""Bonds and VLANs in a real kernel, made by osbase.net.stack.

here: m0 ---- p0 :"far"
      m1 ---- p1
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from osbase import event
from osbase.net import stack
from osbase.net.config import Bond, BondMode, Interface, LacpRate, TransmitHash, Vlan
from osbase.net.stack import StackError
from osbase.netlink.errors import BatchError

LIMIT_S = 30
MARK = 10
WORKLOADS = 8
LACP = Bond(BondMode.LACP, ("m0", "m1"), lacp_rate=LacpRate.FAST)
BACKUP = Bond(BondMode.ACTIVE_BACKUP, ("m0", "m1"))


def sh(command: str) -> str:
    """Run a command; returns its output."""
    done = subprocess.run(
        command.split(), check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def far(command: str) -> str:
    """Run a command at the other ends."""
    return sh(f"ip netns exec far {command}")


def port(number: int) -> None:
    """Make a pair of ports; this end is down, as hardware is."""
    sh(f"ip link add m{number} type veth peer name p{number} netns far")


@pytest.fixture(autouse=True)
def ports() -> Iterator[None]:
    """Make the ports and their namespace; remove all links afterwards."""
    sh("ip netns add far")
    port(0)
    port(1)
    yield
    made = [
        found["ifname"]
        for found in json.loads(sh("ip -json -details link"))
        if found.get("linkinfo", {}).get("info_kind") in ("vlan", "bond", "bridge")
    ]
    for name in (*made, "m0", "m1"):
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
    sh("ip netns del far")


@dataclass
class Kept:
    """Links that `maintain` keeps: its reports, and whether they exist."""

    reports: list[str] = field(default_factory=list)
    built: event.Value[bool] = field(default_factory=lambda: event.Value[bool]("built"))


@contextlib.asynccontextmanager
async def keeping(config: Interface) -> AsyncIterator[Kept]:
    """Links kept as configured, while the block runs; first until built."""
    kept = Kept()
    task = asyncio.create_task(
        stack.maintain(
            config, MARK, kept.built, quiet_groups=(WORKLOADS,), report=kept.reports.append
        )
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            building = asyncio.ensure_future(kept.built.watch().get(lambda built: built))
            await asyncio.wait([building, task], return_when=asyncio.FIRST_COMPLETED)
            if building.done():
                yield kept
            else:
                building.cancel()
    finally:
        if task.done():
            task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def details(name: str) -> dict[str, Any]:
    """What ip(8) says of a link."""
    (found,) = json.loads(sh(f"ip -json -details link show {name}"))
    return dict(found)


def options(name: str = "bond0") -> dict[str, Any]:
    """What the kernel says of a bond."""
    return dict(details(name)["linkinfo"]["info_data"])


def exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


async def until(holds: Callable[[], bool]) -> None:
    """Poll: the kernel has no events for the internal state of a bond."""
    async with asyncio.timeout(LIMIT_S):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def carrier_changes() -> dict[str, str]:
    """How often each link's carrier came or went, and its index."""
    return {
        path.name: f"{(path / 'ifindex').read_text()} {(path / 'carrier_changes').read_text()}"
        for path in Path("/sys/class/net").iterdir()
        if (path / "ifindex").exists()
    }


def is_member(name: str) -> bool:
    return exists(name) and details(name).get("master") == "bond0"


async def test_lacp_reaches_aggregation_and_carries_a_vlan() -> None:
    """Two bonds back to back find each other; packets go, tagged and large."""
    far("ip link add bond9 type bond mode 802.3ad miimon 50 lacp_rate fast")
    for name in ("p0", "p1"):
        far(f"ip link set {name} master bond9")
    far("ip link set bond9 mtu 9000")
    far("ip link set bond9 up")
    far("ip link add link bond9 name v7 type vlan id 7")
    far("ip address add 192.0.2.1/24 dev v7")
    far("ip link set v7 up")
    partner = json.loads(far("ip -json link show bond9"))[0]["address"]
    bond = replace(LACP, min_links=2, miimon_ms=50, transmit_hash=TransmitHash.LAYER23)
    config = Interface(bond=bond, vlan=Vlan(7, "vlan7"), mtu=9000)
    async with keeping(config):
        sh("ip address add 192.0.2.7/24 dev vlan7")
        sh("ip link set vlan7 up")
        await until(
            lambda: (
                options()["ad_info"]["partner_mac"] == partner
                and options()["ad_info"]["num_ports"] == 2
            )
        )
        found = options()
        print(f"aggregation: {found['ad_info']}")
        assert (found["mode"], found["ad_lacp_rate"]) == ("802.3ad", "fast")
        assert (found["miimon"], found["min_links"]) == (50, 2)
        assert found["xmit_hash_policy"] == "layer2+3"
        assert found["num_peer_notif"] == 3
        assert {details(name)["mtu"] for name in ("m0", "m1", "bond0", "vlan7")} == {9000}
        assert details("vlan7")["linkinfo"]["info_data"]["id"] == 7
        assert details("bond0")["group"] == details("vlan7")["group"] == str(MARK)
        await until(lambda: "UP" in details("vlan7")["flags"])
        ping = ["ping", "-c", "1", "-W", "30", "-s", "8000", "192.0.2.1"]
        await asyncio.to_thread(subprocess.run, ping, check=True, timeout=LIMIT_S)
        # One of two is too few.
        far("ip link set p0 down")
        await until(lambda: "LOWER_UP" not in details("bond0")["flags"])
        far("ip link set p0 up")
        await until(lambda: "LOWER_UP" in details("bond0")["flags"])


@pytest.mark.parametrize("bond", [LACP, replace(BACKUP, primary="m1")], ids=["lacp", "backup"])
async def test_a_restart_changes_nothing(bond: Bond) -> None:
    """No request, no carrier change, no other link."""
    for name in ("p0", "p1"):
        far(f"ip link set {name} up")
    config = Interface(bond=bond, vlan=Vlan(7, "vlan7"), mtu=1400)
    async with keeping(config) as first:
        await until(lambda: is_member("m0") and is_member("m1"))
        sh("ip link set vlan7 up")
        await until(lambda: details("m1").get("operstate") == "UP")
        if bond.primary:
            await until(lambda: options().get("primary") == "m1")
            await until(lambda: options().get("active_slave") == "m1")
        assert first.reports
    before = await asyncio.to_thread(carrier_changes)
    async with keeping(config) as again:
        assert again.reports == []
        assert stack.reconcile(config, MARK, again.reports.append).missing == ()
        assert again.reports == []
    assert await asyncio.to_thread(carrier_changes) == before


async def test_members_come_late_vanish_and_return() -> None:
    """The bond is used meanwhile, and keeps its MAC."""
    sh("ip link del m1")
    async with keeping(Interface(bond=BACKUP)) as kept:
        await until(lambda: is_member("m0"))
        assert "waiting for m1" in kept.reports
        mac = details("bond0")["address"]
        assert mac == details("m0")["address"]
        for _ in range(2):
            port(1)
            await until(lambda: is_member("m1"))
            sh("ip link del m1")
        port(1)
        await until(lambda: is_member("m1"))
        # Taken out by hand, or set down: put back.
        sh("ip link set m1 nomaster")
        await until(lambda: is_member("m1"))
        sh("ip link set m1 down")
        await until(lambda: "UP" in details("m1")["flags"])
        sh("ip link set m0 down")
        await until(lambda: "UP" in details("m0")["flags"])
        assert details("bond0")["address"] == mac


async def test_members_that_come_in_another_order() -> None:
    """The bond and its VLAN have the MAC of the first configured member, which
    appears second; also after a reboot, and after all were away.
    """
    mac = "02:00:00:00:00:aa"
    config = Interface(bond=BACKUP, vlan=Vlan(7, "vlan7"))

    async def second() -> None:
        await until(lambda: exists("bond0"))
        sh(f"ip link add m0 address {mac} type veth peer name p0 netns far")

    for _ in range(2):
        sh("ip link del m0")
        late = asyncio.create_task(second())
        async with keeping(config):
            await late
            await until(lambda: is_member("m0") and is_member("m1") and exists("vlan7"))
            assert details("bond0")["address"] == details("vlan7")["address"] == mac
            sh("ip link del m0")
            sh("ip link del m1")
            port(1)
            await second()
            await until(lambda: is_member("m0") and is_member("m1"))
            assert details("bond0")["address"] == details("vlan7")["address"] == mac
        sh("ip link del bond0")


async def test_a_first_member_that_does_not_come() -> None:
    """The bond works without it, with the MAC of the next."""
    sh("ip link del m0")
    mac = details("m1")["address"]
    async with keeping(Interface(bond=BACKUP)):
        await until(lambda: is_member("m1"))
        port(0)
        await until(lambda: is_member("m0"))
        assert details("bond0")["address"] == mac


async def test_another_configuration_replaces_what_is_there() -> None:
    """Another mode; then a VLAN on a port, no bond; then the port itself."""
    sh("ip link add foreign0 type bond")
    async with keeping(Interface(bond=BACKUP, vlan=Vlan(7, "vlan7"))):
        await until(lambda: is_member("m0") and is_member("m1"))
        assert options()["mode"] == "active-backup"
    async with keeping(Interface(bond=replace(LACP, members=("m1",)))):
        await until(lambda: is_member("m1"))
        assert options()["mode"] == "802.3ad"
        assert not exists("vlan7")
        assert not is_member("m0")
    async with keeping(Interface(bond=replace(LACP, members=("m1",), lacp_rate=LacpRate.SLOW))):
        assert options()["ad_lacp_rate"] == "slow"
        assert is_member("m1")
    async with keeping(Interface(name="m0", vlan=Vlan(9, "up9"), mtu=1400)):
        assert not exists("bond0")
        assert details("up9")["link"] == "m0"
        assert details("up9")["mtu"] == details("m0")["mtu"] == 1400
        # The VLAN goes with its port, and comes with it.
        sh("ip link del m0")
        assert not exists("up9")
        port(0)
        await until(lambda: exists("up9"))
    async with keeping(Interface(name="m0")):
        assert not exists("up9")
        assert exists("foreign0")


async def test_the_idle_bond_of_the_module_is_taken() -> None:
    """The kernel makes it when the module is loaded, in the default mode."""
    sh("ip link add bond0 type bond mode balance-rr")
    async with keeping(Interface(bond=BACKUP)):
        await until(lambda: is_member("m0"))
        assert options()["mode"] == "active-backup"


async def test_what_cannot_be_is_said() -> None:
    """A name is taken, a member belongs to another bond, an MTU is refused."""
    sh("ip link add bond0 type bridge")
    with pytest.raises(StackError, match="bond0 is to be a bond, but is there, and is bridge"):
        async with keeping(Interface(bond=BACKUP)):
            pass
    sh("ip link set m1 master bond0")
    other = replace(BACKUP, name="bond1")
    async with keeping(Interface(bond=other)) as kept:
        assert "waiting for m1 (which belongs to bond0)" in kept.reports
    sh("ip link add link m0 name low7 mtu 1300 type vlan id 7")
    built = event.Value[bool]("built")
    config = Interface(name="low7", mtu=9000)
    with pytest.raises(BatchError, match="set MTU of low7 to 9000: ERANGE"):
        await stack.maintain(config, MARK, built)


async def test_workloads_wake_nobody() -> None:
    """Links of a quiet group do not wake it; others do."""
    looks: list[bool] = []

    class Counting(event.Value[bool]):
        def set(self, value: bool) -> None:
            looks.append(value)
            super().set(value)

    built = Counting("built")
    config = Interface(bond=replace(BACKUP, members=("m0",)))
    task = asyncio.create_task(stack.maintain(config, MARK, built, quiet_groups=(5, WORKLOADS)))
    try:
        await until(lambda: is_member("m0"))
        sh("ip link add other0 group 9 type dummy")
        await until(lambda: len(looks) > 1)
        # The events of its own links, too, have been seen by now.
        before = -1
        while before != len(looks):
            before = len(looks)
            await asyncio.sleep(0.5)
        for _ in range(5):
            sh(f"ip link add wl0 group {WORKLOADS} type dummy")
            sh("ip link set wl0 up")
            sh("ip link del wl0")
        seen = len(looks)
        sh("ip link del other0")
        await until(lambda: len(looks) > seen)
        assert len(looks) <= before + 2
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
