# SPDX-License-Identifier: Apache-2.0
"""Alternative names of links: add, remove, and address a link by one. Pure.

A link has any number of them, each of up to ALTIFNAMSIZ - 1 bytes and unique in
its namespace. A request with one never reaches another link that has got the
index meanwhile.
"""

from osbase.ip import AF_UNSPEC
from osbase.netlink import attrs
from osbase.netlink.ifla import (
    HEADER,
    IFF_UP,
    IFLA_ALT_IFNAME,
    IFLA_GROUP,
    IFLA_PROP_LIST,
    RTM_DELLINK,
    RTM_DELLINKPROP,
    RTM_NEWLINK,
    RTM_NEWLINKPROP,
)
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Request

_NEW = NLM_F_CREATE | NLM_F_EXCL


def set_link_up_by_altname(altname: str) -> Request:
    """ENODEV: no link has it."""
    body = HEADER.pack(AF_UNSPEC, 0, 0, IFF_UP, IFF_UP)
    body += attrs.text(IFLA_ALT_IFNAME, altname.encode())
    return Request(RTM_NEWLINK, 0, body, "set {} up", (altname,))


def add_link_altnames(ifindex: int, name: str, *altnames: str) -> Request:
    """Add names. EEXIST: one of them is taken; those before it were added."""
    names = [attrs.text(IFLA_ALT_IFNAME, altname.encode()) for altname in altnames]
    body = HEADER.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.nested(IFLA_PROP_LIST, *names)
    return Request(RTM_NEWLINKPROP, _NEW, body, "add alternative names to {}", (name,))


def del_link_altnames(ifindex: int, name: str, *altnames: str) -> Request:
    """Remove names. EINVAL: one is not the link's; those before it are gone."""
    names = [attrs.text(IFLA_ALT_IFNAME, altname.encode()) for altname in altnames]
    body = HEADER.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.nested(IFLA_PROP_LIST, *names)
    return Request(RTM_DELLINKPROP, 0, body, "remove alternative names of {}", (name,))


def retire_by_altname(altname: str, group: int) -> Request:
    """Set a link down and its group. In one message, since each change of a
    link that is up costs a walk of the IPv6 routes.
    """
    body = (
        HEADER.pack(AF_UNSPEC, 0, 0, 0, IFF_UP)
        + attrs.text(IFLA_ALT_IFNAME, altname.encode())
        + attrs.u32(IFLA_GROUP, group)
    )
    return Request(RTM_NEWLINK, 0, body, "set {} down, and its group", (altname,))


def del_link_by_altname(altname: str) -> Request:
    """Delete the link that has the name. ENODEV: no link has it."""
    body = HEADER.pack(AF_UNSPEC, 0, 0, 0, 0) + attrs.text(IFLA_ALT_IFNAME, altname.encode())
    return Request(RTM_DELLINK, 0, body, "delete link {}", (altname,))
