# SPDX-License-Identifier: Apache-2.0
"""Network policy: which new flows of workloads pass. Pure.

    forward, input    a new flow from or to a workload, while there are policies
        judge         source and destination become identities, of classes of
                      workloads; the world is 0
          from_world, to_world, pair     what is allowed, by sets
            deny      a reset, or "administratively prohibited"

It is a part of the table of host ports, see `host_ports`: static, and what
policies and attaches add are elements, so that a flow costs the same with ten
policies and with thousands. There is no hook on output: the node reaches its
workloads.

Packets of flows that exist need one look into conntrack, and no set. That is
also so for flows without an answer yet: a flow is judged by its first packet,
and those that a change of policies forbids are cut (policy.revoke). So an entry
that is marked here is not yet in conntrack's table, and no other packet has it.

Without policies `policed` is empty, and a new flow costs two looks into it.

An address is looked up once as source and once as destination. A packet has no
room for two results, and nft cannot combine a look-up with something else: the
packet's priority is the intermediate place, and conntrack's mark the last one:
source << 16 | destination. The packet's mark is never touched: its bits belong
to others (kube-proxy's go from prerouting to postrouting). The priority of a
first packet is lost, which the kernel derives from the TOS of IPv4.

A workload's address without identity is of a workload that policies do not know
yet. It is refused while there are policies.

A TCP packet that begins a flow and is no plain SYN belongs to a flow that was
cut: of either direction, so both ends count, whatever direction they are
isolated in. Otherwise the answers of a flow that was cut would be a new flow,
by other policies. If no policy is about its ends, it passes: then flows survive
a loss of conntrack's table.

What is denied by both ends is counted as egress.
"""

from __future__ import annotations

import enum
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.rules.syntax import WORKLOAD


class Denial(enum.Enum):
    """A counter's name, and a description of its packets."""

    EGRESS = ("policy_egress", "new flows that policies of the source do not allow")
    INGRESS = ("policy_ingress", "new flows that policies of the destination do not allow")
    NOT_SYN = ("policy_not_syn", "TCP of no flow, of workloads that policies are about")
    UNKNOWN = ("policy_unknown", "from or to a workload that policies do not know yet")
    UNTRACKED = ("policy_untracked", "of no flow, from or to a workload")

    @property
    def label(self) -> str:
        """Return the counter's name."""
        return self.value[0]

    @property
    def comment(self) -> str:
        """Return the description."""
        return self.value[1]


# Sizes as in host_ports: hash tables that do not grow. 1 to 2 MB each for the
# larger ones.
_PORTED: Final = "inet_proto . inet_service"
SETS: Final = {
    "map identities4": "type ipv4_addr : classid; size 65536;",
    "map identities6": "type ipv6_addr : classid; size 65536;",
    # Link groups: of workloads, while there are policies.
    "set policed": "type devgroup; size 4;",
    # Source << 16 if isolated in egress; destination if isolated in ingress.
    "set isolated": "type mark; size 65536;",
    # Destination if isolated in egress; source << 16 if isolated in ingress.
    "set isolated_back": "type mark; size 65536;",
    # By source << 16 | destination.
    "set pairs": "type mark; size 131072;",
    "set pair_protocols": "type mark . inet_proto; size 65536;",
    "set pair_ports": f"type mark . {_PORTED}; size 131072;",
    "set pair_ranges": f"type mark . {_PORTED}; flags interval; size 16384;",
    # By source << 16 and an address of the world that is the destination, or by
    # destination and the source. A protocol without ports has no port to look
    # up, so what is for all protocols is apart.
    "set world4": "type mark . ipv4_addr; flags interval; size 16384;",
    "set world6": "type mark . ipv6_addr; flags interval; size 16384;",
    "set world_ports4": f"type mark . ipv4_addr . {_PORTED}; flags interval; size 16384;",
    "set world_ports6": f"type mark . ipv6_addr . {_PORTED}; flags interval; size 16384;",
}
"""Declarations, by kind and name; policy.kernel has the elements."""

# Behind the node's own rules: what these drop is not answered.
_FILTER: Final = "type filter hook {} priority filter + 1; policy accept;"
CHAINS: Final = {
    "policy_forward": _FILTER.format("forward"),
    "policy_input": _FILTER.format("input"),
    "policy_to_node": "",
    "policy_judge": "",
    "policy_from_world": "",
    "policy_into_isolated": "",
    "policy_to_world": "",
    "policy_out_of_isolated": "",
    "policy_pair": "",
    "policy_not_syn": "",
    "policy_untracked": "",
    "policy_answer": "",
    **{f"deny_{one.label}": "" for one in Denial if one is not Denial.UNTRACKED},
}
"""Hooks by chain, "" for none."""

