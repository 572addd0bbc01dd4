# SPDX-License-Identifier: Apache-2.0
"""Link, address and route messages of rtnetlink: build and parse. Pure.

Source: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h. Interface indexes
are u31, MAC addresses 6 bytes, MTUs bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
from typing import NamedTuple

from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
)

type IPAddress = IPv4Address | IPv6Address
type IPNetwork = IPv4Network | IPv6Network

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTM_NEWLINKPROP = 108
RTM_DELLINKPROP = 109
RTNLGRP_LINK = 1
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV4_ROUTE = 7
RTNLGRP_IPV6_IFADDR = 9
RTNLGRP_IPV6_ROUTE = 11

AF_UNSPEC = 0
AF_INET = 2
AF_INET6 = 10

IFF_UP = 1
IFF_NOARP = 0x80
IFA_F_TEMPORARY = 0x01  # IPv6; of IPv4 the same bit is IFA_F_SECONDARY
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40
IFA_F_NOPREFIXROUTE = 0x200
RT_TABLE_MAIN = 254
RT_TABLE_LOCAL = 255
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_HOST = 254
RTPROT_KERNEL = 2
RTPROT_BOOT = 3
RTN_UNICAST = 1
RTN_LOCAL = 2
RTN_UNREACHABLE = 7
RTM_F_FIB_MATCH = 0x2000

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_AF_SPEC = 26
IFLA_GROUP = 27
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
IFLA_NUM_TX_QUEUES = 31
IFLA_NUM_RX_QUEUES = 32
IFLA_LINK_NETNSID = 37
IFLA_TARGET_NETNSID = 46
IFLA_PROP_LIST = 52
IFLA_ALT_IFNAME = 53
IFLA_PERM_ADDRESS = 54
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
VETH_INFO_PEER = 1
IFLA_INET_CONF = 1
IPV4_DEVCONF_RP_FILTER = 8
IFLA_INET6_CONF = 2
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1
RTEXT_FILTER_SKIP_STATS = 8
# Settings of a link, as in /proc/sys/net/ipv4/conf (linux/ip.h) and
# /proc/sys/net/ipv6/conf (linux/ipv6.h).
IPV4_DEVCONF_FORWARDING = 1
IPV4_DEVCONF_ARP_IGNORE = 19
IPV4_DEVCONF_ARP_ACCEPT = 21
DEVCONF_DISABLE_IPV6 = 26

ALTIFNAMSIZ = 128  # with the final NUL

_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_FLAGS = 8
_IFA_TARGET_NETNSID = 10
_RTA_DST = 1
_RTA_OIF = 4
_RTA_GATEWAY = 5
_RTA_PRIORITY = 6
_RTA_PREFSRC = 7
_RTA_MULTIPATH = 9
_RTA_VIA = 18
_IFA_PROTO = 11  # since Linux 5.18

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
# family, dst len, src len, tos, table, protocol, scope, type, flags
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, index
_RTVIA = struct.Struct("=H")  # family, then the address
_I32 = struct.Struct("=i")

_NEW = NLM_F_CREATE | NLM_F_EXCL
_VETH = attrs.text(IFLA_INFO_KIND, b"veth")
_NO_FD = 0xFFFFFFFF  # -1: no file has it
_ONE_QUEUE = attrs.u32(IFLA_NUM_TX_QUEUES, 1) + attrs.u32(IFLA_NUM_RX_QUEUES, 1)
_SKIP_STATS = attrs.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
_REVERSE_PATH = attrs.nested(
    AF_INET, attrs.nested(IFLA_INET_CONF, attrs.u32(IPV4_DEVCONF_RP_FILTER, 1))
)
_NO_IPV6_ADDRESS = attrs.nested(
    AF_INET6, attrs.attr(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
)


def family_of(address: IPAddress) -> int:
    return AF_INET if address.version == 4 else AF_INET6


class VethEnd(NamedTuple):
    """One end of a new veth pair. mac None: the kernel chooses."""

    name: str
    ifindex: int
    mac: bytes | None


def new_veth(host: VethEnd, peer: VethEnd, *, netns_fd: int, mtu: int, group: int) -> Request:
    """A veth pair: `host` here, down, in `group`; `peer` born in `netns_fd`.

    With one queue. Unless it is told, the kernel makes one a possible CPU, each
    an object in sysfs, and then uses the first only (veth_init_queues, drivers/
    net/veth.c): a third of the time that a pair takes on 2 CPUs, more on more.

    EEXIST: a name, or the host end's index, is taken. EBUSY: the peer's index
    is taken.
    """
    far = [
        _IFINFO.pack(AF_UNSPEC, 0, peer.ifindex, 0, 0),
        attrs.text(IFLA_IFNAME, peer.name.encode()),
        attrs.u32(IFLA_NET_NS_FD, netns_fd),
        attrs.u32(IFLA_MTU, mtu),
        _ONE_QUEUE,
    ]
    near = [
        _IFINFO.pack(AF_UNSPEC, 0, host.ifindex, 0, 0),
        attrs.text(IFLA_IFNAME, host.name.encode()),
        attrs.u32(IFLA_MTU, mtu),
        attrs.u32(IFLA_GROUP, group),
        _ONE_QUEUE,
    ]
    if peer.mac is not None:
        far.append(attrs.attr(IFLA_ADDRESS, peer.mac))
    if host.mac is not None:
        near.append(attrs.attr(IFLA_ADDRESS, host.mac))
    data = attrs.nested(IFLA_INFO_DATA, attrs.attr(VETH_INFO_PEER, b"".join(far)))
    near.append(attrs.nested(IFLA_LINKINFO, _VETH, data))
    words = "create veth {} with peer {!r}"
    return Request(RTM_NEWLINK, _NEW, b"".join(near), words, (host.name, peer.name))


def load_veth() -> Request:
    """Makes no link, and makes the kernel load what it needs for new_veth.

    For then: two threads that need a module at once each start modprobe, which
    of some (busybox's) ends at once if another is loading it; the kernel then
    says EOPNOTSUPP for a kind it has a moment later.

    EBADF: it is there. EOPNOTSUPP: the kernel lacks it. Never 0, since the
    peer's namespace does not exist (rtnl_newlink, net/core/rtnetlink.c, asks
    for the module before it looks at that).
    """
    ends = VethEnd("veth%d", 0, None), VethEnd("veth%d", 0, None)
    return new_veth(*ends, netns_fd=_NO_FD, mtu=1500, group=0)


def new_link(name: str, kind: str, *, mtu: int, group: int) -> Request:
    """A link of a kind that needs no more to be said, down. EEXIST: the name is
    taken. EOPNOTSUPP: the kernel lacks the kind.
    """
    body = (
        _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0)
        + attrs.text(IFLA_IFNAME, name.encode())
        + attrs.u32(IFLA_MTU, mtu)
        + attrs.u32(IFLA_GROUP, group)
        + attrs.nested(IFLA_LINKINFO, attrs.text(IFLA_INFO_KIND, kind.encode()))
    )
    return Request(RTM_NEWLINK, _NEW, body, "create {} {}", (kind, name))


def set_link_up(ifindex: int, name: str) -> Request:
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, IFF_UP, IFF_UP)
    return Request(RTM_NEWLINK, 0, body, "set {} up", (name,))


def set_link_up_by_altname(altname: str) -> Request:
    """ENODEV: no link bears the name."""
    body = _IFINFO.pack(AF_UNSPEC, 0, 0, IFF_UP, IFF_UP)
    body += attrs.text(IFLA_ALT_IFNAME, altname.encode())
    return Request(RTM_NEWLINK, 0, body, "set {} up", (altname,))


def set_link_down(ifindex: int, name: str) -> Request:
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, IFF_UP)
    return Request(RTM_NEWLINK, 0, body, "set {} down", (name,))


def set_link_alias(
    ifindex: int, name: str, alias: str, *, ipv6: bool, reverse_path: bool = False
) -> Request:
    """Sets the alias (at most 255 bytes) and, where there is IPv6, that the
    kernel makes no link-local address of its own.

    reverse_path: in IPv4 the kernel takes, and answers in ARP, only what comes
    from addresses whose route is by the link (rp_filter=1).
    """
    settings = [_REVERSE_PATH] if reverse_path else []
    if ipv6:
        settings.append(_NO_IPV6_ADDRESS)
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.attr(IFLA_IFALIAS, alias.encode())
    if settings:
        body += attrs.nested(IFLA_AF_SPEC, *settings)
    return Request(RTM_NEWLINK, 0, body, "set alias of {}", (name,))


def link_local(mac: bytes) -> IPv6Address:
    """Return the address that a link gives itself (RFC 4291, appendix A)."""
    interface = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + interface)


def set_link_no_ipv6_address(ifindex: int, name: str) -> Request:
    """The kernel makes no link-local address of its own any more."""
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0)
    body += attrs.nested(IFLA_AF_SPEC, _NO_IPV6_ADDRESS)
    return Request(RTM_NEWLINK, 0, body, "set no IPv6 addresses of {}", (name,))


def add_link_altnames(ifindex: int, name: str, *altnames: str) -> Request:
    """EEXIST: one of the names is taken; those before it were added."""
    names = [attrs.text(IFLA_ALT_IFNAME, altname.encode()) for altname in altnames]
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.nested(IFLA_PROP_LIST, *names)
    return Request(RTM_NEWLINKPROP, _NEW, body, "add alternative names to {}", (name,))


def del_link_altnames(ifindex: int, name: str, *altnames: str) -> Request:
    """EINVAL: one of the names is not the link's; those before it are gone."""
    names = [attrs.text(IFLA_ALT_IFNAME, altname.encode()) for altname in altnames]
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.nested(IFLA_PROP_LIST, *names)
    return Request(RTM_DELLINKPROP, 0, body, "remove alternative names of {}", (name,))


