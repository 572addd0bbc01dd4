# SPDX-License-Identifier: Apache-2.0
"""The link-layer addresses that the host has for its neighbours. Pure.

Source: linux/neighbour.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from osbase.ip import IPAddress, family_of
from osbase.netlink import attrs
from osbase.netlink.attrs import ADDRESS_SIZES
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import NLM_F_CREATE, NLM_F_REPLACE, Message, Request

RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30

_NUD_NOARP: Final = 0x40
_NUD_PERMANENT: Final = 0x80
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
# family, padding, index, state, flags, type
_NDMSG = struct.Struct("=BxxxiHBB")


@dataclass(frozen=True)
class Neighbour:
    """A permanent entry: written by a program, never changed by the kernel."""

    ifindex: int
    address: IPAddress
    mac: bytes


def dump_neighbours(family: int) -> Request:
    """List all links' entries of a family."""
    return Request(RTM_GETNEIGH, 0, _NDMSG.pack(family, 0, 0, 0, 0), "list neighbours")


def add_permanent_neighbour(ifindex: int, name: str, address: IPAddress, mac: bytes) -> Request:
    """Write a permanent entry, or over one. The kernel neither asks for it nor
    counts it (neigh_alloc). name: the link's, for errors.
    """
    body = _NDMSG.pack(family_of(address), ifindex, _NUD_PERMANENT, 0, 0)
    body += attrs.attr(_NDA_DST, address.packed) + attrs.attr(_NDA_LLADDR, mac)
    what = "write neighbour {} of {}"
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, what, (address, name))


def del_neighbour(ifindex: int, name: str, address: IPAddress) -> Request:
    """Delete an entry. ENOENT: there is none. name: the link's, for errors."""
    body = _NDMSG.pack(family_of(address), ifindex, 0, 0, 0)
    body += attrs.attr(_NDA_DST, address.packed)
    return Request(RTM_DELNEIGH, 0, body, "delete neighbour {} of {}", (address, name))


def parse_written(message: Message) -> Neighbour | None:
    """Parse an entry; return None for one that the kernel made. Nearly all are:
    the parser reads only their header.
    """
    if message.kind != RTM_NEWNEIGH or len(message.body) < _NDMSG.size:
        raise ProtocolError(f"message {message.kind} of {len(message.body)} bytes is no neighbour")
    family, ifindex, state, _, _ = _NDMSG.unpack_from(message.body)
    if family not in ADDRESS_SIZES or not state & (_NUD_PERMANENT | _NUD_NOARP):
        return None
    found = attrs.parse(message.body[_NDMSG.size :])
    address = attrs.to_ip(family, found.get(_NDA_DST, b""))
    return Neighbour(ifindex, address, found.get(_NDA_LLADDR, b""))
