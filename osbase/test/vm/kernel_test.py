# SPDX-License-Identifier: Apache-2.0
"""Runs in the machine: its kernel's features, and vm_pytest's promises."""

import os
import subprocess
from pathlib import Path

import pytest


def ip(*arguments: str) -> str:
    """Run ip(8)."""
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("kind", ["netkit", "wireguard", "veth", "vxlan"])
def test_links_that_the_host_may_lack(kind: str) -> None:
    more = ["id", "7", "dstport", "4789"] if kind == "vxlan" else []
    ip("link", "add", "test0", "type", kind, *more)
    assert f" {kind} " in ip("-details", "link", "show", "test0")
    ip("link", "del", "test0")


def test_nftables() -> None:
    rules = "table t {\nchain c {\ntype nat hook postrouting priority 100\nmasquerade\n}\n}\n"
    subprocess.run(["nft", "-f", "-"], input=rules, check=True, text=True)
    listed = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True)
    assert "masquerade" in listed.stdout


def test_root_of_everything() -> None:
    assert os.getuid() == 0
    assert "0 4294967295" in " ".join(Path("/proc/self/uid_map").read_text().split())


def test_outputs_come_back() -> None:
    Path(os.environ["TEST_UNDECLARED_OUTPUTS_DIR"], "hello").write_text("from the guest\n")
