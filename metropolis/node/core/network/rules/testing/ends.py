# SPDX-License-Identifier: Apache-2.0
"""Real connections between the far ends of the lab's links, and with the node.

The lab's far ends get addresses here, routes, and servers: for tests of what a
kernel does at both ends, where packets made by hand are not enough.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.rules.testing.lab import (
    FAMILY,
    FAR_POD,
    OWN,
    WORLD,
    near,
    route,
)
from osbase.conntrack import sources
from osbase.conntrack.ctnetlink import GENMSG, NETLINK_NETFILTER, TUPLE_IP, TUPLE_ORIG
from osbase.netlink import attrs
from osbase.netlink.transport import NetlinkSocket, open_raw
from osbase.test.namespaces import LIMIT_S, inside, sh

NODE: Final = "node"
"""The lab's own namespace, among the names of links."""

ADDRESSES: Final = {
    **OWN,
    "overlay": FAR_POD,
    "up0": WORLD,
    NODE: {version: near(version, "up0") for version in (4, 6)},
}
"""By place: a link's name, for its far end, or NODE."""

TYPES: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_CTA_MARK: Final = 8


def address() -> None:
    """Give the far ends addresses and routes."""
    for name, addresses in ADDRESSES.items():
        if name == NODE:
            continue
        ip = f"nsenter --net=/run/netns/n-{name} ip"
        sh(f"{ip} link set lo up")
        for version, own in addresses.items():
            nodad = "nodad" if version == 6 else ""
            sh(f"{ip} address replace {own}/{32 if version == 4 else 128} dev eth0 {nodad}")
            if name in OWN:
                hop = str(allocs.FIRST_HOP_IPV4 if version == 4 else allocs.FIRST_HOP_IPV6)
                scope = f"{ip} -{version} route replace {hop} dev eth0"
            else:
                hop = near(version, name)
                bits = 24 if version == 4 else 64
                sh(f"{ip} address replace {near(version, name, 2)}/{bits} dev eth0 {nodad}")
                scope = "true"
            sh(scope)
            sh(f"{ip} -{version} route replace default via {hop} dev eth0 src {own}")
    for version in (4, 6):
        route(version, WORLD[version], "up0")


@contextlib.contextmanager
def at(place: str) -> Iterator[None]:
    """Make sockets at a place."""
    if place == NODE:
        yield
        return
    with inside(f"n-{place}"):
        yield


@contextlib.contextmanager
def server(version: int, place: str, port: int, kind: str = "tcp") -> Iterator[socket.socket]:
    """Listen at a place's address."""
    with at(place):
        made = socket.socket(FAMILY[version], TYPES[kind])
    with made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(LIMIT_S)
        made.bind((ADDRESSES[place][version], port))
        if kind == "tcp":
            made.listen(16)
        yield made


def try_tcp(place: str, to: str, port: int) -> str:
    """Connect; return "passes", "reset", or another refusal's name."""
    try:
        connect(place, to, port).close()
    except OSError as error:
        return "reset" if error.errno == errno.ECONNREFUSED else _name(error)
    return "passes"


def connect(place: str, to: str, port: int) -> socket.socket:
    """Connect; raises OSError. The server's kernel accepts."""
    with at(place):
        made = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET)
    made.settimeout(2)
    own = ADDRESSES[place][6 if ":" in to else 4]
    try:
        if place != NODE:
            made.bind((own, 0))
        made.connect((to, port))
    except OSError:
        made.close()
        raise
    return made


def try_udp(place: str, to: str, port: int, answers: socket.socket) -> str:
    """Send to `answers`, and answer; return as `try_tcp`: "passes" is there and
    back, "prohibited" the ICMP error of a policy.
    """
    with at(place):
        made = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.settimeout(2)
        made.connect((to, port))
        try:
            made.send(b"ask")
            while True:
                ready, _, _ = select.select([made, answers], [], [], 2)
                if made in ready:
                    return {b"answer": "passes"}.get(made.recv(100), "garbled")
                if not ready:
                    return "lost"
                answers.sendto(b"answer", answers.recvfrom(100)[1])
        except OSError as error:
            return _name(error)


def _name(error: OSError) -> str:
    """EHOSTUNREACH, of IPv6 EACCES: "administratively prohibited"."""
    if error.errno in (errno.EHOSTUNREACH, errno.EACCES):
        return "prohibited"
    return "lost" if isinstance(error, TimeoutError) else errno.errorcode[error.errno or 0]


def ping(place: str, to: str) -> bool:
    """Whether an echo comes back."""
    flag = "-6" if ":" in to else "-4"
    try:
        with at(place):
            sh(f"ping {flag} -c1 -W1 {to}")
    except Exception:
        return False
    return True


def marks() -> list[tuple[bytes, int]]:
    """Return the source of each tracked flow, and its mark."""
    found = []
    with NetlinkSocket(open_raw(NETLINK_NETFILTER)) as sock:
        for message in sock.dump(sources.dump()):
            entry = attrs.parse(message.body[GENMSG.size :])
            source = attrs.parse(attrs.parse(entry[TUPLE_ORIG])[TUPLE_IP])
            packed = source.get(1) or source.get(3) or b""
            found.append((packed, int.from_bytes(entry.get(_CTA_MARK, b""))))
    return found


def bulk(source: socket.socket, sink: socket.socket, until: float) -> bool:
    """Send from one end of a connection to the other; whether bytes arrived in
    the last 0.2 s before `until`, a time of time.monotonic.
    """
    source.setblocking(False)
    sink.setblocking(False)
    last = 0.0
    while time.monotonic() < until:
        readable, writable, _ = select.select([sink], [source], [], 0.05)
        try:
            if writable:
                source.send(b"x" * 65536)
            if readable and sink.recv(1 << 20):
                last = time.monotonic()
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                return False
    return last > until - 0.2


def reset_on_close(sock: socket.socket) -> None:
    """End without waiting states."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
