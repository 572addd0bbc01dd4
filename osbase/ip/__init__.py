# SPDX-License-Identifier: Apache-2.0
"""Types of IP addresses for the whole tree, and their constants.

The standard library has a class for each IP version and no name for "either".
These are the names. osbase.netlink.attrs encodes addresses in netlink messages.
"""

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Final

type IPAddress = IPv4Address | IPv6Address
type IPNetwork = IPv4Network | IPv6Network
type IPInterface = IPv4Interface | IPv6Interface

# Address families, as the kernel numbers them (linux/socket.h). The socket
# module's are enum members, which are slower to pack.
AF_UNSPEC: Final = 0
AF_INET: Final = 2
AF_INET6: Final = 10
FAMILIES: Final = (AF_INET, AF_INET6)

LINK_LOCAL_IPV6: Final = IPv6Network("fe80::/10")  # RFC 4291, section 2.5.6
UNIQUE_LOCAL_IPV6: Final = IPv6Network("fc00::/7")  # RFC 4193


def family_of(address: IPAddress | IPNetwork | IPInterface) -> int:
    """Return AF_INET or AF_INET6."""
    return AF_INET if address.version == 4 else AF_INET6


def link_local(mac: bytes) -> IPv6Address:
    """Return the address that a link with this MAC (6 bytes) gives itself
    (RFC 4291, appendix A).
    """
    interface = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + interface)
