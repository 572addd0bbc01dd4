# SPDX-License-Identifier: Apache-2.0
"""What tests of node core in namespaces share."""

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
    """The server's namespace, and two for workloads; no uplink yet."""
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
    """The uplink, and a server that gives addresses on it."""
    add_uplink()
    with dnsmasq(tmp_path):
        yield


@pytest.fixture
def core(world: None, tmp_path: Path) -> Iterator[NodeCore]:
    """Node core, not started; stopped at the end, which must be clean."""
    node = NodeCore(tmp_path)
    yield node
    if node.process is not None:
        assert node.stop() == 0


@pytest.fixture
def other_link(world: None) -> Iterator[None]:
    """A link `x0` of somebody else, up."""
    sh("ip link add x0 type bridge")
    sh("ip link set x0 up")
    yield
    subprocess.run(["ip", "link", "del", "x0"], check=False, capture_output=True)
