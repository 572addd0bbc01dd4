# SPDX-License-Identifier: Apache-2.0
"""A strict reverse path where the settings demand it, and nowhere else.

The attacker is a host on the uplink's link, with addresses that are not behind
it; here those in the network of another link.
"""

from __future__ import annotations

import pytest

from metropolis.node import allocs
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.testing import packets
from metropolis.node.core.network.rules.testing.lab import (
    NETWORKS,
    WORLD,
    apply,
    counters,
    near,
    node_socket,
    received,
    taps,
)

pytestmark = pytest.mark.usefixtures("links")

FAMILIES = pytest.mark.parametrize("version", [4, 6])
FIRST = {4: "169.254.3.3", 6: "fe80::3"}


def strict(*versions: int, overlay: bool = True) -> Settings:
    """On the uplink."""
    return Settings(NETWORKS, strict=tuple((v, "up0") for v in versions), overlay=overlay)


@FAMILIES
@pytest.mark.parametrize("by", ["up0", "lan"])
def test_only_the_uplink_is_strict(version: int, by: str) -> None:
    """Outside sources and its own neighbours' enter by the uplink; another
    uplink's network only by its own link, and outside ones there, too.
    """
    apply(strict(version))
    elsewhere = near(version, "lan" if by == "up0" else "up0", 5)
    sources = [WORLD[version], near(version, by, 5), elsewhere, FIRST[version]]
    with taps(by) as (world,), node_socket(version) as node:
        port = node.getsockname()[1]
        for source in sources:
            world.send(packets.udp(source, near(version, by), (9, port), source.encode()))
        world.send(packets.udp(near(version, by, 2), near(version, by), (9, port), b"last"))
        got = {one.decode() for one in received(node, b"last")}
    assert got == {*sources, "last"} - ({elsewhere} if by == "up0" else set())
    assert counters().get("reverse_path", 0) == (by == "up0")


@FAMILIES
def test_each_family_for_itself(version: int) -> None:
    """Strict in the other family, or in none."""
    for settings in (strict(10 - version), strict()):
        apply(settings)
        with taps("up0") as (world,), node_socket(version) as node:
            port = node.getsockname()[1]
            source = near(version, "lan", 5)
            world.send(packets.udp(source, near(version, "up0"), (9, port), b"loose"))
            assert received(node, b"loose") == [b"loose"]


@FAMILIES
def test_wireguard_may_come_another_way(version: int) -> None:
    """Underlays may be asymmetric; the node's own address is always forged."""
    apply(strict(version))
    elsewhere, own = near(version, "lan", 5), near(version, "up0")
    with taps("up0") as (world,), node_socket(version, allocs.WIREGUARD_PORT) as node:
        port = allocs.WIREGUARD_PORT
        world.send(
            packets.udp(own, own, (port, port), b"own"),
            packets.udp(elsewhere, own, (port, port + 1), b"other-port"),
            packets.udp(elsewhere, own, (port, port), b"asymmetric"),
        )
        assert received(node, b"asymmetric") == [b"asymmetric"]
    assert counters()["node_forged"] == 1
    assert counters()["reverse_path"] == 1
