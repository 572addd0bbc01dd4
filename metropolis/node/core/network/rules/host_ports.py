# SPDX-License-Identifier: Apache-2.0
"""The table of host ports, which lead to workloads. Pure.

It also has the part of `policy`, whose new flows are judged here after they are
translated.

    prerouting, output   a new flow to an address of the node, by TCP, UDP, SCTP
        host_ports       at4, any4 (at6, any6): DNAT to the workload's port
    postrouting          SNAT, only where answers would not come back

It is static. What attaches add are elements of its maps and sets, see
workloads.datapath.host_ports: so it is a table of its own, which an update of
the other rules does not replace. Packets of flows that exist are not looked up.

What is translated:
- only what is sent to the node: a port alone matches nothing, since packets to
  others with that port pass the node, too.
- not what is sent to the first hop, or to link-local addresses: these are of
  links, and of the node's services for workloads.
- of 127.0.0.0/8 only 127.0.0.1, unless another address is asked for: resolvers
  listen on the others. Not ::1, which the kernel never forwards.

The workload sees the client's address, except where an answer to that address
would stay with itself. Instead of the node's 127.0.0.1 it sees the first hop,
which is the node for it. If it connects to its own port by the node, it sees
the first hop, too; in IPv6 an address of the node, since an answer to a
link-local address would not have the source that the client knows. The node has
such an address: it was connected to.

Limit: a workload with two interfaces that connects by one to a port that leads
to the other. Its source stays, so it answers itself, inside, and the client
waits. To rewrite it, the sets must have pairs of two attachments, and change
with either, also with one that has no port.
"""

from __future__ import annotations

from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.rules import policy
from metropolis.node.core.network.rules.syntax import WORKLOAD, chains

_TABLE: Final = f"inet {allocs.NFTABLES_WORKLOADS}"
_PORT: Final = "meta l4proto . th dport"

# With a size the kernel has hash tables that do not grow, 256 kB each. One that
# grows is reordered at any time, and a list of its elements lacks some then.
_SIZE: Final = "size 16384;"
_OWN_SETS: Final = {
    "map any4": "type inet_proto . inet_service : ipv4_addr . inet_service;",
    "map any6": "type inet_proto . inet_service : ipv6_addr . inet_service;",
    "map at4": "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;",
    "map at6": "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;",
    "set self4": "type ipv4_addr . ipv4_addr;",
    "set self6": "type ipv6_addr . ipv6_addr;",
}
_SETS: Final = {name: f"{kind} {_SIZE}" for name, kind in _OWN_SETS.items()} | policy.SETS

_NAT: Final = "type nat hook {}; policy accept;"
_CHAINS: Final = {
    "prerouting": _NAT.format("prerouting priority dstnat"),
    "output": _NAT.format("output priority dstnat"),
    "postrouting": _NAT.format("postrouting priority srcnat"),
    "host_ports": "",
    "host_ports_ipv4": "",
    "host_ports_ipv6": "",
    "to_workload": "",
    **policy.CHAINS,
}
_TO_NODE: Final = "meta l4proto { tcp, udp, sctp } fib daddr type local jump host_ports"
_RULES: Final = {
    "prerouting": [_TO_NODE],
    "output": [_TO_NODE],
    "postrouting": [f"meta oifgroup {WORKLOAD} ct status dnat jump to_workload"],
    "host_ports": [
        "meta nfproto vmap { ipv4 : goto host_ports_ipv4, ipv6 : goto host_ports_ipv6 }"
    ],
    "host_ports_ipv4": [
        f"ip daddr {allocs.FIRST_HOP_NETWORK} return",
        f"dnat ip to ip daddr . {_PORT} map @at4",
        "ip daddr 127.0.0.0/8 ip daddr != 127.0.0.1 return",
        f"dnat ip to {_PORT} map @any4",
    ],
    "host_ports_ipv6": [
        "ip6 daddr { ::1, fe80::/10 } return",
        f"dnat ip6 to ip6 daddr . {_PORT} map @at6",
        f"dnat ip6 to {_PORT} map @any6",
    ],
    "to_workload": [
        f"ip saddr 127.0.0.0/8 snat ip to {allocs.FIRST_HOP_IPV4}",
        f"meta iifgroup {WORKLOAD} ip saddr . ip daddr @self4 snat ip to {allocs.FIRST_HOP_IPV4}",
        f"meta iifgroup {WORKLOAD} ip6 saddr . ip6 daddr @self6 masquerade",
    ],
    **policy.RULES,
}


def render() -> str:
    """Return the transaction that makes the table, or puts back its rules: the
    elements stay. The kernel refuses it if the table has sets of other types.
    """
    sets = "".join(f"    {name} {{ {kind} }}\n" for name, kind in _SETS.items())
    declared = f"table {_TABLE} {{\n{policy.counters()}{sets}{chains(_CHAINS, {})}}}\n"
    flushed = "".join(f"flush chain {_TABLE} {name}\n" for name in _CHAINS)
    return f"{declared}{flushed}table {_TABLE} {{\n{chains(_CHAINS, _RULES)}}}\n"


def render_whole() -> str:
    """Return the transaction that makes the table again, without elements."""
    return f"destroy table {_TABLE}\n{render()}"
