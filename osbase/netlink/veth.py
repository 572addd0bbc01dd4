# SPDX-License-Identifier: Apache-2.0
"""Messages that make veth pairs. Pure.

Source: drivers/net/veth.c, linux/veth.h.
"""

from typing import NamedTuple

from osbase.ip import AF_UNSPEC
from osbase.netlink import attrs
from osbase.netlink.ifla import (
    HEADER,
    IFLA_ADDRESS,
    IFLA_GROUP,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    IFLA_NUM_RX_QUEUES,
    IFLA_NUM_TX_QUEUES,
    RTM_NEWLINK,
    VETH_INFO_PEER,
)
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Request

_NEW = NLM_F_CREATE | NLM_F_EXCL
_VETH = attrs.text(IFLA_INFO_KIND, b"veth")
_NO_FD = 0xFFFFFFFF  # -1: no file has it
_ONE_QUEUE = attrs.u32(IFLA_NUM_TX_QUEUES, 1) + attrs.u32(IFLA_NUM_RX_QUEUES, 1)


class VethEnd(NamedTuple):
    """One end of a new veth pair. mac None: the kernel chooses."""

    name: str
    ifindex: int
    mac: bytes | None


def new_veth(host: VethEnd, peer: VethEnd, *, netns_fd: int, mtu: int, group: int) -> Request:
    """Create a veth pair: `host` here, down, in `group`; `peer` in `netns_fd`.

    Each end has one queue. By default the kernel makes one for each possible
    CPU, each with an object in sysfs, and then uses only the first
    (veth_init_queues). That takes a third of a pair's time on 2 CPUs, and more
    on more CPUs.

    EEXIST: a name, or the host end's index, is taken. EBUSY: the peer's index
    is taken.
    """
    far = [
        HEADER.pack(AF_UNSPEC, 0, peer.ifindex, 0, 0),
        attrs.text(IFLA_IFNAME, peer.name.encode()),
        attrs.u32(IFLA_NET_NS_FD, netns_fd),
        attrs.u32(IFLA_MTU, mtu),
        _ONE_QUEUE,
    ]
    near = [
        HEADER.pack(AF_UNSPEC, 0, host.ifindex, 0, 0),
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
    """Make the kernel load its module for new_veth; make no link.

    When two threads need a module at once, each starts modprobe. Busybox's ends
    at once if another is loading the module; the kernel then returns EOPNOTSUPP
    for a kind that it has a moment later.

    EBADF: the module is loaded. EOPNOTSUPP: the kernel lacks it. It always
    fails, since the peer's namespace does not exist (rtnl_newlink, net/core/
    rtnetlink.c, asks for the module before it looks at that).
    """
    ends = VethEnd("veth%d", 0, None), VethEnd("veth%d", 0, None)
    return new_veth(*ends, netns_fd=_NO_FD, mtu=1500, group=0)
