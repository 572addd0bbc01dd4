# SPDX-License-Identifier: Apache-2.0
"""Numbers and names shared by several components of a node, in one place.

Here is allocated what two components must agree on without talking to each
other, or must not collide on, with its users: link groups, route protocols,
well-known addresses, sockets. What only one component knows stays in that
component. Constants only: importing this module costs nothing.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Final

# --- Link groups (IFLA_GROUP), the numbers that nftables rules match on. ----
# 0 is the kernel's default group: hardware and all links of others.

LINK_GROUP_WORKLOAD: Final = 8
"""Host-side links of workloads.

Set by: network.workloads, at link creation. Matched by: the node's rule set
(network.rules: masquerade, anti-spoofing); link dumps on recovery."""

LINK_GROUP_REMOVAL: Final = 0x6D770008
"""Links of workloads that one request is about to delete.

Set by: network.workloads. Matched by: the node's rule set, which drops all
traffic of such a link; link dumps on recovery, which deletes them."""

REMOVAL_BLOCKS: Final = (0x6D770001, 0x6D770002)
"""Blocks of traffic filters that drop what a link receives, and what it sends.

Set on: links of workloads that are about to be deleted, by network.workloads;
link dumps on recovery read it, and these links are deleted. Numbers that
`tc` never chooses by itself."""

LINK_GROUP_COMPANION: Final = 0x6D77000B
"""Second links of workloads, on the host: they limit what workloads send.

Set by: network.workloads, at an attach. No rule matches it, since packets keep
the link by which they came; link dumps on recovery."""

LINK_GROUP_OVERLAY: Final = 9
"""The links of the cluster's overlay network.

Set by: the overlay. Matched by: the node's rule set, which does not
masquerade what goes into the overlay."""

LINK_GROUP_UPLINK: Final = 10
"""Bonds and VLANs that were made for the uplink.

Set and reconciled by: network.uplink, which removes those that the
configuration does not have any more."""

UPLINK_MTU_MARK: Final = "mw-mtu."
"""Prefix of an alternative name of a link whose MTU a DHCP server reduced:
`mw-mtu.1500.2` on link 2, which had 1500 bytes before. Set, read, and removed
once the MTU is restored, by: network.uplink."""

# --- Route protocols (rtm_protocol): who owns a route. ----------------------
# Those below 5 belong to the kernel and the boot; 8-18, 42, 186-192 to routing
# daemons (linux/rtnetlink.h). Addresses have the same numbers (IFA_PROTO), of
# which the kernel's own are below 4.

ROUTE_PROTOCOL_UPLINK: Final = 76
"""Addresses and routes of the uplink, static or by DHCP. Set and reconciled
by: network.uplink. Those from router advertisements are the kernel's (9)."""

ROUTE_PROTOCOL_WORKLOAD: Final = 77
"""Host routes (/32, /128) to workloads.

Set by: network.workloads. Read by: its recovery after a restart."""

ROUTE_PROTOCOL_OVERLAY: Final = 78
"""Routes of the cluster's pod networks into the overlay, the unreachable routes
of the node's own prefixes, and the overlay link's addresses. Set by: overlay.
Read by: the overlay after a restart."""

# --- Marks. ------------------------------------------------------------------
# The packet's mark belongs to others: kube-proxy and VPNs have bits of it, from
# prerouting to postrouting. The node neither sets nor matches it. WireGuard's
# is on packets of the node itself.

CONNTRACK_MARK_SOURCE: Final = 0xFFFF0000
"""The half of conntrack's mark with the source's identity, of flows from and to
workloads that were allowed while there are policies; 0: the world. Flows are
selected by it when policies change. The whole mark of these flows is ours, and
that of others is not touched. Set by: the node's rule set. Matched by: the
node's rule set, network.policy."""

CONNTRACK_MARK_DESTINATION: Final = 0x0000FFFF
"""As CONNTRACK_MARK_SOURCE, the destination's identity."""

# --- Inside workloads. --------------------------------------------------------

FURTHER_RULE: Final = 32000
"""Priority of the routing rules of a workload's further interfaces: before the
kernel's (32766), behind those that people make without a number unless they
have made hundreds. Set by: network.workloads."""

FURTHER_TABLE: Final = 0x4D000000
"""Plus an interface's index: the routing table of a workload's further
interface. Set by: network.workloads."""

# --- The first hop: what every workload on every node routes through. -------