def set_link_group(ifindex: int, name: str, group: int) -> Request:
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.u32(IFLA_GROUP, group)
    return Request(RTM_NEWLINK, 0, body, "set group of {}", (name,))


def rename_link(ifindex: int, name: str) -> Request:
    """EEXIST: the name is taken. Since Linux 6.2 also of a link that is up."""
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.text(IFLA_IFNAME, name.encode())
    return Request(RTM_NEWLINK, 0, body, "rename link {} to {}", (ifindex, name))


def set_link_mac(ifindex: int, name: str, mac: bytes) -> Request:
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.attr(IFLA_ADDRESS, mac)
    return Request(RTM_NEWLINK, 0, body, "set MAC of {}", (name,))


def set_link_mtu(ifindex: int, name: str, mtu: int) -> Request:
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.u32(IFLA_MTU, mtu)
    return Request(RTM_NEWLINK, 0, body, "set MTU of {} to {}", (name, mtu))


def set_link_master(ifindex: int, name: str, master: int) -> Request:
    """master 0: none."""
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + attrs.u32(IFLA_MASTER, master)
    return Request(RTM_NEWLINK, 0, body, "set master of {} to {}", (name, master))


def set_link_arp(ifindex: int, name: str) -> Request:
    """Make it ask for and answer to ARP and neighbour solicitations."""
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, IFF_NOARP)
    return Request(RTM_NEWLINK, 0, body, "set ARP of {}", (name,))


