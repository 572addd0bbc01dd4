# SPDX-License-Identifier: Apache-2.0
"""Each ward finds and restores what ip(8), nft(8) and files change."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from metropolis.node.core.network.reconcile import wards
from metropolis.node.core.network.reconcile.ward import Repair
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.workloads.conditions import Conditions
from osbase.nftables import NftablesError
from osbase.test.namespaces import sh

HOP = f"{allocs.FIRST_HOP_IPV4}/32"


def always(_: str) -> bool:
    return True


def never(_: str) -> bool:
    return False


# --- Host ---------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[wards.Host]:
    """Return the ward of a namespace that is as it should be."""
    ward = wards.Host()
    ward.look(always)
    assert ward.look(always) == []
    wait_for_route_of_loopback()
    yield ward
    ward.look(always)


def wait_for_route_of_loopback() -> None:
    """The kernel has the address ::1 first, and adds its route by a worker."""
    deadline = time.monotonic() + 20
    while "local ::1 " not in sh("ip -6 route show table local dev lo"):
        assert time.monotonic() < deadline


def state() -> str:
    """Return all objects of the ward."""
    addresses = [
        line.strip().removesuffix(" proto kernel_lo")
        for line in sh("ip -oneline address show dev lo").splitlines()
    ]
    return "\n".join(
        [
            *sorted(" ".join(line.split()[:6]) for line in addresses),
            *[sh(f"ip -{version} rule") for version in (4, 6)],
            *[sh(f"ip -{version} route show table local dev lo") for version in (4, 6)],
            sh("ip -oneline link show up"),
        ]
    )


@pytest.mark.parametrize(
    ("commands", "keys"),
    [
        ([f"ip address del {HOP} dev lo"], {f"address {allocs.FIRST_HOP_IPV4} of lo"}),
        (
            ["ip address flush dev lo"],
            {f"address {one} of lo" for one in (allocs.FIRST_HOP_IPV4, "127.0.0.1", "::1")},
        ),
        # ::1 vanishes with it; the kernel restores it.
        (["ip link set lo down"], {"link lo: up"}),
        (
            ["ip rule flush"],
            {"IPv4 routing rule 32766: lookup main", "IPv4 routing rule 32767: lookup default"},
        ),
        (["ip -6 rule flush"], {"IPv6 routing rule 32766: lookup main"}),
        (["ip rule del pref 0"], {"IPv4 routing rule 0: lookup local"}),
        (["ip -6 rule del pref 0"], {"IPv6 routing rule 0: lookup local"}),
        (
            ["ip rule flush", "ip rule add pref 100 to 10.0.0.0/8 lookup main"],
            {"IPv4 routing rule 32766: lookup main", "IPv4 routing rule 32767: lookup default"},
        ),
    ],
)
def test_host_puts_back(host: wards.Host, commands: list[str], keys: set[str]) -> None:
    before = state()
    for command in commands:
        sh(command)
    left = host.look(never)
    assert keys <= {one.key for one in left}
    assert all(one.left and not one.error for one in left)
    repairs = host.look(always)
    assert keys <= {one.key for one in repairs}
    assert all(not one.left and not one.error for one in repairs), repairs
    assert host.look(always) == []
    subprocess.run(["ip", "rule", "del", "pref", "100"], check=False, capture_output=True)
    wait_for_route_of_loopback()
    assert state() == before


def test_local_routes_come_back(host: wards.Host) -> None:
    """With their addresses, which existed."""
    sh("ip route flush table local")
    assert f"address {allocs.FIRST_HOP_IPV4} of lo" in {one.key for one in host.look(always)}
    assert host.look(always) == []
    sh(f"ping -c 1 -W 5 {allocs.FIRST_HOP_IPV4}")


@pytest.mark.parametrize(
    ("make", "undo"),
    [
        # As Cilium does.
        (["ip rule add pref 100 lookup local", "ip rule del pref 0"],
         ["ip rule add pref 0 lookup local", "ip rule del pref 100"]),
        (["ip rule add pref 5 from 10.0.0.0/8 lookup 100"], ["ip rule del pref 5"]),
        (["ip address add 192.0.2.7/32 dev lo"], ["ip address del 192.0.2.7/32 dev lo"]),
    ],
)  # fmt: skip
def test_host_leaves_what_others_add(host: wards.Host, make: list[str], undo: list[str]) -> None:
    for command in make:
        sh(command)
    assert host.look(always) == []
    for command in undo:
        sh(command)


@pytest.mark.parametrize("version", [4, 6])
def test_local_is_looked_up_before_main(host: wards.Host, version: int) -> None:
    """Otherwise the first hop is routed by the default route: a finding of
    its own, not an address without a route.
    """
    ip = f"ip -{version}"
    sh("ip link add world type veth peer name world-peer")
    try:
        sh("ip link set world up")
        sh("ip link set world-peer up")
        sh(f"{ip} route add default dev world")
        sh(f"{ip} rule add pref 40000 lookup local")
        sh(f"{ip} rule del pref 0")
        keys = {one.key for one in host.look(always)}
        assert keys == {f"IPv{version} routing rule 0: lookup local"}
        assert host.look(always) == []
    finally:
        sh(f"{ip} rule del pref 40000")
        sh("ip link del world")


def test_lo_without_ipv6(host: wards.Host) -> None:
    path = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
    path.write_text("1")
    assert host.look(always) == []
    path.write_text("0")


# --- Settings -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("ipv4/ip_forward", 0, 1),
        ("ipv6/conf/all/forwarding", 0, 1),
        ("ipv4/conf/all/rp_filter", 2, 0),
        ("ipv4/conf/all/arp_ignore", 1, 0),
        ("ipv4/conf/all/arp_accept", 1, 0),
        ("ipv4/conf/default/arp_accept", 1, 0),
        ("ipv6/conf/default/accept_untracked_na", 1, 0),
        ("ipv4/conf/default/forwarding", 0, 1),
        ("ipv6/conf/default/forwarding", 0, 1),
        ("ipv6/conf/default/accept_ra", 1, 0),
    ],
)
def test_sysctls_put_back(path: str, value: int, wanted: int) -> None:
    """All are right after one look, though ip_forward changes others."""
    ward = wards.Sysctls(sysctls.NODE)
    ward.look(always)
    assert ward.look(always) == []
    Path("/proc/sys/net", path).write_text(str(value))
    dotted = "net." + path.replace("/", ".")
    assert Repair(f"sysctl {dotted}", f"{dotted} was {value}, not {wanted}", left=True) in list(
        ward.look(never)
    )
    assert Repair(f"sysctl {dotted}", f"{dotted} was {value}, not {wanted}") in list(
        ward.look(always)
    )
    assert ward.look(always) == []


def test_sysctls_that_cannot_be_put_back(tmp_path: Path) -> None:
    """A file that is not one of the kernel's, and one that is missing."""
    (tmp_path / "fixed").mkdir()
    ward = wards.Sysctls(
        [sysctls.Sysctl("fixed", 1), sysctls.Sysctl("gone", 1)], root=str(tmp_path)
    )
    found = {one.key: one for one in ward.look(always)}
    assert "ENOENT" in found["sysctl net.gone"].error
    optional = wards.Sysctls([sysctls.Sysctl("gone", 1, optional=True)], root=str(tmp_path))
    assert optional.look(always) == []