_SOURCE: Final = f"ct mark & {allocs.CONNTRACK_MARK_SOURCE:#010x}"
_DESTINATION: Final = f"ct mark & {allocs.CONNTRACK_MARK_DESTINATION:#010x}"
_PORT: Final = "meta l4proto . th dport"
_KNOWN_FLOWS: Final = "ct state established,related accept"


def _identity(end: str) -> list[str]:
    """Look up the identity of an end. A miss leaves the value."""
    return [
        "meta priority set 0",
        f"meta priority set ip {end} map @identities4",
        f"meta priority set ip6 {end} map @identities6",
    ]


def _world(end: str) -> list[str]:
    """Accept by the address of the world."""
    return [
        f"ct mark . ip {end} @world4 accept",
        f"ct mark . ip6 {end} @world6 accept",
        f"ct mark . ip {end} . {_PORT} @world_ports4 accept",
        f"ct mark . ip6 {end} . {_PORT} @world_ports6 accept",
    ]


def _deny(why: Denial) -> str:
    return f"goto deny_{why.label}"


RULES: Final = {
    "policy_forward": [
        _KNOWN_FLOWS,
        "meta iifgroup @policed goto policy_judge",
        "meta oifgroup @policed goto policy_judge",
    ],
    "policy_input": [_KNOWN_FLOWS, "meta iifgroup @policed goto policy_to_node"],
    "policy_to_node": [
        "icmpv6 type nd-neighbor-solicit accept",
        "icmpv6 type nd-neighbor-advert accept",
        # The node's other rules let echo pass from there, to the first hop.
        "ip6 saddr fe80::/10 accept",
        "goto policy_judge",
    ],
    "policy_judge": [
        "ct state != new goto policy_untracked",
        "ct status confirmed accept",
        # A workload reaches itself, by a port of the node or a service: behind
        # the link by which the packet came is no other.
        f"meta iifgroup {WORKLOAD} ct status dnat fib daddr . iif oif exists accept",
        *_identity("saddr"),
        "ct mark set meta priority << 16",
        *_identity("daddr"),
        "ct mark set ct mark | meta priority",
        "meta priority set 0",
        "tcp flags & (fin | syn | rst | ack) != syn jump policy_not_syn",
        f"{_SOURCE} == 0 goto policy_from_world",
        f"{_DESTINATION} == 0 goto policy_to_world",
        f"{_SOURCE} @isolated goto policy_pair",
        f"{_DESTINATION} @isolated goto policy_pair",
        "accept",
    ],
    "policy_pair": [
        "ct mark @pairs accept",
        "ct mark . meta l4proto @pair_protocols accept",
        f"ct mark . {_PORT} @pair_ports accept",
        f"ct mark . {_PORT} @pair_ranges accept",
        f"{_SOURCE} @isolated {_deny(Denial.EGRESS)}",
        _deny(Denial.INGRESS),
    ],
    "policy_from_world": [
        f"meta iifgroup {WORKLOAD} {_deny(Denial.UNKNOWN)}",
        f"meta oifgroup {WORKLOAD} ct mark 0 {_deny(Denial.UNKNOWN)}",
        "ct mark @isolated goto policy_into_isolated",
        "accept",
    ],
    "policy_into_isolated": [*_world("saddr"), _deny(Denial.INGRESS)],
    "policy_to_world": [
        f"meta oifgroup {WORKLOAD} {_deny(Denial.UNKNOWN)}",
        "ct mark @isolated goto policy_out_of_isolated",
        "accept",
    ],
    "policy_out_of_isolated": [*_world("daddr"), _deny(Denial.EGRESS)],
    "policy_not_syn": [
        f"{end} @{name} {_deny(Denial.NOT_SYN)}"
        for name in ("isolated", "isolated_back")
        for end in (_SOURCE, _DESTINATION)
    ],
    "policy_untracked": [f"counter name {Denial.UNTRACKED.label} drop"],
    **{
        f"deny_{one.label}": [f"counter name {one.label}", "goto policy_answer"]
        for one in Denial
        if one is not Denial.UNTRACKED
    },
    # The kernel itself answers no reset, no ICMP error and no multicast.
    "policy_answer": [
        "meta l4proto tcp reject with tcp reset",
        "reject with icmpx admin-prohibited",
    ],
}
"""Rules by chain."""


def counters() -> str:
    """Return the declarations of the counters, for the table."""
    return "".join(f'    counter {one.label} {{ comment "{one.comment}"; }}\n' for one in Denial)
