# SPDX-License-Identifier: Apache-2.0
"""A link for the uplink, and a DHCP server at its far end.

this namespace: up0 ----- veth ----- srv0: namespace "srv", 192.0.2.1
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address, ip_interface

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from osbase.net.config import Dhcp4, Interface
from osbase.net.dhcp4.testserver import Server
from osbase.test.namespaces import inside, sh

ROUTER = IPv4Address("192.0.2.1")
BY_DHCP = Interface("up0", dhcp4=Dhcp4())
BY_HAND = Interface(
    "up0",
    addresses=(ip_interface("192.0.2.7/24"), ip_interface("2001:db8::7/64")),
    gateways=(ROUTER, ip_address("2001:db8::1")),
    dns=(ip_address("192.0.2.53"),),
)


def srv(command: str) -> str:
    """Run a command in the server's namespace."""
    return sh(f"nsenter --net=/run/netns/srv {command}")


@contextlib.contextmanager
def lab() -> Iterator[None]:
    """Make the link and the server's namespace."""
    sh("ip netns add srv")
    add_link()
    sysctls.apply(sysctls.NODE)
    sh("ip link set lo up")  # this makes the routing tables, too
    yield
    for link in json.loads(sh("ip -json link")):
        if link["ifname"].startswith("up"):
            subprocess.run(["ip", "link", "del", link["ifname"]], check=False)
    sh("ip netns del srv")


def add_link() -> None:
    sh("ip link add up0 address 02:00:00:00:00:07 type veth peer name srv0 netns srv")
    srv("ip address add 192.0.2.1/24 dev srv0")
    srv("ip address add 2001:db8::1/64 dev srv0 nodad")
    srv("ip link set srv0 up")


@contextlib.contextmanager
def leases(options: dict[int, bytes | None]) -> Iterator[Server]:
    """Serve leases of 192.0.2.50, renewed every 2 s."""
    server = Server("srv0", ROUTER, IPv4Address("192.0.2.50"), 60, 2, 50, options=options)
    with inside("srv"):
        server.open()
    with server:
        yield server


def link(name: str = "up0") -> dict[str, object]:
    (found,) = json.loads(sh(f"ip -json link show dev {name}"))
    assert isinstance(found, dict)
    return found


def addresses(version: int = 4) -> set[str]:
    """Return the global ones, with prefix lengths."""
    return {
        f"{one['local']}/{one['prefixlen']}"
        for entry in json.loads(sh(f"ip -json -{version} address show dev up0 scope global"))
        for one in entry.get("addr_info", [])
        if one  # "{}" stands for each that is not shown
    }


def default_routes(version: int = 4) -> list[str]:
    return [
        f"{one.get('gateway')} {one['protocol']}"
        for one in json.loads(sh(f"ip -json -{version} route show default dev up0"))
    ]


OURS = f"{ROUTER} {allocs.ROUTE_PROTOCOL_UPLINK}"