def set_link_ipv4_setting(ifindex: int, name: str, setting: int, value: int) -> Request:
    """setting: IPV4_DEVCONF_."""
    conf = attrs.nested(IFLA_INET_CONF, attrs.u32(setting, value))
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0)
    body += attrs.nested(IFLA_AF_SPEC, attrs.nested(AF_INET, conf))
    return Request(RTM_NEWLINK, 0, body, "set IPv4 setting {} of {} to {}", (setting, name, value))


def set_group_by_altname(altname: str, group: int) -> Request:
    body = (
        _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0)
        + attrs.text(IFLA_ALT_IFNAME, altname.encode())
        + attrs.u32(IFLA_GROUP, group)
    )
    return Request(RTM_NEWLINK, 0, body, "set group of {}", (altname,))


def del_link(ifindex: int, name: str) -> Request:
    """ENODEV: there is no such link."""
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0)
    return Request(RTM_DELLINK, 0, body, "delete link {}", (name,))


def del_link_by_altname(altname: str) -> Request:
    """Deletes what bears the name, whatever its index. ENODEV: nothing."""
    body = _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + attrs.text(IFLA_ALT_IFNAME, altname.encode())
    return Request(RTM_DELLINK, 0, body, "delete link {}", (altname,))


def del_links_by_group(group: int) -> Request:
    """All links of a group, for the price of one. ENODEV: none."""
    body = _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + attrs.u32(IFLA_GROUP, group)
    return Request(RTM_DELLINK, 0, body, "delete links of group {}", (group,))


