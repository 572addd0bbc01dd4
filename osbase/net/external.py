# SPDX-License-Identifier: Apache-2.0
"""The addresses by which others reach a host on a link, from any source.

They may come from DHCP, people or router advertisements: the module asks the
kernel, and again at each event about the link's addresses.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable
from ipaddress import IPv6Address

from osbase import event
from osbase.ip import AF_INET, AF_INET6, UNIQUE_LOCAL_IPV6, IPAddress
from osbase.net.links import only_link
from osbase.netlink.address import (
    IFA_F_DEPRECATED,
    IFA_F_TEMPORARY,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV6_IFADDR,
    Address,
    dump_addresses,
    parse_address,
)
from osbase.netlink.errors import BatchError
from osbase.netlink.route import RT_SCOPE_UNIVERSE
from osbase.netlink.transport import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, NetlinkSocket
from osbase.supervisor import in_thread


def choose(addresses: Iterable[Address]) -> tuple[IPAddress, ...]:
    """Return the addresses by which others may reach us, best first. Pure.

    IPv4 comes before IPv6; in IPv6, preferred before deprecated, and global
    before unique local addresses (RFC 4193); else the kernel's order. Addresses
    that are link-local, temporary (RFC 8981) or tentative are left out.
    """
    found = []
    for one in addresses:
        address = one.address
        temporary = address.version == 6 and one.flags & IFA_F_TEMPORARY
        if one.scope != RT_SCOPE_UNIVERSE or not one.usable or temporary:
            continue
        if address.is_link_local or address.is_loopback:
            continue
        deprecated = bool(one.flags & IFA_F_DEPRECATED)
        local = isinstance(address, IPv6Address) and address in UNIQUE_LOCAL_IPV6
        found.append(((address.version, deprecated, local), address))
    # Without IPv6 the kernel answers for that family with all addresses.
    return tuple(dict.fromkeys(address for _, address in sorted(found, key=lambda pair: pair[0])))


def look(ifindex: int) -> tuple[IPAddress, ...]:
    """Ask the kernel; a missing link has no addresses. Raises NetlinkError."""
    found = []
    with NetlinkSocket() as sock:
        for family in (AF_INET, AF_INET6):
            try:
                messages = sock.dump(dump_addresses(family, ifindex))
            except BatchError as error:
                if all(one.errno == errno.ENODEV for one in error.errors):
                    return ()
                raise
            found += [one for one in map(parse_address, messages) if one is not None]
    return choose(found)


async def follow(ifindex: int, into: event.Value[tuple[IPAddress, ...]]) -> None:
    """Set `into` to the link's addresses, at once and at each change, until
    cancelled. Raises OSError or NetlinkError.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    ) as events:
        only_link(events, ifindex)
        events.bind((0, 0))
        for group in (RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR):
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        last: tuple[IPAddress, ...] | None = None
        while True:
            now = await in_thread(look, ifindex)
            if now != last:
                into.set(now)
                last = now
            try:
                await loop.sock_recv(events, 65536)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost: look again
                    raise
