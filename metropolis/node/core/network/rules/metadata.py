# SPDX-License-Identifier: Apache-2.0
"""Destinations that the node does not forward to, unless it is configured.

Any program on a cloud's machine that reaches its metadata service gets the
machine's credentials. Most clouds serve it at a link-local address; these are
the others, from each provider's documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Network, ip_network
from typing import Final

from metropolis.node.core.network.rules.settings import IPAddress, IPNetwork

LINK_LOCAL: Final = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))

CLOUDS: Final = (
    ip_network("100.100.100.200"),  # Alibaba Cloud
    ip_network("168.63.129.16"),  # Azure: agents, and name servers on port 53
    ip_network("192.0.0.192"),  # Oracle Cloud
    ip_network("fd00:ec2::254"),  # EC2
    ip_network("fd00:ec2::23"),  # EKS: credentials of its agent
    ip_network("fd20:ce::254"),  # Google Cloud
    ip_network("fd00:42::42"),  # Scaleway
    ip_network("fd00:c1::a9fe:a9fe"),  # Oracle Cloud
    ip_network("fd00:a9fe:a9fe::1"),  # Akamai (Linode)
    ip_network("fd00:100::100:200"),  # Alibaba Cloud
)

_EMBEDDING: Final = (
    (ip_network("64:ff9b::/96"), 96),  # NAT64's well-known prefix (RFC 6052)
    (ip_network("64:ff9b:1::/96"), 96),  # NAT64's local one (RFC 8215), as used
    (ip_network("::ffff:0:0/96"), 96),  # IPv4-mapped (RFC 4291)
    (ip_network("2002::/16"), 16),  # 6to4 (RFC 3056)
)


def _embedded(network: IPNetwork) -> Iterator[IPNetwork]:
    """Yield the networks that a gateway would translate to the IPv4 network."""
    for prefix, bits in _EMBEDDING:
        shift = 128 - bits - 32
        address = int(prefix.network_address) | int(network.network_address) << shift
        yield IPv6Network((address, bits + network.prefixlen))


NOT_FORWARDED: Final = (
    *LINK_LOCAL,
    *CLOUDS,
    *(one for ipv4 in LINK_LOCAL + CLOUDS if ipv4.version == 4 for one in _embedded(ipv4)),
)


def resolvers_among(servers: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Return the name servers that need an exception; the others are forwarded
    anyway.
    """
    found = {one for one in servers if any(one in network for network in NOT_FORWARDED)}
    return tuple(sorted(found, key=str))
