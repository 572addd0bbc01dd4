# SPDX-License-Identifier: Apache-2.0
"""The host's side of rtnetlink: sockets, batches, and queries."""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence

from metropolis.node import allocs
from metropolis.node.core.network.workloads.errors import KernelRefused
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.ip import AF_INET, AF_INET6
from osbase.netlink import qdisc
from osbase.netlink.address import Address, add_address, dump_addresses, parse_address
from osbase.netlink.errors import BatchError, NetlinkError
from osbase.netlink.forwarding import stopped_alone
from osbase.netlink.link import (
    Link,
    dump_links,
    get_link,
    get_link_by_name,
    parse_link,
    set_link_up,
)
from osbase.netlink.message import Request
from osbase.netlink.neighbours import dump_neighbours, parse_written
from osbase.netlink.route import RT_SCOPE_LINK, Route, dump_routes, parse_route
from osbase.netlink.template import Encoded
from osbase.netlink.transport import SocketPool
from osbase.netlink.veth import load_veth

log = logging.getLogger(__name__)

LOOPBACK = 1  # its index in every namespace


class Host:
    """The host's network namespace; callers must be in it.

    Thread-safe, except `open` and `close`. Methods raise NetlinkError and
    OSError. ipv6: whether the kernel has it; known once this is open.
    """

    def __init__(self) -> None:
        self.sockets = SocketPool()
        self.ipv6 = False

    def open(self) -> None:
        """Open the sockets; also after `close`."""
        self.sockets = SocketPool()
        self.ipv6 = os.path.exists("/proc/sys/net/ipv6")

    def close(self) -> None:
        """Close the sockets; those in use close when they are returned."""
        self.sockets.close()

    # ---- Requests -----------------------------------------------------------

    def batch(self, *requests: Request, tolerate: Collection[int] = ()) -> None:
        """Send requests at once. Raises BatchError with what was refused, but
        for errors of the numbers to tolerate.
        """
        with self.sockets.socket() as host:
            host.batch(requests, tolerate=tolerate)

    def batch_encoded(self, batch: Encoded, requests: Callable[[], Sequence[Request]]) -> None:
        """Send an encoded batch. requests: the same, decoded, for errors."""
        with self.sockets.socket() as host:
            host.batch_encoded(batch, requests)

    # ---- Preparation --------------------------------------------------------

    def ensure_first_hop(self) -> None:
        """Add the IPv4 first hop to lo: it answers the ARP of workloads."""
        hop = allocs.FIRST_HOP_IPV4
        self.batch(
            set_link_up(LOOPBACK, "lo"),
            add_address(LOOPBACK, "lo", hop, 32, scope=RT_SCOPE_LINK),
            tolerate={errno.EEXIST},
        )

    def load_veth(self) -> None:
        """Load the module: otherwise the first attach waits for it, and a
        concurrent one may fail.
        """
        try:
            self.batch(load_veth(), tolerate={errno.EBADF})
        except BatchError as error:
            log.error("no workload can be attached with this kernel: %s", error)

    # ---- Queries ------------------------------------------------------------

    def links(self) -> list[Link]:
        """Return all links."""
        with self.sockets.socket() as host:
            return [parse_link(message) for message in host.dump(dump_links())]

    def routes(self) -> dict[tuple[IPAddress, int], Route]:
        """Return the host routes of workloads, by address and link's index."""
        found: dict[tuple[IPAddress, int], Route] = {}
        protocol = allocs.ROUTE_PROTOCOL_WORKLOAD
        families = (AF_INET, AF_INET6) if self.ipv6 else (AF_INET,)
        for family in families:
            with self.sockets.socket() as host:
                messages = host.dump(dump_routes(family, protocol))
            for message in messages:
                route = parse_route(message)
                if route is None or route.protocol != protocol or route.ifindex is None:
                    continue
                if route.destination.prefixlen == route.destination.max_prefixlen:
                    found[route.destination.network_address, route.ifindex] = route
        return found

    def first_hops(self) -> dict[int, Address]:
        """Return the IPv6 first hops, by the link's index."""
        if not self.ipv6:
            return {}
        with self.sockets.socket() as host:
            messages = host.dump(dump_addresses(AF_INET6, 0))
        found = (parse_address(message) for message in messages)
        return {one.ifindex: one for one in found if one and one.address == allocs.FIRST_HOP_IPV6}

    def cut_off(self) -> set[int]:
        """Return the indexes of the links that no packet passes."""
        try:
            with self.sockets.socket() as host:
                found = [qdisc.parse_clsact(message) for message in host.dump(qdisc.dump_qdiscs())]
        except BatchError as error:
            if error.errors[0].errno == errno.EOPNOTSUPP:
                return set()  # a kernel without queueing disciplines
            raise
        ours = allocs.REMOVAL_BLOCKS
        return {
            one.ifindex for one in found if one and (one.ingress_block, one.egress_block) == ours
        }

    def neighbours(self) -> dict[tuple[IPAddress, int], bytes]:
        """Return the MACs that a program wrote, by address and link's index."""
        families = (AF_INET, AF_INET6) if self.ipv6 else (AF_INET,)
        found: dict[tuple[IPAddress, int], bytes] = {}
        for family in families:
            with self.sockets.socket() as host:
                for message in host.dump(dump_neighbours(family)):
                    if (one := parse_written(message)) is not None:
                        found[one.address, one.ifindex] = one.mac
        return found

    def link(self, ifindex: int) -> Link | None:
        """Return the link of an index."""
        return self._get(get_link(ifindex))

    def link_named(self, name: str) -> Link | None:
        """Return the link of a name."""
        return self._get(get_link_by_name(name))

    def forwarding_stopped(self, ifindex: int) -> bool:
        """Return whether a link lacks IPv4 forwarding while the host has it;
        False also if there is no such link.
        """
        try:
            with self.sockets.socket() as host:
                return stopped_alone(host, ifindex)
        except BatchError as error:
            if error.errors[0].errno == errno.ENODEV:
                return False
            raise

    def _get(self, request: Request) -> Link | None:
        try:
            with self.sockets.socket() as host:
                return parse_link(host.get(request))
        except BatchError as error:
            if error.errors[0].errno == errno.ENODEV:
                return None
            raise


@contextlib.contextmanager
def refusals(operation: str) -> Iterator[None]:
    """Turn errors of the system and of netlink into KernelRefused."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        raise KernelRefused(f"{operation}: {error}") from error