def test_ipv6_stays_enabled_only_where_it_was() -> None:
    path = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    ward = wards.Sysctls(sysctls.found_enabled())
    path.write_text("1")
    assert "ipv6/conf/all/disable_ipv6" not in {one.path for one in sysctls.found_enabled()}
    assert {one.key for one in ward.look(always)} >= {"sysctl net.ipv6.conf.all.disable_ipv6"}
    assert path.read_text().strip() == "0"


# --- Rules --------------------------------------------------------------------


@pytest.fixture
def rules() -> Iterator[RuleSet]:
    """A rule set that is applied."""
    made = RuleSet(Settings())
    made.apply()
    yield made
    sh("nft flush ruleset")


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        "flush table inet metropolis",
        "delete table inet metropolis",
        "flush chain inet metropolis postrouting",
        "add table inet metropolis { flags dormant ; }",
        "chain inet metropolis postrouting { policy drop ; }",
        "insert rule inet metropolis prerouting_raw accept",
        "add table ip metropolis",
    ],
)
def test_rules_put_back(rules: RuleSet, command: str) -> None:
    before = sh("nft --stateless list table inet metropolis")
    ward = wards.Rules(rules)
    assert ward.look(always) == ()
    subprocess.run(["nft", command], check=True)
    (left,) = ward.look(never)
    assert (left.key, left.left) == ("rules", True)
    (repair,) = ward.look(always)
    assert (repair.key, repair.left, repair.error) == ("rules", False, "")
    assert ward.look(always) == ()
    assert sh("nft --stateless list table inet metropolis") == before


