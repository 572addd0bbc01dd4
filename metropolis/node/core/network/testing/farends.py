# SPDX-License-Identifier: Apache-2.0
"""Links of workloads and of the outside, with their far ends.

    pod, flooder, quiet -- (group 8) this namespace, forwards -- up0

The far end of link NAME is eth0 of the namespace n-NAME.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from metropolis.node import allocs
from osbase.test.namespaces import at, inside, sh

FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_NAMES: Final = ("up0", "pod", "flooder", "quiet")
_HOPS: Final = {4: allocs.FIRST_HOP_IPV4, 6: allocs.FIRST_HOP_IPV6}


def address(version: int, name: str, host: int = 2) -> str:
    """Return an address of a link: 2 is the far end, 1 this one."""
    number = _NAMES.index(name) + 1
    return f"10.1.{number}.{host}" if version == 4 else f"fd01:{number}::{host}"


def far(name: str) -> contextlib.AbstractContextManager[None]:
    """Make sockets of the block at the far end of a link."""
    return inside(f"n-{name}")


def connect(names: Iterable[str]) -> None:
    """Make the links; this namespace forwards."""
    sh("ip link set lo up")
    sh(f"ip address add {allocs.FIRST_HOP_IPV4}/32 dev lo")
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", path).write_text("1")
    for name in names:
        sh(f"ip netns add n-{name}")
        sh(f"ip link add {name} type veth peer name eth0 netns n-{name}")
        sh(f"ip link set {name} up group {0 if name == 'up0' else allocs.LINK_GROUP_WORKLOAD}")
        sh(f"{at(f'n-{name}')} ip link set eth0 up")
        for version in (4, 6):
            if name == "up0":
                _as_the_world(version, name)
            else:
                _as_a_workload(version, name)


def _as_the_world(version: int, name: str) -> None:
    bits, more = (24, "") if version == 4 else (64, " nodad")
    own = address(version, name, 1)
    sh(f"ip address add {own}/{bits} dev {name}{more}")
    sh(f"{at(f'n-{name}')} ip address add {address(version, name)}/{bits} dev eth0{more}")
    sh(f"{at(f'n-{name}')} ip -{version} route add default via {own}")


def _as_a_workload(version: int, name: str) -> None:
    """Configure a far end that resolves the first hop alone."""
    bits, more = (32, "") if version == 4 else (128, " nodad")
    hop, there = _HOPS[version], address(version, name)
    if version == 6:
        sh(f"ip address add {hop}/64 dev {name} nodad")
    sh(f"ip -{version} route add {there}/{bits} dev {name}")
    sh(f"{at(f'n-{name}')} ip address add {there}/{bits} dev eth0{more}")
    sh(f"{at(f'n-{name}')} ip -{version} route add {hop} dev eth0")
    sh(f"{at(f'n-{name}')} ip -{version} route add default via {hop} dev eth0")
