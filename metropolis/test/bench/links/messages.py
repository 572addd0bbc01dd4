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
from osbase.netlink import attrs, rtnl
from osbase.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Request

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
    """A pod to be attached. number: unlike any other's, below 60,000.

    host_index, pod_index: of the two ends. group: of the host's.
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
    return [] if kind is Kind.NETKIT_L3 else [attrs.attr(rtnl.IFLA_ADDRESS, address)]


def queues(kind: Kind) -> list[bytes]:
    """An end's number of queues; nothing where the kernel's choice is taken."""
    if kind is not Kind.VETH_1Q:
        return []
    return [attrs.u32(IFLA_NUM_TX_QUEUES, 1), attrs.u32(IFLA_NUM_RX_QUEUES, 1)]


def mode(kind: Kind) -> list[bytes]:
    """What only netkit has to be told; mind that it takes L3 by default."""
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
    peer = _IFINFO.pack(rtnl.AF_UNSPEC, 0, pod_index, 0, 0) + b"".join(far)
    info = attrs.nested(
        rtnl.IFLA_LINKINFO,
        attrs.text(rtnl.IFLA_INFO_KIND, name.encode()),
        attrs.nested(rtnl.IFLA_INFO_DATA, attrs.attr(PEER_INFO, peer), *data),
    )
    body = _IFINFO.pack(rtnl.AF_UNSPEC, 0, host_index, 0, 0) + b"".join(near) + info
    return Request(rtnl.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, "create {} pair", (kind,))


def change(host_index: int, data: Sequence[bytes]) -> Request:
    """Change attributes of a netkit pair, by its host end."""
    info = attrs.nested(
        rtnl.IFLA_LINKINFO,
        attrs.text(rtnl.IFLA_INFO_KIND, b"netkit"),
        attrs.nested(rtnl.IFLA_INFO_DATA, *data),
    )
    body = _IFINFO.pack(rtnl.AF_UNSPEC, 0, host_index, 0, 0) + info
    return Request(rtnl.RTM_NEWLINK, 0, body, "change netkit pair {}", (host_index,))


def create(kind: Kind, pod: Pod, netns_fd: int) -> list[Request]:
    """The first send: both ends, with all they need but what comes later."""
    near = [
        attrs.text(rtnl.IFLA_IFNAME, pod.host_name.encode()),
        attrs.u32(rtnl.IFLA_MTU, MTU),
        attrs.u32(rtnl.IFLA_GROUP, pod.group),
        *mac(kind, allocs.FIRST_HOP_MAC),
        *queues(kind),
    ]
    far = [
        attrs.text(rtnl.IFLA_IFNAME, b"eth0"),
        attrs.u32(rtnl.IFLA_NET_NS_FD, netns_fd),
        attrs.u32(rtnl.IFLA_MTU, MTU),
        *mac(kind, pod.mac),
        *queues(kind),
    ]
    return [pair(kind, pod.host_index, near, pod.pod_index, far, mode(kind))]


def inside(pod: Pod) -> list[Request]:
    """The second send, in the pod's namespace."""
    index = pod.pod_index
    requests = [rtnl.set_link_up(_LOOPBACK, "lo"), rtnl.set_link_up(index, "eth0")]
    for ip, hop in ((pod.ipv4, allocs.FIRST_HOP_IPV4), (pod.ipv6, allocs.FIRST_HOP_IPV6)):
        family = rtnl.family_of(ip)
        requests += [
            rtnl.add_address(index, "eth0", ip, ip.max_prefixlen, no_dad=ip.version == 6),
            rtnl.add_route(hop, index, "eth0", family=family, protocol=_RTPROT_STATIC),
            rtnl.add_route(
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
    """The third send: records, up, first hop, routes."""
    index, name = pod.host_index, pod.host_name
    # As long as those of the service are.
    key, record = (f"{what}-{pod.number:040x}" for what in ("key", "record"))
    protocol = allocs.ROUTE_PROTOCOL_WORKLOAD
    return [
        rtnl.set_link_alias(index, name, f"{pod.number:064x}", ipv6=True),
        rtnl.add_link_altnames(index, name, key, record),
        rtnl.set_link_up(index, name),
        rtnl.add_route(
            pod.ipv4,
            index,
            name,
            family=rtnl.AF_INET,
            protocol=protocol,
            source=allocs.FIRST_HOP_IPV4,
        ),
        rtnl.add_address(index, name, allocs.FIRST_HOP_IPV6, 64, no_dad=True),
        rtnl.add_route(pod.ipv6, index, name, family=rtnl.AF_INET6, protocol=protocol),
    ]


def host_first_hop() -> list[Request]:
    """What the host needs once: lo up, and the IPv4 first hop on it."""
    hop = allocs.FIRST_HOP_IPV4
    return [
        rtnl.set_link_up(_LOOPBACK, "lo"),
        rtnl.add_address(_LOOPBACK, "lo", hop, 32, scope=rtnl.RT_SCOPE_LINK),
    ]