def get_link(ifindex: int, *, netnsid: int | None = None) -> Request:
    """netnsid: look into the namespace that has this id here, without entering
    it; needs privileges over it.
    """
    body = _IFINFO.pack(AF_UNSPEC, 0, ifindex, 0, 0) + _SKIP_STATS
    if netnsid is not None:
        body += attrs.attr(IFLA_TARGET_NETNSID, _I32.pack(netnsid))
    return Request(RTM_GETLINK, 0, body, "get link {}", (ifindex,))


def get_link_by_name(name: str) -> Request:
    body = (
        _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + attrs.text(IFLA_IFNAME, name.encode()) + _SKIP_STATS
    )
    return Request(RTM_GETLINK, 0, body, "get link {}", (name,))


def dump_links() -> Request:
    body = _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _SKIP_STATS
    return Request(RTM_GETLINK, 0, body, "list links")


def dump_routes(family: int, protocol: int) -> Request:
    """The routes of a protocol; the kernel filters on strict sockets only."""
    body = _RTMSG.pack(family, 0, 0, 0, 0, protocol, 0, 0, 0)
    return Request(RTM_GETROUTE, 0, body, "list routes")


def dump_link_routes(family: int, ifindex: int) -> Request:
    """The main table's routes through a link; as dump_routes."""
    body = _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0) + attrs.u32(_RTA_OIF, ifindex)
    return Request(RTM_GETROUTE, 0, body, "list routes of link {}", (ifindex,))


def dump_local_routes(family: int, ifindex: int) -> Request:
    """The routes by which a link's addresses are the host's; as dump_routes."""
    body = _RTMSG.pack(family, 0, 0, 0, RT_TABLE_LOCAL, 0, 0, 0, 0) + attrs.u32(_RTA_OIF, ifindex)
    return Request(RTM_GETROUTE, 0, body, "list local routes of link {}", (ifindex,))


def dump_main_routes(family: int) -> Request:
    """All of the main table's routes; as dump_routes."""
    body = _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
    return Request(RTM_GETROUTE, 0, body, "list routes of the main table")


def get_route(destination: IPAddress, *, ifindex: int = 0) -> Request:
    """The entry of the table by which packets to the address go, if not 0 those
    out of a link; what they meet beyond it, such as a cached exception, is left
    out.
    """
    bits = destination.max_prefixlen
    flags = RTM_F_FIB_MATCH
    body = _RTMSG.pack(family_of(destination), bits, 0, 0, 0, 0, 0, 0, flags)
    body += attrs.attr(_RTA_DST, destination.packed)
    if ifindex:
        body += attrs.u32(_RTA_OIF, ifindex)
    return Request(RTM_GETROUTE, 0, body, "look up route to {}", (destination,))


def dump_addresses(family: int, ifindex: int, *, netnsid: int | None = None) -> Request:
    """A link's addresses; strict sockets only. netnsid: see get_link."""
    body = _IFADDR.pack(family, 0, 0, 0, ifindex)
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
    protocol: int = 0,
) -> Request:
    """no_dad: IPv6 without duplicate address detection: usable at once.
    protocol: whose it is, as of a route.
    """
    packed = address.packed
    flags = IFA_F_NODAD if no_dad else 0
    body = (
        _IFADDR.pack(family_of(address), prefix_length, flags, scope, ifindex)
        + attrs.attr(_IFA_LOCAL, packed)
        + attrs.attr(_IFA_ADDRESS, packed)
    )
    if protocol:
        body += attrs.attr(_IFA_PROTO, bytes([protocol]))
    values = (address, prefix_length, name)
    return Request(RTM_NEWADDR, _NEW, body, "add address {}/{} to {}", values)


