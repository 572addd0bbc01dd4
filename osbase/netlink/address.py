# SPDX-License-Identifier: Apache-2.0
"""Messages about the addresses of links: build and parse. Pure.

Source: linux/if_addr.h.
"""

import struct
from dataclasses import dataclass
from typing import Final

from osbase.ip import IPAddress, IPInterface, family_of
from osbase.netlink import attrs
from osbase.netlink.attrs import ADDRESS_SIZES
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Message, Request
from osbase.netlink.route import RT_SCOPE_UNIVERSE

RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV6_IFADDR = 9

IFA_F_TEMPORARY = 0x01  # IPv6; in IPv4 the same bit is IFA_F_SECONDARY
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40
IFA_F_NOPREFIXROUTE = 0x200

_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_CACHEINFO = 6
_IFA_FLAGS = 8
_IFA_TARGET_NETNSID = 10
_IFA_PROTO = 11  # since Linux 5.18

FOREVER: Final = 0xFFFFFFFF
"""Validity in seconds of an address that does not end."""

_HEADER = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_CACHEINFO = struct.Struct("=IIII")  # preferred, valid, created, updated
_I32 = struct.Struct("=i")
_NEW = NLM_F_CREATE | NLM_F_EXCL


def dump_addresses(family: int, ifindex: int, *, netnsid: int | None = None) -> Request:
    """List a link's addresses; strict sockets only. netnsid: see get_link."""
    body = _HEADER.pack(family, 0, 0, 0, ifindex)
    if netnsid is not None:
        body += attrs.attr(_IFA_TARGET_NETNSID, _I32.pack(netnsid))
    return Request(RTM_GETADDR, 0, body, "list addresses of link {}", (ifindex,))


def add_address(
    ifindex: int,
    name: str,
    address: IPAddress,
    prefix_length: int,
    *,
    scope: int = RT_SCOPE_UNIVERSE,
    no_dad: bool = False,
    no_prefix_route: bool = False,
    protocol: int = 0,
) -> Request:
    """Add an address to the link. EEXIST: the link has it.

    no_dad: skip IPv6's duplicate address detection; usable at once.
    no_prefix_route: add no route to the prefix; in IPv6 the kernel otherwise
    adds one even to a /128. protocol: the origin, as in routes (IFA_PROTO).
    """
    packed = address.packed
    flags = IFA_F_NODAD if no_dad else 0
    body = (
        _HEADER.pack(family_of(address), prefix_length, flags, scope, ifindex)
        + attrs.attr(_IFA_LOCAL, packed)
        + attrs.attr(_IFA_ADDRESS, packed)
    )
    if no_prefix_route:  # the flag does not fit into the header
        body += attrs.u32(_IFA_FLAGS, flags | IFA_F_NOPREFIXROUTE)
    if protocol:
        body += attrs.attr(_IFA_PROTO, bytes([protocol]))
    values = (address, prefix_length, name)
    return Request(RTM_NEWADDR, _NEW, body, "add address {}/{} to {}", values)


def replace_address(
    ifindex: int, name: str, interface: IPInterface, *, protocol: int, valid_s: int = FOREVER
) -> Request:
    """Add an address to the link, or renew it, in IPv6 without duplicate
    address detection. valid_s: seconds after which the kernel removes it.
    protocol: see add_address.
    """
    packed, bits = interface.ip.packed, interface.network.prefixlen
    flags = IFA_F_NODAD if interface.version == 6 else 0
    body = (
        _HEADER.pack(family_of(interface), bits, flags, RT_SCOPE_UNIVERSE, ifindex)
        + attrs.attr(_IFA_LOCAL, packed)
        + attrs.attr(_IFA_ADDRESS, packed)
        + attrs.attr(_IFA_CACHEINFO, _CACHEINFO.pack(valid_s, valid_s, 0, 0))
        + attrs.attr(_IFA_PROTO, bytes([protocol]))
    )
    replace = NLM_F_CREATE | NLM_F_REPLACE
    return Request(RTM_NEWADDR, replace, body, "add address {} to {}", (interface, name))


def del_address(
    ifindex: int, name: str, address: IPAddress, prefix_length: int, *, exact: bool = False
) -> Request:
    """Remove an address. exact: in IPv4, compare the prefix length, which the
    kernel otherwise ignores. EADDRNOTAVAIL: the link does not have it.
    """
    body = _HEADER.pack(family_of(address), prefix_length, 0, 0, ifindex)
    body += attrs.attr(_IFA_LOCAL, address.packed)
    if exact:
        body += attrs.attr(_IFA_ADDRESS, address.packed)
    values = (address, prefix_length, name)
    return Request(RTM_DELADDR, 0, body, "delete address {}/{} of {}", values)


@dataclass(frozen=True)
class Address:
    """An address of a link. flags: IFA_F_. scope: RT_SCOPE_. protocol: see
    add_address. peer: the other end's address if the network is the peer's.
    valid_s: seconds after which the kernel removes it.
    """

    ifindex: int
    address: IPAddress
    prefix_length: int
    flags: int
    scope: int = RT_SCOPE_UNIVERSE
    protocol: int = 0
    peer: IPAddress | None = None
    valid_s: int = FOREVER

    @property
    def usable(self) -> bool:
        """Return whether duplicate address detection passed or was skipped."""
        return not self.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)


def parse_address(message: Message) -> Address | None:
    """Return None for families other than IP. Raises ProtocolError."""
    if message.kind != RTM_NEWADDR or len(message.body) < _HEADER.size:
        raise ProtocolError(f"message {message.kind} of {len(message.body)} bytes is no address")
    family, bits, flags, scope, ifindex = _HEADER.unpack_from(message.body)
    if family not in ADDRESS_SIZES:
        return None
    found = attrs.parse(message.body[_HEADER.size :])
    # With a point-to-point peer IFA_ADDRESS is the peer's.
    own = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if own is None:
        raise ProtocolError(f"an address of link {ifindex} without the address")
    if bits > 8 * len(own):
        raise ProtocolError(f"an address of {len(own)} bytes and {bits} bits")
    if _IFA_FLAGS in found:
        flags = attrs.to_u32(found[_IFA_FLAGS])
    owner = found.get(_IFA_PROTO) or b"\0"
    far = found.get(_IFA_ADDRESS, own)
    peer = None if far == own else attrs.to_ip(family, far)
    cache = found.get(_IFA_CACHEINFO, b"")
    valid_s = _CACHEINFO.unpack_from(cache)[1] if len(cache) >= _CACHEINFO.size else FOREVER
    address = attrs.to_ip(family, own)
    return Address(ifindex, address, bits, flags, scope, owner[0], peer, valid_s)
