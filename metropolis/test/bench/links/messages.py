# SPDX-License-Identifier: Apache-2.0
"""The messages that attach a pod by a pair of a kind. Pure.

They are those of the service's datapath (workloads/datapath), in its three
sends: the pair, the pod's side, the host's side. The kinds differ in the first
one only. Source: linux/if_link.h (IFLA_NETKIT_*), linux/veth.h.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from metropolis.node import allocs
from metropolis.test.bench.links.model import Kind
from osbase.ip import AF_INET, AF_INET6, AF_UNSPEC, family_of
from osbase.netlink import attrs
from osbase.netlink.address import add_address
from osbase.netlink.altnames import add_link_altnames
from osbase.netlink.ifla import (
    IFLA_ADDRESS,
    IFLA_GROUP,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    RTM_NEWLINK,
)
from osbase.netlink.link import set_link_alias, set_link_up
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Request
from osbase.netlink.route import RT_SCOPE_LINK, add_route

IFLA_NUM_TX_QUEUES = 31
IFLA_NUM_RX_QUEUES = 32
PEER_INFO = 1  # both VETH_INFO_PEER and IFLA_NETKIT_PEER_INFO
NETKIT_POLICY = 3
NETKIT_PEER_POLICY = 4
NETKIT_MODE = 5
NETKIT_SCRUB = 6
NETKIT_PEER_SCRUB = 7
NETKIT_PASS, NETKIT_DROP = 0, 2
NETKIT_SCRUB_NONE = 0

MTU = 1500
_MODES = {Kind.NETKIT_L2: 0, Kind.NETKIT_L3: 1}
_LOOPBACK = 1
_RTPROT_STATIC = 4
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod to be attached. number: unique, below 60,000.

    host_index, pod_index: of the two ends. group: of the host's end.
    """

    number: int
    host_index: int
    pod_index: int
    group: int = allocs.LINK_GROUP_WORKLOAD

    @property
    def host_name(self) -> str:
        return f"wl{self.number:x}"

    @property
    def mac(self) -> bytes:
        return b"\x02\x00\x00\x00" + self.number.to_bytes(2)

    @property
    def ipv4(self) -> IPv4Address:
        return IPv4Address("10.192.0.0") + self.number

    @property
    def ipv6(self) -> IPv6Address:
        return IPv6Address("fd00:10:192::") + self.number


def mac(kind: Kind, address: bytes) -> list[bytes]:
    """A link's MAC; nothing where the kind has none."""
    return [] if kind is Kind.NETKIT_L3 else [attrs.attr(IFLA_ADDRESS, address)]


def queues(kind: Kind) -> list[bytes]:
    """Return an end's number of queues; [] for the kernel's default."""
    if kind is not Kind.VETH_1Q:
        return []
    return [attrs.u32(IFLA_NUM_TX_QUEUES, 1), attrs.u32(IFLA_NUM_RX_QUEUES, 1)]


def mode(kind: Kind) -> list[bytes]:
    """Return netkit's mode; its default is L3."""
    return [attrs.u32(NETKIT_MODE, _MODES[kind])] if kind.netkit else []


def pair(
    kind: Kind,
    host_index: int,
    near: Sequence[bytes],
    pod_index: int,
    far: Sequence[bytes],
    data: Sequence[bytes],
) -> Request:
    """Create a pair. near, far: attributes of the ends; data: the kind's."""
    name = "netkit" if kind.netkit else "veth"
    peer = _IFINFO.pack(AF_UNSPEC, 0, pod_index, 0, 0) + b"".join(far)
    info = attrs.nested(
        IFLA_LINKINFO,
        attrs.text(IFLA_INFO_KIND, name.encode()),
        attrs.nested(IFLA_INFO_DATA, attrs.attr(PEER_INFO, peer), *data),
    )
    body = _IFINFO.pack(AF_UNSPEC, 0, host_index, 0, 0) + b"".join(near) + info
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, "create {} pair", (kind,))


def change(host_index: int, data: Sequence[bytes]) -> Request:
    """Change attributes of a netkit pair, by its host end."""
    info = attrs.nested(
        IFLA_LINKINFO,
        attrs.text(IFLA_INFO_KIND, b"netkit"),
        attrs.nested(IFLA_INFO_DATA, *data),
    )
    body = _IFINFO.pack(AF_UNSPEC, 0, host_index, 0, 0) + info
    return Request(RTM_NEWLINK, 0, body, "change netkit pair {}", (host_index,))


def create(kind: Kind, pod: Pod, netns_fd: int) -> list[Request]:
    """Return the first send: both ends, without later settings."""
    near = [
        attrs.text(IFLA_IFNAME, pod.host_name.encode()),
        attrs.u32(IFLA_MTU, MTU),
        attrs.u32(IFLA_GROUP, pod.group),
        *mac(kind, allocs.FIRST_HOP_MAC),
        *queues(kind),
    ]
    far = [
        attrs.text(IFLA_IFNAME, b"eth0"),
        attrs.u32(IFLA_NET_NS_FD, netns_fd),
        attrs.u32(IFLA_MTU, MTU),
        *mac(kind, pod.mac),
        *queues(kind),
    ]
    return [pair(kind, pod.host_index, near, pod.pod_index, far, mode(kind))]


def inside(pod: Pod) -> list[Request]:
    """Return the second send, for the pod's namespace."""
    index = pod.pod_index
    requests = [set_link_up(_LOOPBACK, "lo"), set_link_up(index, "eth0")]
    for ip, hop in ((pod.ipv4, allocs.FIRST_HOP_IPV4), (pod.ipv6, allocs.FIRST_HOP_IPV6)):
        family = family_of(ip)
        requests += [
            add_address(index, "eth0", ip, ip.max_prefixlen, no_dad=ip.version == 6),
            add_route(hop, index, "eth0", family=family, protocol=_RTPROT_STATIC),
            add_route(
                None,
                index,
                "eth0",
                family=family,
                protocol=_RTPROT_STATIC,
                gateway=hop,
                source=ip,
            ),
        ]
    return requests


def commit(pod: Pod) -> list[Request]:
    """Return the third send: records, up, first hop, routes."""
    index, name = pod.host_index, pod.host_name
    # As long as those of the service.
    key, record = (f"{what}-{pod.number:040x}" for what in ("key", "record"))
    protocol = allocs.ROUTE_PROTOCOL_WORKLOAD
    return [
        set_link_alias(index, name, f"{pod.number:064x}", ipv6=True),
        add_link_altnames(index, name, key, record),
        set_link_up(index, name),
        add_route(
            pod.ipv4,
            index,
            name,
            family=AF_INET,
            protocol=protocol,
            source=allocs.FIRST_HOP_IPV4,
        ),
        add_address(index, name, allocs.FIRST_HOP_IPV6, 64, no_dad=True),
        add_route(pod.ipv6, index, name, family=AF_INET6, protocol=protocol),
    ]


def host_first_hop() -> list[Request]:
    """Return the host's setup: lo up, and the IPv4 first hop on it."""
    hop = allocs.FIRST_HOP_IPV4
    return [
        set_link_up(_LOOPBACK, "lo"),
        add_address(_LOOPBACK, "lo", hop, 32, scope=RT_SCOPE_LINK),
    ]