def del_address(ifindex: int, name: str, address: IPAddress, prefix_length: int) -> Request:
    """EADDRNOTAVAIL: the link does not have it."""
    body = _IFADDR.pack(family_of(address), prefix_length, 0, 0, ifindex)
    body += attrs.attr(_IFA_LOCAL, address.packed)
    values = (address, prefix_length, name)
    return Request(RTM_DELADDR, 0, body, "delete address {}/{} of {}", values)


def add_route(
    destination: IPAddress | None,
    ifindex: int,
    name: str,
    *,
    family: int,
    protocol: int,
    gateway: IPAddress | None = None,
    source: IPAddress | None = None,
    metric: int = 0,
    exclusive: bool = True,
) -> Request:
    """A route to one address, or by default (destination None), through a link
    or a gateway on it, in the main table. source: what the host uses as its
    own address towards it; it must be local. metric 0: the kernel's default.
    exclusive: EEXIST when there is one to the same address by any link; else,
    in IPv6, only when there is the same one.
    """
    scope = RT_SCOPE_LINK if gateway is None and family == AF_INET else RT_SCOPE_UNIVERSE
    bits = 0 if destination is None else destination.max_prefixlen
    parts = [
        _RTMSG.pack(family, bits, 0, 0, RT_TABLE_MAIN, protocol, scope, RTN_UNICAST, 0),
        attrs.u32(_RTA_OIF, ifindex),
    ]
    if destination is not None:
        parts.append(attrs.attr(_RTA_DST, destination.packed))
    if gateway is not None:
        parts.append(attrs.attr(_RTA_GATEWAY, gateway.packed))
    if source is not None:
        parts.append(attrs.attr(_RTA_PREFSRC, source.packed))
    if metric:
        parts.append(attrs.u32(_RTA_PRIORITY, metric))
    values = ("default" if destination is None else destination, bits, name)
    flags = _NEW if exclusive else NLM_F_CREATE
    return Request(RTM_NEWROUTE, flags, b"".join(parts), "add route {}/{} dev {}", values)


def add_local_route(ifindex: int, name: str, address: IPv4Address) -> Request:
    """The route that comes with an address of a link, as the kernel makes it.
    It goes with the address; one of IPv6 would not.
    """
    parts = [
        _RTMSG.pack(AF_INET, 32, 0, 0, RT_TABLE_LOCAL, RTPROT_KERNEL, RT_SCOPE_HOST, RTN_LOCAL, 0),
        attrs.attr(_RTA_DST, address.packed),
        attrs.u32(_RTA_OIF, ifindex),
        attrs.attr(_RTA_PREFSRC, address.packed),
    ]
    what = "add local route {} dev {}"
    return Request(RTM_NEWROUTE, NLM_F_CREATE, b"".join(parts), what, (address, name))


def replace_route(route: Route, name: str) -> Request:
    """Make the main table have the route, in place of one of the same metric to
    the same destination if there is one. name: the link's, for errors.
    """
    return _route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route, "add", name)


def del_route(route: Route, name: str) -> Request:
    """ESRCH: there is no such route."""
    return _route(RTM_DELROUTE, 0, route, "delete", name)


def _route(kind: int, flags: int, route: Route, verb: str, name: str) -> Request:
    destination = route.destination
    family = AF_INET if destination.version == 4 else AF_INET6
    near = family == AF_INET and route.gateway is None and route.kind == RTN_UNICAST
    scope = RT_SCOPE_LINK if near else RT_SCOPE_UNIVERSE
    bits, table, owner = destination.prefixlen, RT_TABLE_MAIN, route.protocol
    parts = [
        _RTMSG.pack(family, bits, 0, 0, table, owner, scope, route.kind, 0),
        attrs.attr(_RTA_DST, destination.network_address.packed),
    ]
    if route.ifindex is not None:
        parts.append(attrs.u32(_RTA_OIF, route.ifindex))
    if route.gateway is not None:
        parts.append(attrs.attr(_RTA_GATEWAY, route.gateway.packed))
    if route.source is not None:
        parts.append(attrs.attr(_RTA_PREFSRC, route.source.packed))
    if route.metric:
        parts.append(attrs.u32(_RTA_PRIORITY, route.metric))
    to = f"dev {name}" if route.kind == RTN_UNICAST else "unreachable"
    return Request(kind, flags, b"".join(parts), "{} route {} {}", (verb, destination, to))


