# SPDX-License-Identifier: Apache-2.0
"""The promises of netns = True, checked from inside."""

import os
import pathlib
import socket

import pytest


def test_is_root_of_an_empty_network() -> None:
    assert os.geteuid() == 0
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert sorted(os.listdir("/sys/class/net")) == ["lo"]


def test_interfaces_start_down() -> None:
    with socket.socket() as sock, pytest.raises(OSError, match="unreachable"):
        sock.connect(("127.0.0.1", 1))
    assert pathlib.Path("/sys/class/net/lo/operstate").read_text().strip() == "down"


def test_may_change_the_network() -> None:
    """Sysctls and namespaces need CAP_NET_ADMIN and CAP_SYS_ADMIN."""
    pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    os.unshare(os.CLONE_NEWNET)
    os.setns(home, os.CLONE_NEWNET)
    os.close(home)


def test_run_is_empty_and_writable() -> None:
    assert os.listdir("/run") == []
    pathlib.Path("/run/x").write_text("x")
    os.unlink("/run/x")
