# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for tests, and sockets in them. Needs root of a namespace.

Tests read results without the code under test: pyroute2 makes the listings, and
ordinary sockets the traffic.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyroute2 import IPRoute

CLONE_NEWNET = 0x40000000
WAIT_S = 10.0

type Objects = list[str]


class Pod:
    """A new, empty network namespace; it ends with `close` and its sockets.

    path: for a process that can see this one's /proc. open_as: take the
    namespace at this path instead of a new one.
    """

    def __init__(self, open_as: str = "") -> None:
        own = "/proc/thread-self/ns/net"
        self._home = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
        if not open_as:
            os.unshare(CLONE_NEWNET)
        self.fd = os.open(open_as or own, os.O_RDONLY | os.O_CLOEXEC)
        os.setns(self._home, CLONE_NEWNET)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"

    def inside[T](self, make: Callable[[], T]) -> T:
        """Call `make` in the namespace; return its result."""
        os.setns(self.fd, CLONE_NEWNET)
        try:
            return make()
        finally:
            os.setns(self._home, CLONE_NEWNET)

    def socket(self, family: int, kind: int) -> socket.socket:
        """Return a socket in the namespace, with a time limit."""
        made = self.inside(lambda: socket.socket(family, kind))
        made.settimeout(WAIT_S)
        return made

    def objects(self) -> Objects:
        """See objects()."""
        return self.inside(objects)

    def close(self) -> None:
        """Close the namespace; closing twice does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            os.close(self._home)
            self.fd = -1


@contextlib.contextmanager
def pods(count: int) -> Iterator[list[Pod]]:
    """Make pods; close them at the end."""
    made = [Pod() for _ in range(count)]
    try:
        yield made
    finally:
        for pod in made:
            pod.close()


def objects() -> Objects:
    """Return links, addresses, routes and rules of the calling thread's
    namespace, as pyroute2 lists them, without what changes by itself.
    """
    with IPRoute() as witness:
        listings = [
            witness.get_links(),
            witness.get_addr(),
            witness.get_routes(),
            witness.get_rules(),
        ]
        stable = [_stable(found) for listing in listings for found in listing]
        return sorted(repr(found) for found in stable if not _by_kernel(found))


def await_equal[T](look: Callable[[], T], expected: T, wait_s: float = WAIT_S) -> T:
    """Return what `look` finds, once it is as expected or after this time."""
    deadline = time.monotonic() + wait_s
    while (found := look()) != expected and time.monotonic() < deadline:
        pass
    return found


def await_objects(expected: Objects) -> Objects:
    """Return the objects, once they are as expected or after WAIT_S: a link is
    deleted behind the answer of its Detach.
    """
    return await_equal(objects, expected)


def settled(address: str, links: int = 1, look: Callable[[], Objects] = objects) -> Objects:
    """Return the result of `look`, once so many links have this IPv6 address
    for good: the kernel makes its local route a moment after the address.
    """
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = look()
        wanted = (f"'RTA_DST': '{address}'", "'table': '255'")
        local = [one for one in found if all(text in one for text in wanted)]
        if len(local) == links:
            return found
    raise AssertionError(f"{address}: {len(local)} local routes, not {links}: {local}")


# Fields that change by themselves; and a link's qdisc, which it gets once up.
_CHANGING = {
    "IFLA_OPERSTATE",
    "IFLA_STATS",
    "IFLA_STATS64",
    "IFLA_AF_SPEC",
    "IFLA_QDISC",
    "IFLA_CARRIER",
    "IFLA_CARRIER_CHANGES",
    "IFLA_CARRIER_UP_COUNT",
    "IFLA_CARRIER_DOWN_COUNT",
    "IFA_CACHEINFO",
    "IFA_FLAGS",
    "RTA_CACHEINFO",
}


def _stable(found: Any) -> dict[str, str]:
    """Return a message of pyroute2 as text, without changing fields."""
    fields = {k: str(v) for k, v in found.items() if k not in ("attrs", "header", "event", "flags")}
    attributes = {slot[0]: str(slot[1]) for slot in found["attrs"] if slot[0] not in _CHANGING}
    return fields | attributes


def _by_kernel(found: dict[str, str]) -> bool:
    """Return whether it belongs to the IPv6 address that the kernel itself
    gives an interface: that is complete a second or so after the link.
    """
    address = found.get("IFA_ADDRESS") or found.get("RTA_DST") or ""
    return address.startswith("fe80::") and address not in ("fe80::", "fe80::1")


def udp_round_trip(
    server: socket.socket, client: socket.socket, address: str, source: str | None = None
) -> tuple[str, str]:
    """Send a datagram to `address`, and answer it; return the peers as server
    and client saw them. Raises TimeoutError.
    """
    server.bind((address, 0))
    if source is not None:
        client.bind((source, 0))
    client.connect((address, server.getsockname()[1]))
    # The first packets may be sent before the carrier is noticed.
    for _ in range(50):
        client.send(b"ping")
        if select.select([server], [], [], WAIT_S / 50)[0]:
            break
    _, peer = server.recvfrom(100)
    server.sendto(b"pong", peer)
    _, answered = client.recvfrom(100)
    return str(peer[0]), str(answered[0])
