# SPDX-License-Identifier: Apache-2.0
"""The node's static rule set. Pure: text for osbase.nftables.

    from a workload -> [prerouting, raw: is the source what it was given?]
                    -> conntrack, routing -> [postrouting: masquerade] -> uplink

One table, replaced as a whole in one transaction. The cost of a packet does
not grow with the number of workloads: links are matched by their group, and a
source is looked up in the routing table, where its host route is anyway.

What a workload may send as its source:
- the addresses whose host routes lead back to its link, and no others. For
  IPv4 the lookup is the longest match, then compared with the link; for IPv6 it
  is confined to the link: either way the node's, another workload's, and the
  world's addresses fail.
- its link-local addresses (which are not looked up: there is one fe80::/64 per
  link) to the first hop only, and only neighbour discovery and echo. So no
  router advertisements, redirects or services by link-local addresses.
The lookup lets pass what the kernel needs before it has an address: 0.0.0.0 to
broadcast or multicast, :: to link-local or multicast (nft_fib_ipv4.c,
nft_fib_ipv6.c). Workloads do not get their addresses that way: both are dropped
explicitly, as are sources no packet can have (of IPv6, ::1 and multicast do
not get as far as here: ip6_rcv_core in ip6_input.c).

While the uplink has a route and no address yet (IPv6: a second of duplicate
address detection), masquerading takes what it finds, and the flow would keep
that for its life. Such packets are dropped after it and before conntrack
confirms the flow, so the next packet is masqueraded anew.

No packet of the pod networks leaves or enters the node in clear, whatever the
routes say at the moment: it goes by the links of workloads, by the overlay, or
within the node (lo), or not at all. What the overlay sends by the uplink are
the nodes' packets. The networks are one interval set a family: the cost of a
packet does not grow with them either. They are looked at before addresses are
translated on the way in, and on the way out after the destination is.

Masquerading is `fully-random`: many workloads' resolvers use the same
source port at once, and conntrack entries that collide are lost packets.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from metropolis.node import allocs
from metropolis.node.core.network.rules.settings import Settings


def render(settings: Settings) -> str:
    """Return the transaction that makes the table, or makes it anew, counters
    included.
    """
    table = f"inet {allocs.NFTABLES_TABLE}"
    workload = allocs.LINK_GROUP_WORKLOAD
    ours = f"{workload}, {allocs.LINK_GROUP_OVERLAY}"
    hop = allocs.FIRST_HOP_IPV6
    # The solicited-node multicast address of the first hop (RFC 4291, 2.7.1).
    solicited = f"ff02::1:ff{hop.packed[13]:02x}:{int.from_bytes(hop.packed[14:]):x}"
    return f"""
table {table}
delete table {table}
table {table} {{
    counter spoofed_ipv4 {{ comment "source is not the workload's" ; }}
    counter spoofed_ipv6 {{ comment "source is not the workload's" ; }}
    counter impossible_source {{ comment "loopback, multicast or unspecified" ; }}
    counter link_local {{ comment "link-local chatter, to no one; nothing unusual" ; }}
    counter uplink_not_ready {{ comment "no address yet to masquerade with" ; }}

    chain prerouting_raw {{
        type filter hook prerouting priority raw; policy accept;
        meta iifgroup {workload} meta nfproto ipv4 jump from_workload_ipv4
        meta iifgroup {workload} meta nfproto ipv6 jump from_workload_ipv6
    }}

    chain from_workload_ipv4 {{
        ip saddr {{ 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3 }} counter name impossible_source drop
        fib saddr . iif oif missing counter name spoofed_ipv4 drop
    }}

    chain from_workload_ipv6 {{
        ip6 saddr fe80::/10 jump from_link_local
        ip6 saddr :: counter name link_local drop
        fib saddr . iif oif missing counter name spoofed_ipv6 drop
    }}

    chain from_link_local {{
        ip6 daddr {hop} icmpv6 type {{
            nd-neighbor-solicit, nd-neighbor-advert, echo-request, echo-reply
        }} accept
        ip6 daddr {solicited} icmpv6 type nd-neighbor-solicit accept
        counter name link_local drop
    }}

    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        meta iifgroup {workload} meta oifgroup != {{ {ours} }} masquerade fully-random
    }}

    chain masqueraded {{
        type filter hook postrouting priority srcnat + 1; policy accept;
        meta iifgroup {workload} meta oifgroup != {{ {ours} }} jump leaves_node
    }}

    chain leaves_node {{
        ip saddr {allocs.FIRST_HOP_IPV4} counter name uplink_not_ready drop
        ip6 saddr fe80::/10 counter name uplink_not_ready drop
    }}
{_pods_only_encrypted(settings.networks, ours)}}}
"""


def _pods_only_encrypted(networks: Iterable[IPv4Network | IPv6Network], ours: str) -> str:
    """Return the sets and chains that keep the networks' packets to links of
    `ours`; without networks nothing.
    """
    named = {4: ("pods_ipv4", "ip", "ipv4_addr"), 6: ("pods_ipv6", "ip6", "ipv6_addr")}
    sets, out, into = [], [], []
    ordered = sorted(networks, key=str)
    for version, (name, family, kind) in named.items():
        elements = ", ".join(str(one) for one in ordered if one.version == version)
        if not elements:
            continue
        sets.append(f"""
    set {name} {{
        type {kind} ; flags interval ; auto-merge
        elements = {{ {elements} }}
    }}
""")
        out.append(f"        {family} daddr @{name} counter name pod_network_unencrypted drop\n")
        into.append(f"        {family} saddr @{name} counter name pod_network_forged drop\n")
    if not sets:
        return ""
    return f"""
    counter pod_network_unencrypted {{ comment "to a pod, by a link of neither kind" ; }}
    counter pod_network_forged {{ comment "from a pod, by a link of neither kind" ; }}
{"".join(sets)}
    chain pods_enter {{
        type filter hook prerouting priority raw + 1; policy accept;
        meta iifgroup != {{ {ours} }} meta iiftype != loopback jump from_outside
    }}

    chain from_outside {{
{"".join(into)}    }}

    chain pods_leave {{
        type filter hook postrouting priority srcnat - 1; policy accept;
        meta oifgroup != {{ {ours} }} meta oiftype != loopback jump to_outside
    }}

    chain to_outside {{
{"".join(out)}    }}
"""
