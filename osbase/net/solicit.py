# SPDX-License-Identifier: Apache-2.0
"""Ask the routers on a link for an advertisement (RFC 4861, section 6.3.7).

The kernel asks only when a link comes up. If others remove addresses and routes
that it made from advertisements, they come back with the next one that a router
sends by itself, which may take half an hour. The kernel reads the answer, like
any advertisement.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

_ALL_ROUTERS: Final = "ff02::2"
_SOLICITATION: Final = 133
_SOURCE_LINK_ADDRESS: Final = 1
_HOP_LIMIT: Final = 255  # anything less is not of this link


def solicit(ifindex: int, mac: bytes) -> None:
    """Send one from the link's link-local address. mac: the link's, 6 bytes.

    Raises OSError: the link has no usable link-local address, is down or gone.
    """
    message = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0)
    message += bytes([_SOURCE_LINK_ADDRESS, 1]) + mac
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOP_LIMIT)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, ifindex)
        sock.sendto(message, (_ALL_ROUTERS, 0, 0, ifindex))