@pytest.mark.parametrize("command", ["flush ruleset", "add table ip metropolis"])
def test_what_an_update_put_back_is_said_and_counted(rules: RuleSet, command: str) -> None:
    """It came between the damage and the look."""
    ward = wards.Rules(rules)
    subprocess.run(["nft", command], check=True)
    rules.update(new_flows_per_second=77)
    assert "77/second" in sh("nft list chain inet metropolis new_flow")
    (repair,) = ward.look(always)
    assert (repair.key, repair.left, repair.error) == ("rules", False, "")
    assert ward.look(always) == ()


def test_what_an_update_put_back_is_right_in_a_fight(rules: RuleSet) -> None:
    """The rules had been left; so it is forgiven, and Status is OK again."""
    ward = wards.Rules(rules)
    subprocess.run(["nft", "flush ruleset"], check=True)
    assert [one.left for one in ward.look(never)] == [True]
    rules.update(new_flows_per_second=77)
    assert [one.left for one in ward.look(never)] == [True]
    assert ward.look(never) == ()


def test_own_changes_are_no_damage(rules: RuleSet) -> None:
    ward = wards.Rules(rules)
    for number in range(5):
        rules.update(new_flows_per_second=100 + number)
        assert ward.look(always) == ()


class Refused:
    """A rule set that the kernel refuses."""

    def differences(self) -> list[str]:
        return [f"inet chain metropolis c{number} is gone" for number in range(30)]

    def apply(self, *, fresh: bool = False) -> None:
        raise NftablesError("Operation not supported")


def test_rules_that_cannot_be_put_back() -> None:
    (repair,) = wards.Rules(Refused()).look(always)
    assert repair == Repair(
        "rules",
        "nftables: inet chain metropolis c0 is gone, inet chain metropolis c1 is gone, "
        "inet chain metropolis c2 is gone, and 27 more",
        "Operation not supported",
    )


# --- Filters of others --------------------------------------------------------


def test_filters_of_others_are_noted(rules: RuleSet, caplog: pytest.LogCaptureFixture) -> None:
    """Each is reported once; neither ours nor those at other hooks are."""
    conditions = Conditions()
    ward = wards.Foreign(conditions, logging.getLogger())
    ward.look(always)
    assert conditions.notes() == {}
    subprocess.run(
        [
            "nft",
            "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop;"
            " oifname docker0 accept; };"
            " chain INPUT { type filter hook input priority 0; policy drop; }; };"
            "table inet firewalld { chain f { type filter hook forward priority 10; }; }",
        ],
        check=True,
    )
    for _ in range(3):
        ward.look(always)
    text = "inet firewalld f, ip filter FORWARD (drops what it does not accept)"
    assert conditions.notes() == {"foreign_filters": text}
    assert [record.getMessage().endswith(text) for record in caplog.records] == [True]
    assert conditions.problems() == {}
    # Nothing accepts any more: no pod has a network.
    subprocess.run(["nft", "flush chain ip filter FORWARD"], check=True)
    ward.look(always)
    problem = conditions.problems()["foreign_filters"]
    assert "a chain without rules drops all packets that come to it" in problem
    assert "ip filter FORWARD" in problem
    assert "firewalld" not in problem
    subprocess.run(["nft", "delete table ip filter; delete table inet firewalld"], check=True)
    ward.look(always)
    assert conditions.notes() == {}
    assert conditions.problems() == {}


@pytest.mark.parametrize(
    ("family", "kind", "hook", "is_problem"),
    [
        ("inet", "filter", "prerouting", True),
        ("ip", "nat", "postrouting", True),
        ("ip6", "filter", "postrouting", True),
        ("arp", "filter", "input", True),
        ("netdev", "filter", "ingress device lo", False),
    ],
)
def test_filters_at_other_hooks(
    rules: RuleSet, family: str, kind: str, hook: str, is_problem: bool
) -> None:
    """They are noted when they drop what they do not accept."""
    conditions = Conditions()
    ward = wards.Foreign(conditions, logging.getLogger())
    table = f"table {family} other {{ chain c {{ type {kind} hook {hook} priority 1; }}; }}"
    subprocess.run(["nft", table], check=True)
    ward.look(always)
    assert conditions.notes() == {}
    subprocess.run(["nft", f"delete table {family} other"], check=True)
    subprocess.run(["nft", table.replace("1;", "1; policy drop;")], check=True)
    ward.look(always)
    text = f"{family} other c at {hook.split()[0]} (drops what it does not accept)"
    assert conditions.notes() == {"foreign_filters": text}
    assert (text in conditions.problems().get("foreign_filters", "")) is is_problem
    subprocess.run(["nft", f"delete table {family} other"], check=True)
