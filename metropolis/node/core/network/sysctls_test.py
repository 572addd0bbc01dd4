# SPDX-License-Identifier: Apache-2.0
"""Kernel settings, in the kernel of a fresh network namespace."""

from __future__ import annotations

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