@dataclass(frozen=True)
class Link:
    """What a link message says. Absent attributes are empty, 0 or None.

    peer: index of the other end of a veth, in its own namespace, or of the link
    that a VLAN is on. peer_netns: the id of that namespace in this one; None
    when it is this one. master: index of the bond or bridge that it belongs to.
    data: the attributes of its kind (IFLA_INFO_DATA). permanent_mac: that of
    the hardware, whatever it uses now. settings: those of its IP versions
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
        """IPV4_DEVCONF_; None: the kernel does not say."""
        # The kernel's numbers begin with 1.
        return _setting(self.settings, AF_INET, IFLA_INET_CONF, setting - 1)

    def ipv6_setting(self, setting: int) -> int | None:
        """DEVCONF_; None: the link has no IPv6, or the kernel."""
        return _setting(self.settings, AF_INET6, IFLA_INET6_CONF, setting)

    @property
    def ipv6_addresses(self) -> bool:
        """Whether the kernel gives it link-local addresses of its own."""
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
    """Raises ProtocolError for what is not a link message."""
    if message.kind not in (RTM_NEWLINK, RTM_DELLINK) or len(message.body) < _IFINFO.size:
        raise ProtocolError(f"message {message.kind} of {len(message.body)} bytes is not a link")
    _, _, ifindex, flags, _ = _IFINFO.unpack_from(message.body)
    if ifindex < 0:
        raise ProtocolError(f"link of index {ifindex}")
    found = attrs.parse(message.body[_IFINFO.size :])
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
        peer_netns=None if peer_netns is None else _to_i32(peer_netns),
        master=None if master is None else attrs.to_u32(master),
        data=info.get(IFLA_INFO_DATA, b""),
        permanent_mac=found.get(IFLA_PERM_ADDRESS, b""),
        settings=found.get(IFLA_AF_SPEC, b""),
    )


def _to_i32(payload: bytes) -> int:
    number = attrs.to_u32(payload)
    return number - (1 << 32) if number >> 31 else number


@dataclass(frozen=True)
class Address:
    """An address of a link. flags: IFA_F_. scope: RT_SCOPE_. protocol: as of
    a route. peer: the other end's, whose network it is; None: its own.
    """

    ifindex: int
    address: IPAddress
    prefix_length: int
    flags: int
    scope: int = RT_SCOPE_UNIVERSE
    protocol: int = 0
    peer: IPAddress | None = None

    @property
    def usable(self) -> bool:
        """Not waiting for duplicate address detection, nor failed by it."""
        return not self.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)


def parse_address(message: Message) -> Address | None:
    """None for an address of neither IP version."""
    if message.kind != RTM_NEWADDR or len(message.body) < _IFADDR.size:
        raise ProtocolError(f"message {message.kind} of {len(message.body)} bytes is no address")
    family, bits, flags, scope, ifindex = _IFADDR.unpack_from(message.body)
    if family not in _WIDTHS:
        return None
    found = attrs.parse(message.body[_IFADDR.size :])
    # With a point-to-point peer IFA_ADDRESS is the peer's.
    own = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if own is None:
        raise ProtocolError(f"an address of link {ifindex} without the address")
    if _IFA_FLAGS in found:
        flags = attrs.to_u32(found[_IFA_FLAGS])
    owner = found.get(_IFA_PROTO) or b"\0"
    far = found.get(_IFA_ADDRESS, own)
    peer = None if far == own else _to_ip(family, far)
    return Address(ifindex, _to_ip(family, own), bits, flags, scope, owner[0], peer)


_WIDTHS = {AF_INET: 4, AF_INET6: 16}  # bytes of an address


def _to_ip(family: int, packed: bytes) -> IPAddress:
    if len(packed) != _WIDTHS[family]:
        raise ProtocolError(f"an address of {len(packed)} bytes in family {family}")
    return IPv4Address(packed) if family == AF_INET else IPv6Address(packed)


@dataclass(frozen=True)
class Route:
    """A route of IPv4 or IPv6. ifindex None: not through one link. kind: RTN_.
    metric 0: the kernel's default. hops: of one through several, each with its
    link and gateway.
    """

    destination: IPNetwork
    ifindex: int | None
    protocol: int
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    kind: int = RTN_UNICAST
    metric: int = 0
    hops: tuple[tuple[int, IPAddress | None], ...] = ()


def parse_route(message: Message) -> Route | None:
    """None for a route of neither IP version."""
    if message.kind != RTM_NEWROUTE or len(message.body) < _RTMSG.size:
        raise ProtocolError(f"message {message.kind} of {len(message.body)} bytes is not a route")
    family, bits, _, _, _, protocol, _, kind, _ = _RTMSG.unpack_from(message.body)
    if family not in _WIDTHS:
        return None
    found = attrs.parse(message.body[_RTMSG.size :])
    packed = found.get(_RTA_DST, bytes(_WIDTHS[family]))

    def address(kind: int) -> IPAddress | None:
        return _to_ip(family, found[kind]) if kind in found else None

    try:
        # Not ip_network, which goes by way of text: a dump has thousands.
        network = IPv4Network if family == AF_INET else IPv6Network
        destination = network((int(_to_ip(family, packed)), bits))
    except ValueError as error:
        raise ProtocolError(f"a route destination: {error}") from error
    return Route(
        destination=destination,
        ifindex=attrs.to_u32(found[_RTA_OIF]) if _RTA_OIF in found else None,
        protocol=protocol,
        gateway=_gateway(family, found),
        source=address(_RTA_PREFSRC),
        kind=kind,
        metric=attrs.to_u32(found[_RTA_PRIORITY]) if _RTA_PRIORITY in found else 0,
        hops=tuple(_hops(family, found.get(_RTA_MULTIPATH, b""))),
    )


def _gateway(family: int, found: dict[int, bytes]) -> IPAddress | None:
    """That of IPv4 may be of IPv6, and is then told otherwise (RFC 5549)."""
    if _RTA_GATEWAY in found:
        return _to_ip(family, found[_RTA_GATEWAY])
    via = found.get(_RTA_VIA)
    if via is None:
        return None
    if len(via) < _RTVIA.size or (other := _RTVIA.unpack_from(via)[0]) not in _WIDTHS:
        raise ProtocolError(f"a gateway of {len(via)} bytes")
    return _to_ip(other, via[_RTVIA.size :])


def _hops(family: int, data: bytes) -> Iterator[tuple[int, IPAddress | None]]:
    """Each a struct rtnexthop with attributes (linux/rtnetlink.h)."""
    while data:
        if len(data) < _RTNEXTHOP.size:
            raise ProtocolError(f"a next hop of {len(data)} bytes")
        length, _, _, ifindex = _RTNEXTHOP.unpack_from(data)
        if not _RTNEXTHOP.size <= length <= len(data):
            raise ProtocolError(f"a next hop of {length} bytes")
        yield ifindex, _gateway(family, attrs.parse(data[_RTNEXTHOP.size : length]))
        data = data[(length + 3) & ~3 :]


@dataclass(frozen=True)
class LinkRemoved:
    """A link is gone, or moved to another namespace."""

    ifindex: int
    name: str


def parse_link_removed(message: Message) -> LinkRemoved | None:
    """A link's removal; None for all else, such as a port that left a bridge,
    which is told with the same message type in another family.
    """
    if message.kind != RTM_DELLINK or len(message.body) < _IFINFO.size:
        return None
    family, _, ifindex, _, _ = _IFINFO.unpack_from(message.body)
    if family != AF_UNSPEC:
        return None
    name = attrs.parse(message.body[_IFINFO.size :]).get(IFLA_IFNAME, b"")
    return LinkRemoved(ifindex, _names(name))
