# SPDX-License-Identifier: Apache-2.0
"""The real kernel of the overlay; device.Kernel is its specification.

It has two sockets, for rtnetlink and generic netlink, opened on demand and
kept, in the namespace of the thread that opens them. An error closes them,
since an answer may be outstanding.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.overlay import wireguard
from metropolis.node.core.network.overlay.device import (
    Device,
    LinkFound,
    Links,
    OverlayError,
    PeerChange,
)
from metropolis.node.core.network.overlay.mesh import IPNetwork
from osbase.ip import AF_INET, AF_INET6
from osbase.netlink import genl
from osbase.netlink.address import add_address, del_address, dump_addresses, parse_address
from osbase.netlink.errors import BatchError
from osbase.netlink.link import (
    Link,
    del_link,
    get_link_by_name,
    new_link,
    parse_link,
    set_link_group,
    set_link_mtu,
    set_link_up,
)
from osbase.netlink.message import Request
from osbase.netlink.route import (
    RTN_UNREACHABLE,
    Route,
    del_route,
    dump_routes,
    parse_route,
    replace_route,
)
from osbase.netlink.transport import NetlinkSocket, make_strict, open_raw

_NAME = allocs.OVERLAY_LINK


class LinuxKernel:
    """A Kernel. open_socket: makes a netlink socket for a protocol; for tests
    in several namespaces.
    """

    def __init__(self, open_socket: Callable[[int], socket.socket] = open_raw) -> None:
        """Make it; sockets are opened later."""
        self._open = open_socket
        self._route_socket: NetlinkSocket | None = None
        self._generic_socket: NetlinkSocket | None = None
        self._family = 0

    def close(self) -> None:
        """See Kernel."""
        for sock in (self._route_socket, self._generic_socket):
            if sock is not None:
                sock.close()
        self._route_socket = self._generic_socket = None

    @contextlib.contextmanager
    def _route(self) -> Iterator[NetlinkSocket]:
        if self._route_socket is None:
            raw = self._open(socket.NETLINK_ROUTE)
            self._route_socket = NetlinkSocket(make_strict(raw))
        with self._closing_on_error():
            yield self._route_socket

    @contextlib.contextmanager
    def _generic(self) -> Iterator[NetlinkSocket]:
        with self._closing_on_error():
            if self._generic_socket is None:
                self._generic_socket = NetlinkSocket(self._open(genl.NETLINK_GENERIC))
                # Again for each socket: the module may have been reloaded.
                self._family = genl.resolve(self._generic_socket, wireguard.FAMILY_NAME)
            yield self._generic_socket

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _link(self, sock: NetlinkSocket) -> Link | None:
        try:
            return parse_link(sock.get(get_link_by_name(_NAME)))
        except BatchError as error:
            if error.errors[0].errno == errno.ENODEV:
                return None
            raise

    def _index(self, sock: NetlinkSocket) -> int:
        link = self._link(sock)
        if link is None:
            raise OverlayError(f"the link {_NAME} is gone")
        return link.ifindex

    def ensure_link(self, mtu: int, private_key: bytes, port: int) -> int | None:
        """See Kernel."""
        with _with_hints(port), self._route() as sock:
            link = found = self._link(sock)
            if link is None:
                new = new_link(_NAME, "wireguard", mtu=mtu, group=allocs.LINK_GROUP_OVERLAY)
                sock.batch([new])
                link = self._link(sock)
            if link is None or link.kind != b"wireguard":
                kind = "gone" if link is None else f"of kind {link.kind.decode(errors='replace')!r}"
                raise OverlayError(f"the link {_NAME} is {kind}, not of kind 'wireguard'")
            with self._generic() as generic:
                identity = wireguard.set_identity(
                    self._family, _NAME, private_key=private_key, port=port
                )
                generic.batch([identity])
            sock.batch(
                [
                    set_link_group(link.ifindex, _NAME, allocs.LINK_GROUP_OVERLAY),
                    set_link_up(link.ifindex, _NAME),
                ]
            )
        return None if found is None else found.mtu

    def link(self) -> LinkFound | None:
        """See Kernel."""
        with self._route() as sock:
            found = self._link(sock)
        if found is None or found.kind != b"wireguard":
            return None
        return LinkFound(found.up, found.group, found.mtu)

    def set_mtu(self, mtu: int) -> None:
        """See Kernel."""
        with self._route() as sock:
            sock.batch([set_link_mtu(self._index(sock), _NAME, mtu)])

    def set_private_key(self, private_key: bytes) -> None:
        """See Kernel."""
        with self._generic() as sock:
            sock.batch([wireguard.set_identity(self._family, _NAME, private_key=private_key)])

    def device(self) -> Device:
        """See Kernel."""
        with self._generic() as sock:
            return wireguard.parse_device(sock.dump(wireguard.get_device(self._family, _NAME)))

    def apply(self, changes: Sequence[PeerChange]) -> int:
        """See Kernel."""
        if not changes:
            return 0
        with self._generic() as sock:
            requests = wireguard.set_peers(self._family, _NAME, changes)
            for request in requests:
                sock.batch([request])
            return len(requests)

    def links(self) -> Links:
        """See Kernel."""
        with self._route() as sock:
            ifindex = self._index(sock)
            addresses = set()
            for family in (AF_INET, AF_INET6):
                for message in sock.dump(dump_addresses(family, ifindex)):
                    found = parse_address(message)
                    if found is not None and found.protocol == allocs.ROUTE_PROTOCOL_OVERLAY:
                        addresses.add(found.address)
            return Links(frozenset(addresses), frozenset(_own_routes(sock)))

    def change_links(self, add: Links, remove: Links) -> None:
        """See Kernel. Without IPv6 in the kernel, IPv6's are not added: IPv4's
        work all the same.
        """
        if not os.path.exists("/proc/sys/net/ipv6"):
            add = Links(
                frozenset(one for one in add.addresses if one.version == 4),
                frozenset(one for one in add.routes if one.destination.version == 4),
            )
        with self._route() as sock:
            ifindex = self._index(sock)

            def placed(route: Route) -> Route:
                if route.kind == RTN_UNREACHABLE:
                    return route
                return _on(route, ifindex)

            requests: list[Request] = []
            for address in add.addresses:
                bits, protocol = address.max_prefixlen, allocs.ROUTE_PROTOCOL_OVERLAY
                requests.append(
                    add_address(
                        ifindex,
                        _NAME,
                        address,
                        bits,
                        no_dad=address.version == 6,
                        protocol=protocol,
                    )
                )
            requests += [replace_route(placed(route), _NAME) for route in add.routes]
            requests += [del_route(placed(route), _NAME) for route in remove.routes]
            requests += [
                del_address(ifindex, _NAME, address, address.max_prefixlen)
                for address in remove.addresses
            ]
            sock.batch(requests)


@contextlib.contextmanager
def _with_hints(port: int) -> Iterator[None]:
    """Add to a refusal what people can do about it."""
    hints = {
        errno.EADDRINUSE: f"another program has UDP port {port}; stop it (`ss -lunp` shows it)",
        errno.EOPNOTSUPP: "the kernel has no WireGuard; load its module, wireguard, or boot a "
        "kernel that has it",
    }
    try:
        yield
    except BatchError as error:
        hint = hints.get(error.errors[0].errno)
        if hint is None:
            raise
        raise OverlayError(f"{error}: {hint}") from error


def _on(route: Route, ifindex: int | None) -> Route:
    """Return the route with the link's index. Kernel's routes through the
    overlay have no index, which is an internal detail here.
    """
    return Route(
        route.destination,
        ifindex,
        route.protocol,
        route.gateway,
        route.source,
        route.kind,
        route.metric,
    )


def _own_routes(sock: NetlinkSocket) -> Iterator[Route]:
    for family in (AF_INET, AF_INET6):
        for message in sock.dump(dump_routes(family, allocs.ROUTE_PROTOCOL_OVERLAY)):
            route = parse_route(message)
            if route is not None:  # without IPv6 the kernel answers with all families
                yield _on(route, None)


def own_routes() -> frozenset[Route]:
    """Return the routes of the overlay's protocol. Raises NetlinkError."""
    with NetlinkSocket() as sock:
        return frozenset(_own_routes(sock))


