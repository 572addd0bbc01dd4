# SPDX-License-Identifier: Apache-2.0
"""The real kernel keeps the contract, and `wg` and `ip` see the same."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.overlay import addressing, keys
from metropolis.node.core.network.overlay.device import Links, PeerChange
from metropolis.node.core.network.overlay.kernel import LinuxKernel
from metropolis.node.core.network.overlay.mesh import Mesh
from metropolis.node.core.network.overlay.testing.contract import (
    HERE,
    KEY,
    PORT,
    THERE,
    KernelContract,
    key,
    net,
)
from metropolis.node.core.network.overlay.testing.lab import Space, spaces


@dataclass
class RealBench:
    """See contract.Bench."""

    space: Space
    kernel: LinuxKernel

    def again(self) -> LinuxKernel:
        self.kernel.close()
        self.kernel = self.space.kernel()
        return self.kernel

    def take_name(self) -> None:
        self.space.sh("ip link add overlay type dummy")

    def delete_link(self) -> None:
        self.space.sh("ip link del overlay")

    def mtu(self) -> int:
        return int(json.loads(self.space.sh("ip -json link show overlay"))[0]["mtu"])


@pytest.fixture
def bench() -> Iterator[RealBench]:
    with spaces("kernel") as (space,):
        made = RealBench(space, space.kernel())
        yield made
        made.kernel.close()


class TestReal(KernelContract):
    """The whole contract."""

    @pytest.fixture
    def bench(self, bench: RealBench) -> RealBench:
        return bench


def test_wg_sees_the_same(bench: RealBench) -> None:
    """wg(8) sees the keys, endpoints, allowed IPs, no keepalive."""
    bench.kernel.ensure_link(1400, KEY, PORT)
    prefixes = net("10.9.1.0/24", "fd00:9::1:0/112")
    bench.kernel.apply([PeerChange(key(1), HERE, prefixes), PeerChange(key(2), THERE, prompt=True)])
    device, *peers = (
        line.split("\t") for line in bench.space.sh("wg show overlay dump").splitlines()
    )
    text = [base64.b64encode(one).decode() for one in (KEY, keys.public_key(KEY), key(1), key(2))]
    assert device == [text[0], text[1], str(PORT), "off"]
    (one,) = [peer for peer in peers if peer[0] == text[2]]
    (two,) = [peer for peer in peers if peer[0] == text[3]]
    assert one[2] == "192.0.2.7:51820"
    assert set(one[3].split(",")) == {"10.9.1.0/24", "fd00:9::1:0/112"}
    assert (two[2], two[3], two[7]) == ("[2001:db8::7]:4711", "(none)", "off")


def test_ip_sees_the_same(bench: RealBench) -> None:
    """ip(8) sees group, addresses, routes with source and protocol."""
    bench.kernel.ensure_link(1400, KEY, PORT)
    mesh = Mesh(net("10.9.0.0/16", "fd00:9::/64"), net("10.9.1.0/24", "fd00:9::1:0/112"))
    bench.kernel.change_links(addressing.wanted(mesh), Links())
    (link,) = json.loads(bench.space.sh("ip -json -details link show overlay"))
    assert link["group"] == str(allocs.LINK_GROUP_OVERLAY)
    assert "UP" in link["flags"]
    (shown,) = json.loads(bench.space.sh("ip -json address show overlay"))
    found = {
        (one["local"], one["prefixlen"], int(one["protocol"], 0)) for one in shown["addr_info"]
    }
    assert found == {("10.9.1.0", 32, 78), ("fd00:9::1:0", 128, 78)}
    assert not any(one.get("tentative") for one in shown["addr_info"])
    for version, to, source in ((4, "10.9.7.7", "10.9.1.0"), (6, "fd00:9::7:7", "fd00:9::1:0")):
        (route,) = json.loads(bench.space.sh(f"ip -json -{version} route get {to}"))
        assert (route["dev"], route["prefsrc"]) == ("overlay", source)
        listed = json.loads(bench.space.sh(f"ip -json -{version} route show protocol 78"))
        kinds = {one["dst"]: one.get("type", "unicast") for one in listed}
        assert sorted(kinds.values()) == ["unicast", "unreachable"]
