# SPDX-License-Identifier: Apache-2.0
"""A node's prefixes are read from its routes, also those of ip(8)."""

from __future__ import annotations

import subprocess

from metropolis.node.core.network.overlay.overlay import held_prefixes
from metropolis.node.core.network.overlay.testing.contract import net


def ip(command: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *command.split()], check=True)


def test_held_prefixes() -> None:
    """Unreachable routes of the overlay's protocol, and no others."""
    assert held_prefixes() == ()
    ip("link set lo up")
    ip("route add unreachable 10.192.7.0/24 protocol 78 metric 50")
    ip("route add unreachable 10.192.3.0/24 protocol 78 metric 50")
    ip("-6 route add unreachable fd00:10:192::7:0/112 protocol 78 metric 50")
    ip("route add unreachable 10.192.8.0/24 protocol 77")
    ip("route add 10.192.0.0/12 dev lo protocol 78")
    assert held_prefixes() == net("10.192.3.0/24", "10.192.7.0/24", "fd00:10:192::7:0/112")