FIRST_HOP_IPV4: Final = IPv4Address("169.254.77.1")
"""Gateway of workloads, link-scope, the same on every node.

Put on lo by: network service. Used as gateway by: network.workloads.
Source address of node-to-workload traffic on a node without an uplink."""

FIRST_HOP_NETWORK: Final = IPv4Network("169.254.77.0/24")
"""Its network: link-local addresses that the node keeps for itself. Matched by:
the node's rule set. Refused as the host's address of a port by:
network.workloads."""

FIRST_HOP_IPV6: Final = IPv6Address("fe80::1")
"""As FIRST_HOP_IPV4. Put on every host-side link by: network.workloads.
Let through by: the node's rule set, as the only link-local peer."""

FIRST_HOP_MAC: Final = bytes.fromhex("029c52fe6d0a")
"""Link address of every host-side link, 6 bytes, locally administered, so
that a workload's neighbour entry never goes stale. Set by: network.workloads.
"""

# --- The overlay. -------------------------------------------------------------

OVERLAY_LINK: Final = "overlay"
"""The WireGuard link. Set by: overlay. Named in: logs, tests, `wg show`."""

WIREGUARD_PORT: Final = 51820
"""UDP port of WireGuard on every node. Listened on by: the overlay's link. Sent
to by: the overlay's peers. Let through by: firewalls between nodes."""

MASQUERADE_PORTS: Final = (1024, 32767)
"""First and last source port that the rule set gives flows of workloads when
they leave the node. The node's other ports are above: EPHEMERAL_PORTS,
WIREGUARD_PORT. Used by: the node's rule set."""

EPHEMERAL_PORTS: Final = (32768, 60999)
"""First and last port of connections that the node itself opens; the kernel's
default, pinned. Set by: network service, in sysctls. Matched by: the node's
rule set."""

CURATOR_PORT: Final = 2379
"""TCP port of etcd where an endpoint has none. Connected to by: curator."""

# --- Names. ------------------------------------------------------------------

NFTABLES_TABLE: Final = "metropolis"
"""The `inet` table with the node's static rules. Owned by: network.rules."""

NFTABLES_WORKLOADS: Final = "metropolis_workloads"
"""The `inet` table with the host ports of workloads, and network policy. Made
by: network.rules. Its elements are made by: network.workloads, and
network.policy."""

REFUSED_LINKS: Final = "refused_links"
"""The set in that table with the links, by index and each with a timeout, whose
new flows are refused. Made by: network.rules. Filled by: network.conntrack."""

# --- Files and sockets on the node. -------------------------------------------

RUNTIME_DIR: Final = "/run/metropolis/network"
"""Directory of the network service's sockets, mode 0700. Made by: network
service."""

WORKLOAD_SOCKET: Final = f"{RUNTIME_DIR}/workload.sock"
"""gRPC WorkloadNetworking, mode 0600. Served by: network.workloads. Clients:
cniproxy (Python, Go), tests."""

CNI_SOCKET: Final = f"{RUNTIME_DIR}/cni.sock"
"""CNI exec requests, forwarded by the cniproxy shim, mode 0600. Served by:
network.cni."""

POLICY_DIR: Final = f"{RUNTIME_DIR}/policy"
"""Where network policies, and what workloads are, survive the service."""

POLICY_FILES: Final = "/run/metropolis/policies"
"""Network policies of the node, beside its configuration."""

RESOLV_CONF: Final = "/run/metropolis/resolv.conf"
"""Name servers of the node, in resolv.conf(5)'s format. Written by: network
service. Read by: the node's resolvers, if the image's /etc/resolv.conf links
to it."""

TIME_DIR: Final = "/run/metropolis/time"
"""Time servers of the node, for chronyd: node.sources. Made by: the node's
init, where the image has chronyd. Written by: network service."""

STATE_DIR: Final = "/var/lib/metropolis"
"""What a node keeps over reboots, mode 0700, on its data disk. overlay/: the
WireGuard key, written by the overlay."""

PKI_DIR: Final = "/run/metropolis/pki"
"""Credentials for etcd, mode 0700: ca.pem, cert.pem, key.pem (0600). Written
by: the node's init. Read by: curator."""

NODE_CONFIG: Final = "/run/metropolis/node.textproto"
"""The node's configuration, a NodeConfig as protobuf text. Written by: the
node's init, before node core starts. Read by: node core."""