def withdraw(prefixes: Collection[IPNetwork]) -> None:
    """Remove routes to anything in these prefixes, and the overlay link's
    addresses in them, as an earlier run left them. Blocks. Raises NetlinkError.
    """
    if not prefixes:
        return
    with NetlinkSocket() as sock:
        for route in list(_own_routes(sock)):
            if any(_overlap(route.destination, prefix) for prefix in prefixes):
                sock.batch([del_route(route, _NAME)], tolerate={errno.ESRCH})
        for family in (AF_INET, AF_INET6):
            for message in sock.dump(dump_addresses(family, 0)):
                found = parse_address(message)
                if (
                    found is not None
                    and found.protocol == allocs.ROUTE_PROTOCOL_OVERLAY
                    and any(found.address in prefix for prefix in prefixes)
                ):
                    request = del_address(found.ifindex, _NAME, found.address, found.prefix_length)
                    sock.batch([request], tolerate={errno.EADDRNOTAVAIL})


_EVERYTHING: Final = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def leave() -> None:
    """Remove all that an earlier run in a cluster left: routes, addresses and
    the link, through which other nodes still send. Blocks. Raises
    NetlinkError.
    """
    withdraw(_EVERYTHING)
    with NetlinkSocket() as sock:
        try:
            link = parse_link(sock.get(get_link_by_name(_NAME)))
        except BatchError as error:
            if error.errors[0].errno == errno.ENODEV:
                return
            raise
        if link.kind == b"wireguard" or link.group == allocs.LINK_GROUP_OVERLAY:
            sock.batch([del_link(link.ifindex, _NAME)], tolerate={errno.ENODEV})


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)
