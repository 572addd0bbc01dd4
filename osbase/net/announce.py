# SPDX-License-Identifier: Apache-2.0
"""Announce our addresses and their MAC to the neighbours, unsolicited.

    ARP announcement                  IPv4 (RFC 5227, section 2.3)
    unsolicited neighbour advert.     IPv6 (RFC 4861, section 7.2.6)

A switch learns the port from it, and neighbours whose table has an older MAC
for the address correct it.

Why not the kernel's own: with `arp_notify` and `ndisc_notify` it announces when
a link is set up, but not when a carrier comes back, nor when an IPv4 address is
added (net/ipv4/devinet.c, inetdev_event); the test beside this file shows both.
At the failover of a bond it announces by itself.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from osbase.ip import IPAddress

INTERVAL_S: Final = 2.0
"""Between the two announcements of each (ANNOUNCE_INTERVAL of RFC 5227)."""

_BROADCAST: Final = b"\xff" * 6
_ALL_NODES_MAC: Final = bytes.fromhex("333300000001")
_ALL_NODES: Final = IPv6Address("ff02::1")
_ETH_P_ARP: Final = 0x0806
_ETH_P_IPV6: Final = 0x86DD
_ICMPV6: Final = 58
_ADVERTISEMENT: Final = 136
_ROUTER: Final = 0x80000000
_OVERRIDE: Final = 0x20000000
_TARGET_LINK_ADDRESS: Final = 2


def frame(mac: bytes, address: IPAddress, *, router: bool) -> bytes:
    """Return the Ethernet frame that says that `address` is at `mac`. Pure.

    mac: 6 bytes. router: whether the host forwards IPv6; neighbours believe it.
    """
    if isinstance(address, IPv4Address):
        head = struct.pack("!6s6sHHHBBH", _BROADCAST, mac, _ETH_P_ARP, 1, 0x0800, 6, 4, 1)
        return head + mac + address.packed + bytes(6) + address.packed
    flags = _OVERRIDE | (_ROUTER if router else 0)
    option = bytes([_TARGET_LINK_ADDRESS, 1]) + mac
    rest = struct.pack("!I", flags) + address.packed + option
    length = 4 + len(rest)
    ends = address.packed + _ALL_NODES.packed
    checksum = _checksum(
        ends + struct.pack("!IHBBBBH", length, 0, 0, _ICMPV6, _ADVERTISEMENT, 0, 0) + rest
    )
    return (
        struct.pack("!6s6sH", _ALL_NODES_MAC, mac, _ETH_P_IPV6)
        + struct.pack("!IHBB", 6 << 28, length, _ICMPV6, 255)
        + ends
        + struct.pack("!BBH", _ADVERTISEMENT, 0, checksum)
        + rest
    )


def send(link: str, mac: bytes, addresses: Iterable[IPAddress], *, router: bool) -> None:
    """Send one frame for each address. Raises OSError when the link does not
    exist; a link that is down or full drops the frames.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0) as sock:
        sock.bind((link, 0))
        for address in addresses:
            try:
                sock.send(frame(mac, address, router=router))
            except OSError as error:
                if error.errno not in (errno.ENETDOWN, errno.ENOBUFS, errno.EAGAIN):
                    raise


def _checksum(data: bytes) -> int:
    """Return the checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(word for (word,) in struct.iter_unpack("!H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total
