# SPDX-License-Identifier: Apache-2.0
"""Datagrams between the node, its workloads, and the server on the uplink."""

from __future__ import annotations

import errno
import json
import select
import socket
import time
from ipaddress import IPv4Address, IPv6Address, ip_address

from osbase.ip import IPAddress
from osbase.test.namespaces import LIMIT_S, inside, sh

SERVER: dict[int, IPAddress] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8:2::1")}
PORT = 7777
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def listen(namespace: str, version: int, port: int = PORT) -> socket.socket:
    """Return a UDP socket in a namespace, on all its addresses."""
    with inside(namespace):
        sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    if version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", port))
    sock.settimeout(LIMIT_S)
    return sock


def listen_here(version: int, port: int = PORT) -> socket.socket:
    """Return a UDP socket on the node."""
    sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    if version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("", port))
    sock.settimeout(LIMIT_S)
    return sock


def heard(receiver: socket.socket, sender: socket.socket, to: IPAddress, port: int) -> IPAddress:
    """Send until it arrives; return the source that the receiver saw."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            sender.sendto(b"hello", (str(to), port))
        except OSError as error:
            # No route or no address yet: the uplink is being configured.
            assert error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)
        if select.select([receiver], [], [], 0.2)[0]:
            return ip_address(receiver.recvfrom(100)[1][0])
    raise AssertionError(f"nothing arrived at {to} port {port}")


def node_address(version: int) -> IPAddress:
    """Return the node's own global address on the uplink."""
    for entry in json.loads(sh(f"ip -json -{version} address show dev up0 scope global")):
        for found in entry["addr_info"]:
            return ip_address(found["local"])
    raise AssertionError(f"no IPv{version} address on the uplink")
