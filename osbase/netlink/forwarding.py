# SPDX-License-Identifier: Apache-2.0
"""Whether a link lacks IPv4 forwarding by itself, or with the whole host.

A write to net.ipv4.ip_forward sets all links' `forwarding` (Linux,
inet_forward_change() in net/ipv4/devinet.c). So a link without it may be the
consequence of one, and another such write may be ending it.
"""

from __future__ import annotations

from osbase.netlink.ifla import IPV4_DEVCONF_FORWARDING
from osbase.netlink.link import get_link, parse_link
from osbase.netlink.transport import NetlinkSocket


def host_forwards() -> bool:
    """Return whether the host forwards IPv4 at all."""
    with open("/proc/sys/net/ipv4/ip_forward", "rb") as file:
        return file.read(1) == b"1"


def stopped_alone(sock: NetlinkSocket, ifindex: int) -> bool:
    """Return whether a link lacks forwarding while the host has it.

    Raises:
        NetlinkError: the kernel refuses; there may be no such link.
    """
    # First and last, since it may end or begin meanwhile. The kernel holds
    # RTNL for the host's value and all links', and for an answer about one.
    if not host_forwards():
        return False
    link = parse_link(sock.get(get_link(ifindex)))
    return link.ipv4_setting(IPV4_DEVCONF_FORWARDING) == 0 and host_forwards()
