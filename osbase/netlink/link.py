# SPDX-License-Identifier: Apache-2.0
"""Link messages: build and parse. Pure. Veth pairs are in `veth`, alternative
names in `altnames`.

Interface indexes are u31, MAC addresses 6 bytes, MTUs bytes. `name` beside an
index is for errors only. The numbers of the messages are in `ifla`.
"""

import struct
from dataclasses import dataclass

from osbase.ip import AF_INET, AF_INET6, AF_UNSPEC
from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.ifla import (
    HEADER,
    IF_OPER_DORMANT,
    IFF_NOARP,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_ALT_IFNAME,
    IFLA_EXT_MASK,
    IFLA_GROUP,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INET6_ADDR_GEN_MODE,
    IFLA_INET6_CONF,
    IFLA_INET_CONF,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINK_NETNSID,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_OPERSTATE,
    IFLA_PERM_ADDRESS,
    IFLA_PROP_LIST,
    IFLA_TARGET_NETNSID,
    IN6_ADDR_GEN_MODE_NONE,
    IPV4_DEVCONF_RP_FILTER,
    RTEXT_FILTER_SKIP_STATS,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
)
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Message, Request

_I32 = struct.Struct("=i")
_NEW = NLM_F_CREATE | NLM_F_EXCL
_SKIP_STATS = attrs.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
_REVERSE_PATH = attrs.nested(
    AF_INET, attrs.nested(IFLA_INET_CONF, attrs.u32(IPV4_DEVCONF_RP_FILTER, 1))
)
_DORMANT = attrs.attr(IFLA_OPERSTATE, bytes([IF_OPER_DORMANT]))
_NO_IPV6_ADDRESS = attrs.nested(
    AF_INET6, attrs.attr(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
)


def new_link(
    name: str,
    kind: str,
    *,
    mtu: int | None,
    group: int,
    lower: int | None = None,
    data: bytes = b"",
) -> Request:
    """Create a link, down. mtu None: the kernel chooses. lower: index of its
    lower link. data: encoded attributes of its kind.

    EEXIST: the name is taken. EOPNOTSUPP: the kernel lacks the kind.
    """
    parts = [
        HEADER.pack(AF_UNSPEC, 0, 0, 0, 0),
        attrs.text(IFLA_IFNAME, name.encode()),
        attrs.u32(IFLA_GROUP, group),
    ]
    if mtu is not None:
        parts.append(attrs.u32(IFLA_MTU, mtu))
    if lower is not None:
        parts.append(attrs.u32(IFLA_LINK, lower))
    parts.append(_kind(kind, data))
    return Request(RTM_NEWLINK, _NEW, b"".join(parts), "create {} {}", (kind, name))


def set_link_data(ifindex: int, name: str, kind: str, data: bytes) -> Request:
    """Change options of its kind. data: see new_link."""
    return _change(ifindex, _kind(kind, data), "change options of {} {}", kind, name)


def _kind(kind: str, data: bytes) -> bytes:
    info = attrs.text(IFLA_INFO_KIND, kind.encode())
    return attrs.nested(IFLA_LINKINFO, info, attrs.nested(IFLA_INFO_DATA, data) if data else b"")


def _change(ifindex: int, attributes: bytes, words: str, *values: object) -> Request:
    body = HEADER.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attributes
    return Request(RTM_NEWLINK, 0, body, words, values)


def set_link_up(ifindex: int, name: str) -> Request:
    body = HEADER.pack(AF_UNSPEC, 0, ifindex, IFF_UP, IFF_UP)
    return Request(RTM_NEWLINK, 0, body, "set {} up", (name,))


def set_link_down(ifindex: int, name: str) -> Request:
    body = HEADER.pack(AF_UNSPEC, 0, ifindex, 0, IFF_UP)
    return Request(RTM_NEWLINK, 0, body, "set {} down", (name,))


def set_link_alias(
    ifindex: int,
    name: str,
    alias: str,
    *,
    ipv6: bool,
    reverse_path: bool = False,
    dormant: bool = False,
) -> Request:
    """Set the alias (at most 255 bytes) and, if the kernel has IPv6, stop it
    from making a link-local address of its own.

    reverse_path: in IPv4 the kernel accepts only packets, and answers only ARP
    requests, from addresses whose route goes through the link (rp_filter=1).
    dormant: until the link is up and the kernel has looked at its carrier, it
    is not operational (RFC 2863), instead of unknown, which IPv6 takes for
    operational: it would walk all routes of the namespace twice for a link that
    comes up, by `up` and by the carrier (addrconf_notify, net/ipv6/addrconf.c).
    """
    settings = [_REVERSE_PATH] if reverse_path else []
    if ipv6:
        settings.append(_NO_IPV6_ADDRESS)
    attributes = attrs.attr(IFLA_IFALIAS, alias.encode())
    if dormant:
        attributes += _DORMANT
    if settings:
        attributes += attrs.nested(IFLA_AF_SPEC, *settings)
    return _change(ifindex, attributes, "set alias of {}", name)


def set_link_no_ipv6_address(ifindex: int, name: str) -> Request:
    """Stop the kernel from making a link-local address of its own."""
    mode = attrs.nested(IFLA_AF_SPEC, _NO_IPV6_ADDRESS)
    return _change(ifindex, mode, "set no IPv6 addresses of {}", name)


def set_link_group(ifindex: int, name: str, group: int) -> Request:
    return _change(ifindex, attrs.u32(IFLA_GROUP, group), "set group of {}", name)


def rename_link(ifindex: int, name: str) -> Request:
    """EEXIST: the name is taken. EBUSY, before Linux 6.2: the link is up."""
    return _change(
        ifindex, attrs.text(IFLA_IFNAME, name.encode()), "rename link {} to {}", ifindex, name
    )


def set_link_mac(ifindex: int, name: str, mac: bytes) -> Request:
    return _change(ifindex, attrs.attr(IFLA_ADDRESS, mac), "set MAC of {}", name)


def set_link_mtu(ifindex: int, name: str, mtu: int) -> Request:
    return _change(ifindex, attrs.u32(IFLA_MTU, mtu), "set MTU of {} to {}", name, mtu)


def set_link_master(ifindex: int, name: str, master: int) -> Request:
    """Make the link a member of a bond or bridge; 0: release it."""
    return _change(ifindex, attrs.u32(IFLA_MASTER, master), "set master of {} to {}", name, master)


def set_link_arp(ifindex: int, name: str) -> Request:
    """Make the link use ARP and neighbour solicitations."""
    body = HEADER.pack(AF_UNSPEC, 0, ifindex, 0, IFF_NOARP)
    return Request(RTM_NEWLINK, 0, body, "set ARP of {}", (name,))


def set_link_ipv4_setting(ifindex: int, name: str, setting: int, value: int) -> Request:
    """Set an IPv4 setting of the link. setting: IPV4_DEVCONF_."""
    conf = attrs.nested(IFLA_INET_CONF, attrs.u32(setting, value))
    attribute = attrs.nested(IFLA_AF_SPEC, attrs.nested(AF_INET, conf))
    return _change(ifindex, attribute, "set IPv4 setting {} of {} to {}", setting, name, value)


def del_link(ifindex: int, name: str) -> Request:
    """Delete a link. ENODEV: it does not exist."""
    body = HEADER.pack(AF_UNSPEC, 0, ifindex, 0, 0)
    return Request(RTM_DELLINK, 0, body, "delete link {}", (name,))


def del_links_by_group(group: int) -> Request:
    """Delete all links of a group for the price of one. ENODEV: it is empty."""
    body = HEADER.pack(AF_UNSPEC, 0, 0, 0, 0) + attrs.u32(IFLA_GROUP, group)
    return Request(RTM_DELLINK, 0, body, "delete links of group {}", (group,))


def get_link(ifindex: int, *, netnsid: int | None = None) -> Request:
    """Get a link. netnsid: from the namespace with this id here, without
    entering it; needs privileges over it.
    """
    body = HEADER.pack(AF_UNSPEC, 0, ifindex, 0, 0) + _SKIP_STATS
    if netnsid is not None:
        body += attrs.attr(IFLA_TARGET_NETNSID, _I32.pack(netnsid))
    return Request(RTM_GETLINK, 0, body, "get link {}", (ifindex,))


def get_link_by_name(name: str) -> Request:
    body = HEADER.pack(AF_UNSPEC, 0, 0, 0, 0) + attrs.text(IFLA_IFNAME, name.encode()) + _SKIP_STATS
    return Request(RTM_GETLINK, 0, body, "get link {}", (name,))


def dump_links() -> Request:
    body = HEADER.pack(AF_UNSPEC, 0, 0, 0, 0) + _SKIP_STATS
    return Request(RTM_GETLINK, 0, body, "list links")


@dataclass(frozen=True)
class Link:
    """A link as the kernel has it. Absent attributes are empty, 0 or None.

    peer: index of the other end of a veth, in its own namespace, or of a VLAN's
    lower link. peer_netns: the id of that namespace in this one; None for this
    one. master: index of the bond or bridge that it belongs to. data: the
    attributes of its kind (IFLA_INFO_DATA). permanent_mac: the hardware's MAC,
    whatever the link uses now. settings: those of its IP versions
    (IFLA_AF_SPEC); see ipv4_setting.
    """

    ifindex: int
    flags: int
    name: str
    mac: bytes
    mtu: int
    peer: int | None
    alias: bytes
    group: int
    kind: bytes
    altnames: tuple[str, ...]
    peer_netns: int | None = None
    master: int | None = None
    data: bytes = b""
    permanent_mac: bytes = b""
    settings: bytes = b""

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def arp(self) -> bool:
        return not self.flags & IFF_NOARP

    def ipv4_setting(self, setting: int) -> int | None:
        """Return a setting, IPV4_DEVCONF_; None: the kernel sent none."""
        # The kernel's numbers begin with 1.
        return _setting(self.settings, AF_INET, IFLA_INET_CONF, setting - 1)

    def ipv6_setting(self, setting: int) -> int | None:
        """Return a setting, DEVCONF_; None: link or kernel lacks IPv6."""
        return _setting(self.settings, AF_INET6, IFLA_INET6_CONF, setting)

    @property
    def ipv6_addresses(self) -> bool:
        """Return whether the kernel makes link-local addresses for it."""
        found = attrs.parse(attrs.parse(self.settings).get(AF_INET6, b""))
        mode = found.get(IFLA_INET6_ADDR_GEN_MODE)
        return bool(mode) and mode != bytes([IN6_ADDR_GEN_MODE_NONE])


def _setting(settings: bytes, family: int, kind: int, number: int) -> int | None:
    values = attrs.parse(attrs.parse(settings).get(family, b"")).get(kind, b"")
    if len(values) < 4 * number + 4:
        return None
    value: int = _I32.unpack_from(values, 4 * number)[0]
    return value


def _names(payload: bytes) -> str:
    return attrs.to_text(payload).decode("utf-8", "surrogateescape")


def parse_link(message: Message) -> Link:
    """Parse a link. Raises ProtocolError for another message."""
    if message.kind not in (RTM_NEWLINK, RTM_DELLINK) or len(message.body) < HEADER.size:
        raise ProtocolError(f"message {message.kind} of {len(message.body)} bytes is not a link")
    _, _, ifindex, flags, _ = HEADER.unpack_from(message.body)
    if ifindex < 0:
        raise ProtocolError(f"link of index {ifindex}")
    found = attrs.parse(message.body[HEADER.size :])
    altnames = tuple(
        _names(payload)
        for kind, payload in attrs.walk(found.get(IFLA_PROP_LIST, b""))
        if kind == IFLA_ALT_IFNAME
    )
    info = attrs.parse(found.get(IFLA_LINKINFO, b""))
    peer, peer_netns = found.get(IFLA_LINK), found.get(IFLA_LINK_NETNSID)
    master = found.get(IFLA_MASTER)
    return Link(
        ifindex=ifindex,
        flags=flags,
        name=_names(found.get(IFLA_IFNAME, b"")),
        mac=found.get(IFLA_ADDRESS, b""),
        mtu=attrs.to_u32(found[IFLA_MTU]) if IFLA_MTU in found else 0,
        peer=None if peer is None else attrs.to_u32(peer),
        alias=attrs.to_text(found.get(IFLA_IFALIAS, b"")),
        group=attrs.to_u32(found[IFLA_GROUP]) if IFLA_GROUP in found else 0,
        kind=attrs.to_text(info.get(IFLA_INFO_KIND, b"")),
        altnames=altnames,
        peer_netns=None if peer_netns is None else attrs.to_i32(peer_netns),
        master=None if master is None else attrs.to_u32(master),
        data=info.get(IFLA_INFO_DATA, b""),
        permanent_mac=found.get(IFLA_PERM_ADDRESS, b""),
        settings=found.get(IFLA_AF_SPEC, b""),
    )


@dataclass(frozen=True)
class LinkRemoved:
    """A link is gone, or moved to another namespace."""

    ifindex: int
    name: str


def parse_link_removed(message: Message) -> LinkRemoved | None:
    """Return a link's removal; None for other messages, for example when a port
    leaves a bridge: that has the same type and another family.
    """
    if message.kind != RTM_DELLINK or len(message.body) < HEADER.size:
        return None
    family, _, ifindex, _, _ = HEADER.unpack_from(message.body)
    if family != AF_UNSPEC:
        return None
    name = attrs.parse(message.body[HEADER.size :]).get(IFLA_IFNAME, b"")
    return LinkRemoved(ifindex, _names(name))
