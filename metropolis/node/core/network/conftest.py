# SPDX-License-Identifier: Apache-2.0
"""Fixtures of node core's tests in namespaces."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.testing.nodecore import NodeCore, add_uplink, dnsmasq
from osbase.test.namespaces import sh


@pytest.fixture
def world() -> Iterator[None]:
    """Make the server's namespace, and two for workloads; no uplink yet."""
    for name in ("srv", "pod-a", "pod-b"):
        sh(f"ip netns add {name}")
    try:
        yield
    finally:
        for link in json.loads(sh("ip -json link")):
            if link["ifname"] == "up0" or link["group"] == str(allocs.LINK_GROUP_WORKLOAD):
                sh(f"ip link del {link['ifname']}")
        for name in ("srv", "pod-a", "pod-b"):
            sh(f"ip netns del {name}")
        sh("nft flush ruleset")


@pytest.fixture
def uplink(world: None, tmp_path: Path) -> Iterator[None]:
    """Make the uplink, and a DHCP server on it."""
    add_uplink()
    with dnsmasq(tmp_path):
        yield


@pytest.fixture
def core(world: None, tmp_path: Path) -> Iterator[NodeCore]:
    """Make node core, not started; stopping it at the end must be clean."""
    node = NodeCore(tmp_path)
    yield node
    if node.process is not None:
        assert node.stop() == 0


@pytest.fixture
def other_link(world: None) -> Iterator[None]:
    """Make a foreign link `x0`, up."""
    sh("ip link add x0 type bridge")
    sh("ip link set x0 up")
    yield
    subprocess.run(["ip", "link", "del", "x0"], check=False, capture_output=True)
