# SPDX-License-Identifier: Apache-2.0
"""Destinations that the node does not forward to, unless it is configured.

Whatever runs on a cloud's machine and reaches its metadata service gets the
machine's credentials. Most clouds serve it by a link-local address; these are
the others, each by its provider's documentation.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final

from metropolis.node.core.network.rules.settings import IPAddress

LINK_LOCAL: Final = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))

CLOUDS: Final = (
    ip_network("100.100.100.200"),  # Alibaba Cloud
    ip_network("168.63.129.16"),  # Azure: agents, and name servers on port 53
    ip_network("192.0.0.192"),  # Oracle Cloud
    ip_network("fd00:ec2::254"),  # EC2
    ip_network("fd20:ce::254"),  # Google Cloud
    ip_network("fd00:42::42"),  # Scaleway
    # 169.254.0.0/16 as a NAT64 gateway would translate it (RFC 6052).
    ip_network("64:ff9b::a9fe:0/112"),
)

NOT_FORWARDED: Final = LINK_LOCAL + CLOUDS


def resolvers_among(servers: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Return the name servers that need an exception: the others are forwarded
    to anyway.
    """
    found = {one for one in servers if any(one in network for network in NOT_FORWARDED)}
    return tuple(sorted(found, key=str))
