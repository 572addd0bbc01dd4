# SPDX-License-Identifier: Apache-2.0
"""Kernel settings, in the kernel of a fresh network namespace."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from metropolis.node.core.network import sysctls
from metropolis.node.core.network.sysctls import Sysctl, SysctlError


def value(path: str) -> int | str:
    """What the kernel says."""
    words = Path("/proc/sys/net", path).read_text().split()
    return int(words[0]) if len(words) == 1 else " ".join(words)


def test_node_settings_hold() -> None:
    """All of them, also when set twice."""
    for _ in range(2):
        sysctls.apply(sysctls.NODE)
    assert value("ipv4/ip_forward") == 1
    for setting in sysctls.NODE:
        if not setting.optional:
            assert value(setting.path) == setting.value, setting


def test_uplink_accepts_router_advertisements_and_others_do_not() -> None:
    """Though the node forwards. Links of workloads inherit `default`."""
    sysctls.apply(sysctls.NODE)
    subprocess.run(["ip", "link", "add", "up.1", "type", "veth", "peer", "wl0"], check=True)
    try:
        sysctls.apply(sysctls.uplink("up.1", router_advertisements=True))
        assert value("ipv6/conf/up.1/accept_ra") == 2
        assert value("ipv6/conf/wl0/accept_ra") == 0
        sysctls.apply(sysctls.uplink("up.1", router_advertisements=False))
        assert value("ipv6/conf/up.1/accept_ra") == 0
    finally:
        subprocess.run(["ip", "link", "del", "up.1"], check=True)


def test_a_kernel_without_ipv6(tmp_path: Path) -> None:
    """Its settings are not wanted; a missing one of IPv4 is an error still."""
    (tmp_path / "ipv4").mkdir()
    (tmp_path / "ipv4/ip_forward").write_text("0\n")
    settings = (Sysctl("ipv6/conf/all/forwarding", 1), Sysctl("ipv4/ip_forward", 1))
    sysctls.apply(settings, str(tmp_path))
    assert (tmp_path / "ipv4/ip_forward").read_text() == "1\n"
    assert sysctls.ipv6_is_off(str(tmp_path))
    with pytest.raises(SysctlError, match=r"ipv4\.no_such = 1: ENOENT"):
        sysctls.apply([Sysctl("ipv4/no_such", 1)], str(tmp_path))


def test_ipv6_that_is_off_for_all_links_stays_off() -> None:
    """Unless the uplink is to have it all the same."""
    everything = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    everything.write_text("1")
    subprocess.run(["ip", "link", "add", "up.1", "type", "veth", "peer", "wl0"], check=True)
    try:
        assert sysctls.ipv6_is_off()
        for ipv6_on in (False, True):
            sysctls.apply(sysctls.uplink("up.1", router_advertisements=True, ipv6_on=ipv6_on))
            assert value("ipv6/conf/up.1/disable_ipv6") == int(not ipv6_on)
    finally:
        everything.write_text("0")
        subprocess.run(["ip", "link", "del", "up.1"], check=True)
    assert not sysctls.ipv6_is_off()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Sysctl("ipv4/no_such", 1), "set net.ipv4.no_such = 1: ENOENT"),
        (Sysctl("ipv4/ip_forward", 10**12), "set net.ipv4.ip_forward = 1000000000000: EINVAL"),
    ],
)
def test_refusals_name_setting_value_and_errno(setting: Sysctl, message: str) -> None:
    """And an optional one that is missing is no error."""
    with pytest.raises(SysctlError) as caught:
        sysctls.apply([setting])
    assert message in str(caught.value)


def test_missing_optional_is_skipped(tmp_path: Path) -> None:
    """Those of the whole kernel do not exist in a namespace."""
    sysctls.apply([Sysctl("ipv4/no_such", 1, optional=True)], str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_every_change_also_of_a_link_that_is_made_again() -> None:
    six = Sysctl("ipv6/conf/again/accept_ra", 0)
    four = Sysctl("ipv4/conf/again/forwarding", 1)
    add = ["ip", "link", "add", "again", "type", "veth", "peer", "other"]
    with contextlib.closing(sysctls.Reader((six, four))) as reader:
        assert dict(reader.all()) == {six: "", four: ""}
        for _ in range(3):
            subprocess.run(add, check=True)
            sysctls.apply((six, four))
            assert dict(reader.all()) == {}
            Path("/proc/sys/net/ipv4/conf/again/forwarding").write_text("0")
            assert dict(reader.all()) == {four: "0"}
            Path("/proc/sys/net/ipv6/conf/again/accept_ra").write_text("2")
            assert dict(reader.all()) == {six: "2", four: "0"}
            subprocess.run(["ip", "link", "del", "again"], check=True)
            assert dict(reader.all()) == {six: "", four: ""}


def test_a_reader_closes_its_descriptors() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.closing(sysctls.Reader(sysctls.NODE)) as reader:
        for _ in range(3):
            list(reader.all())
        assert len(os.listdir("/proc/self/fd")) <= before + len(sysctls.NODE)
    assert len(os.listdir("/proc/self/fd")) == before
