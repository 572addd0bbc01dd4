# SPDX-License-Identifier: Apache-2.0
"""What a workload may send: before conntrack, and in ARP. Pure.

Links are matched by their group, so there is no rule for any one workload. See
`base` for the whole.
"""

from __future__ import annotations

from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.rules.drops import Reason, drop
from metropolis.node.core.network.rules.syntax import (
    LOOPBACK_ENTERED,
    OVERLAY,
    WORKLOAD,
    by_removal,
    limited,
)

NEIGHBOURS_PER_SECOND: Final = 50
"""For ARP, and for neighbour discovery, of one workload. It resolves one
address, the first hop's, and its own is resolved."""

FRAGMENTS_PER_SECOND: Final = 2000
"""For one workload, and for the overlay. The kernel keeps incomplete packets
for sysctls.FRAGMENT_S, in memory that all links share."""

# Fragments are reassembled before any other check.
_FRAGMENTS_OF: Final = f"{{ {WORKLOAD}, {OVERLAY}, {allocs.LINK_GROUP_REMOVAL:#x} }}"
_HOP: Final = allocs.FIRST_HOP_IPV6
# The solicited-node multicast address of the first hop (RFC 4291, 2.7.1).
_SOLICITED: Final = f"ff02::1:ff{_HOP.packed[13]:02x}:{int.from_bytes(_HOP.packed[14:]):x}"


def from_workload() -> dict[str, list[str]]:
    return {
        "fragments": [
            f"meta iifgroup {_FRAGMENTS_OF} ip frag-off & 0x3fff != 0 goto fragment",
            f"meta iifgroup {_FRAGMENTS_OF} exthdr frag exists goto fragment",
        ],
        "fragment": [f"{limited('fragments', FRAGMENTS_PER_SECOND)} " + drop(Reason.FRAGMENT_RATE)],
        "prerouting_raw": [
            f"meta iifgroup vmap {{ {WORKLOAD} : goto from_workload, "
            f"{OVERLAY} : goto from_overlay, {by_removal('goto removed')} }}",
            "meta iiftype != loopback goto from_outside",
        ],
        "removed": [drop(Reason.REMOVED)],
        "from_workload": [
            "meta nfproto vmap { ipv4 : goto from_workload_ipv4, ipv6 : goto from_workload_ipv6 }"
        ],
        "from_workload_ipv4": [
            "ip saddr { 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3 } " + drop(Reason.IMPOSSIBLE_SOURCE),
            LOOPBACK_ENTERED,
            "fib saddr . iif oif missing " + drop(Reason.SPOOFED_IPV4),
        ],
        "from_workload_ipv6": [
            "ip6 saddr fe80::/10 goto from_link_local",
            "ip6 saddr :: " + drop(Reason.LINK_LOCAL),
            "fib saddr . iif oif missing " + drop(Reason.SPOOFED_IPV6),
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } goto neighbour_discovery",
        ],
        "from_link_local": [
            f"ip6 daddr {_HOP} icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, "
            "echo-request, echo-reply } goto from_own_link_local",
            f"ip6 daddr {_SOLICITED} icmpv6 type nd-neighbor-solicit goto from_own_link_local",
            "ip6 daddr ff02::1 icmpv6 type nd-neighbor-advert goto from_own_link_local",
            drop(Reason.LINK_LOCAL),
        ],
        "from_own_link_local": [
            "fib saddr . iif oif missing " + drop(Reason.SPOOFED_IPV6),
            "goto neighbour_discovery",
        ],
        "neighbour_discovery": [
            f"icmpv6 type nd-neighbor-solicit icmpv6 taddr != {_HOP} "
            + drop(Reason.NEIGHBOUR_TARGET),
            f"{limited('neighbours', NEIGHBOURS_PER_SECOND)} " + drop(Reason.NEIGHBOUR_RATE),
        ],
        "from_overlay": [
            LOOPBACK_ENTERED,
            f'fib saddr oifname != "{allocs.OVERLAY_LINK}" ' + drop(Reason.OVERLAY_SOURCE),
        ],
    }


def arp() -> dict[str, list[str]]:
    """The kernel itself checks the sender: it answers only a source that has a
    reverse path, by rp_filter=1 on each host link. nftables has no fib in this
    family.

    The bits are the operation and the target address. Written as `arp daddr ip`
    they would be compared for hardware type 1 only, and the kernel answers 6,
    too (arp_process in arp.c). Answers make no neighbour entries.
    """
    hop = int(allocs.FIRST_HOP_IPV4)
    return {
        "input": [
            f"meta iifgroup vmap {{ {WORKLOAD} : goto from_workload, "
            f"{by_removal('goto removed')} }}"
        ],
        "removed": [drop(Reason.ARP_REMOVED)],
        "from_workload": [
            f"@nh,48,16 1 @nh,192,32 != {hop:#x} " + drop(Reason.ARP_TARGET),
            f"{limited('neighbours', NEIGHBOURS_PER_SECOND)} " + drop(Reason.ARP_RATE),
        ],
    }
