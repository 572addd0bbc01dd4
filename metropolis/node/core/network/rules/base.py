# SPDX-License-Identifier: Apache-2.0
"""The node's rule set. Pure: text for osbase.nftables.

    a workload's link (group 8)   the overlay (group 9)   any other link
                |                        |                     |
      [raw: its own source, or one behind it?]  [raw: not from or to pods, ...]
                |                        |                     |
                 conntrack, then [flows: invalid, too many new ones]
                                         |
                                      routing
                     |                                     |
         [input: node access]          [forward: new flows, and metadata]
                                                           |
                                     [postrouting: masquerade, then last checks]

The cost of a packet does not grow with the number of workloads: links are
matched by their group, and a source is looked up in the routing table, which
has its host route anyway. Only the interval sets of networks grow with the
cluster.

A workload may send from these addresses:
- its own, whose host routes lead back to its link. For IPv4 the lookup is the
  longest match, then compared with the link; for IPv6 it is confined to the
  link: either way the node's, another workload's, and outside addresses fail.
- its link-local address, which has a host route, too: to the first hop only,
  and only neighbour discovery and echo. So no router advertisements, redirects
  or services on link-local addresses.
The lookup passes packets of hosts without an address: 0.0.0.0 to broadcast or
multicast, :: to link-local or multicast (nft_fib_ipv4.c, nft_fib_ipv6.c).
Workloads do not get their addresses that way: these packets are dropped
explicitly, as are sources that no packet can have (the kernel drops IPv6's ::1
and multicast before: ip6_rcv_core in ip6_input.c).

The link of a workload that is being removed passes no packet in or out,
whatever its flow: the workload's address may soon be another's.

From the overlay come only sources whose route leads to it: not a pod of this
node, since its host route is longer, and not the node itself. This lookup must
not be confined to the link, which has the route of the whole cluster.

From no link come packets to 127.0.0.0/8. The kernel ensures that, unless others
set route_localnet, as kube-proxy does: then a neighbour of the node, or a
workload, would reach services that listen on loopback only.

From any other link come no packets with a source of a pod, the first hop or the
node, and none to a pod (unless `routed_pods`). Sources are checked before
conntrack, or a forged packet would join an existing flow. Prefixes may be
withdrawn while pods run, and others be unknown yet: so from such a link
`forward` passes to a workload only answers, whatever their addresses; and
connections to the node that it translated (`ct status dnat`), as to a service's
port. A neighbour advertisement from the node's own address passes: it tells the
kernel that another host has the address (RFC 4862, 5.4.4). fe80::1 passes, too:
on other links it is an ordinary router's.

No packet leaves with a pod's address, whatever its state in conntrack: after
masquerading, a packet from a workload has an address of the node. If the node
refuses a network of the cluster, since it overlaps addresses in use, other
nodes still have pods in it. Packets of workloads to them would leave
masqueraded and in clear: so of that network only the addresses in use are
reached. The node's own packets leave: an operator may be at a pod's address.
While the uplink has a route and no address yet (IPv6: a second of duplicate
address detection), masquerading picks any address, and the flow would keep it.
Such packets are dropped before conntrack confirms the flow, so the next packet
is masqueraded again.

Masquerading is `fully-random`: many workloads' resolvers use the same source
port at once, and conntrack entries that collide are lost packets. Its ports are
never the node's own (allocs.MASQUERADE_PORTS), so a flow of the node that is
not tracked cannot be mistaken for a workload's.

Fragments are limited by link before all else. Fragments of incomplete packets
wait in memory that all links share; when it is full no packet is reassembled
any more, WireGuard's included.

TCP packets that conntrack calls invalid are dropped. They are not translated
back, so the node would answer them with a RST, and the peer would end the
workload's connection. Invalid ICMP errors pass: they concern flows that are not
tracked, and the kernel checks them.

ICMP errors of workloads and other nodes about flows with the outside are
dropped. An error about a masqueraded flow would be translated back: a sender
that guesses the flow's port would reach the workload that began it.

New flows are counted by link, not by address, in one element for each link: the
price is the same for the first flow and the millionth (`ct count` walks a
source's flows). Only packets that would make an entry count: `new` also matches
further packets of an unanswered flow, and one-way streams are allowed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.config import AccessMode
from metropolis.node.core.network.rules import metadata, workloads
from metropolis.node.core.network.rules.drops import ARP, INET, Reason, declared, drop
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.rules.syntax import (
    LOOPBACK_ENTERED,
    OURS,
    OVERLAY,
    WORKLOAD,
    by_removal,
    chains,
    elements,
    limited,
)

_TABLE: Final = f"inet {allocs.NFTABLES_TABLE}"
_ARP_TABLE: Final = f"arp {allocs.NFTABLES_TABLE}"
_HOP_NETWORK: Final = allocs.FIRST_HOP_NETWORK
_WIREGUARD: Final = allocs.WIREGUARD_PORT
_MASQUERADE: Final = "{}-{}".format(*allocs.MASQUERADE_PORTS)
_FAMILIES: Final = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))

# Sets by link: the elements of a link that is gone time out. There is room for
# far more links than a node may have; without room, nothing is limited. The
# kernel makes a hash table of 131,072 buckets for each, and by default walks it
# every second to free elements that timed out, which match nothing anyway: five
# such sets took 13 % of the CPU of an idle node without KVM.
_ENDING: Final = "size 65535; timeout 1m; gc-interval 1m;"
_BY_LINK: Final = f"typeof meta iif; flags dynamic,timeout; {_ENDING}"

_SETS: Final = {
    "new_flows": _BY_LINK,
    "neighbours": _BY_LINK,
    "fragments": _BY_LINK,
    # The guard of conntrack adds elements, each for a while. Elements that
    # others add time out, too: these are not compared with the wanted rules.
    "refused_links": f"typeof meta iif; flags timeout; {_ENDING}",
}
_NETWORKS: Final = {
    f"{name}_ipv{version}": f"type {kind}; flags interval;"
    for version, _, kind in _FAMILIES
    for name in ("pods", "withheld", "in_use")
}

_FILTER: Final = "type filter hook {}; policy accept;"
_CHAINS: Final = {
    # Before the kernel reassembles fragments, which it does for conntrack at
    # -400: all other chains see whole packets.
    "fragments": _FILTER.format("prerouting priority -450"),
    "fragment": "",
    "removed": "",
    "prerouting_raw": _FILTER.format("prerouting priority raw"),
    "from_workload": "",
    "from_workload_ipv4": "",
    "from_workload_ipv6": "",
    "from_link_local": "",
    "from_own_link_local": "",
    "neighbour_discovery": "",
    "from_overlay": "",
    "from_outside": "",
    "from_outside_ipv4": "",
    "from_outside_ipv6": "",
    "strict_ipv4": "",
    "strict_ipv6": "",
    "from_node_ipv6": "",
    "output_raw": _FILTER.format("output priority raw"),
    "node_sends": "",
    "flows": _FILTER.format("prerouting priority mangle"),
    "new_flow": "",
    "invalid": "",
    "input": _FILTER.format("input priority filter"),
    "errors_to_node": "",
    "to_node": "",
    "forward": _FILTER.format("forward priority filter"),
    "to_workload": "",
    "error_to_workload": "",
    "from_workload_out": "",
    "to_metadata": "",
    "postrouting": "type nat hook postrouting priority srcnat; policy accept;",
    "masquerade_workload": "",
    "leaving": _FILTER.format("postrouting priority srcnat + 1"),
    "to_outside": "",
    "pod_leaves": "",
}
_ARP_SETS: Final = {"neighbours": _BY_LINK}
_ARP_CHAINS: Final = {
    "input": _FILTER.format("input priority 0"),
    "removed": "",
    "from_workload": "",
}

# It names the layout, so that an update finds another layout loaded: the update
# would leave that one's chains and sets.
_LAYOUT: Final = (
    "layout_"
    + hashlib.sha256(
        repr((INET, ARP, _SETS, _NETWORKS, _CHAINS, _ARP_SETS, _ARP_CHAINS)).encode()
    ).hexdigest()[:12]
)


def render(settings: Settings) -> str:
    """Return the transaction that makes or replaces the tables, whatever is
    loaded. Counters begin at 0.
    """
    return f"""
table {_TABLE}
delete table {_TABLE}
table {_ARP_TABLE}
delete table {_ARP_TABLE}
{_tables(settings)}"""


def render_update(settings: Settings) -> str:
    """Return the transaction that replaces the rules, and keeps the counters
    and the sets by link. The kernel refuses it, by its first command, if the
    tables are missing or have another layout.
    """
    flushed = "\n".join(f"flush set {_TABLE} {name}" for name in _NETWORKS)
    return f"""
flush chain {_TABLE} {_LAYOUT}
flush table {_TABLE}
flush table {_ARP_TABLE}
{flushed}
{_tables(settings)}"""


def _tables(settings: Settings) -> str:
    rules = {
        **workloads.from_workload(),
        **_from_outside(settings),
        **_flows(settings),
        **_to_node(settings),
        **_forward(settings),
        **_leaving(settings),
    }
    networks = {
        "pods": settings.pods,
        "withheld": settings.withheld,
        "in_use": settings.in_use,
    }
    members = {
        f"{name}_ipv{version}": elements(found, version)
        for name, found in networks.items()
        for version, _, _ in _FAMILIES
    }
    return (
        f"table {_TABLE} {{\n"
        + declared(INET)
        + _sets(_SETS, {})
        + _sets(_NETWORKS, members)
        + f"    chain {_LAYOUT} {{ }}\n"
        + chains(_CHAINS, rules)
        + f"}}\ntable {_ARP_TABLE} {{\n"
        + declared(ARP)
        + _sets(_ARP_SETS, {})
        + chains(_ARP_CHAINS, workloads.arp())
        + "}\n"
    )


def _sets(sets: dict[str, str], members: dict[str, str]) -> str:
    text = ""
    for name, kind in sets.items():
        filled = members.get(name)
        lines = f" elements = {{ {filled} }};" if filled else ""
        text += f"    set {name} {{ {kind}{lines} }}\n"
    return text


# ---- Incoming, before conntrack ---------------------------------------------


def _from_outside(settings: Settings) -> dict[str, list[str]]:
    strict = dict(settings.strict)
    rules: dict[str, list[str]] = {}
    for version, family, _ in _FAMILIES:
        rules[f"from_outside_ipv{version}"] = lines = []
        if elements(settings.pods, version):
            if not settings.routed_pods:
                lines.append(
                    f"{family} daddr @pods_ipv{version} {drop(Reason.POD_NETWORK_ENTERED)}"
                )
            lines.append(f"{family} saddr @pods_ipv{version} {drop(Reason.POD_NETWORK_FORGED)}")
        if version == 4:
            lines.append(LOOPBACK_ENTERED)
            lines.append(f"ip saddr {_HOP_NETWORK} {drop(Reason.FIRST_HOP_FORGED)}")
            lines.append(f"ip daddr {_HOP_NETWORK} {drop(Reason.FIRST_HOP_FORGED)}")
        # The node's own multicast loops back on the link it is sent to: there
        # the second lookup finds the address.
        judged = "goto from_node_ipv6" if version == 6 else drop(Reason.NODE_FORGED)
        own = f"fib saddr type local fib saddr oif missing {judged}"
        if version in strict:
            name = strict[version]
            lines.append(f'iifname "{name}" goto strict_ipv{version}')
            rules[f"strict_ipv{version}"] = [
                # First, since one lookup is enough for most packets: a source
                # whose route is on the uplink. It is not confined to the link.
                f'fib saddr oifname "{name}" return',
                own,
                *_without_reverse_path(version, overlay=settings.overlay),
                drop(Reason.REVERSE_PATH),
            ]
        lines.append(own)
    rules["from_node_ipv6"] = [
        "icmpv6 type nd-neighbor-advert ip6 hoplimit 255 return",
        drop(Reason.NODE_FORGED),
    ]
    rules["from_outside"] = [
        "meta nfproto vmap { ipv4 : jump from_outside_ipv4, ipv6 : jump from_outside_ipv6 }"
    ]
    rules["output_raw"] = [f"meta oifgroup != {OURS} goto node_sends"]
    rules["node_sends"] = []
    if settings.overlay:
        # Untracked by WireGuard's port on this node: the kernel has one socket
        # for all peers. Routed pods may receive at that port, too.
        own = "fib daddr type local " if settings.routed_pods else ""
        rules["from_outside"].append(f"udp dport {_WIREGUARD} {own}notrack")
        rules["node_sends"].append(f"udp sport {_WIREGUARD} notrack")
    if settings.cgroup is not None:
        # Connections that the node began are at these ports: workloads' packets
        # need no lookup of a socket.
        level = len([part for part in settings.cgroup.split("/") if part])
        known = f'{_EPHEMERAL} socket cgroupv2 level {level} "{settings.cgroup.strip("/")}" notrack'
        rules["from_outside"].append(f"tcp dport {known}")
        rules["node_sends"].append(f"tcp sport {known}")
    return rules


_EPHEMERAL: Final = "{}-{}".format(*allocs.EPHEMERAL_PORTS)


def _without_reverse_path(version: int, *, overlay: bool) -> Iterator[str]:
    """Yield the rules for sources that need no route back."""
    if version == 4:
        yield "ip saddr { 0.0.0.0, 169.254.0.0/16 } return"
    else:
        yield "ip6 saddr { ::, fe80::/10 } return"
    if overlay:
        # WireGuard authenticates packets, and answers to their source.
        yield f"udp dport {_WIREGUARD} return"


# ---- After conntrack --------------------------------------------------------


def _flows(settings: Settings) -> dict[str, list[str]]:
    rules = {
        "flows": [
            "ct state vmap { established : accept, related : accept, untracked : accept, "
            "invalid : goto invalid }",
            f"meta iifgroup {WORKLOAD} goto new_flow",
        ],
        "new_flow": [
            "ct status confirmed accept",
            "meta iif @refused_links " + drop(Reason.CONNTRACK_OFFENDER),
            f"{limited('new_flows', settings.new_flows_per_second)} " + drop(Reason.NEW_FLOW_RATE),
        ],
        "invalid": [
            f"meta iifgroup {WORKLOAD} " + drop(Reason.INVALID),
            "meta iiftype loopback accept",
        ],
    }
    if settings.cgroup is not None:
        # A FIN for a connection that waits for nothing else: the kernel keeps a
        # small socket for it, without a cgroup, and the flow is not tracked.
        rules["invalid"].append(f"tcp dport {_EPHEMERAL} accept")
    rules["invalid"].append("meta l4proto tcp " + drop(Reason.INVALID_TCP))
    return rules


def _to_node(settings: Settings) -> dict[str, list[str]]:
    # The node believes an ICMP error (the path is narrow, the host is away) if
    # the packet quoted in it is of a known flow, from any sender. So errors of
    # workloads and other nodes pass only if the flow is with a pod.
    errors = "icmp type { destination-unreachable, source-quench, redirect, time-exceeded, "
    errors += "parameter-problem } "
    errors6 = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, "
    errors6 += "parameter-problem } "
    rules = {
        "input": [
            f"meta iifgroup {OURS} meta l4proto {{ icmp, icmpv6 }} jump errors_to_node",
        ],
        "errors_to_node": [
            f"{kind}ct state related ct {end} {family} saddr @pods_ipv{version} return"
            for version, family, kind in ((4, "ip", errors), (6, "ip6", errors6))
            for end in ("original", "reply")
        ]
        + [kind + drop(Reason.FORGED_ERROR) for kind in (errors, errors6)],
    }
    access = settings.node_access
    if access.mode is AccessMode.ALL:
        return rules
    rules["input"].append(f"meta iifgroup {OURS} goto to_node")
    rules["to_node"] = [
        # Answers to the node, such as those of a health check.
        "ct state established,related accept",
        "meta l4proto { icmp, icmpv6 } accept",
        *(
            f"{one.protocol} dport {one.first}-{one.last} accept"
            if one.first != one.last
            else f"{one.protocol} dport {one.first} accept"
            for one in access.ports
        ),
        drop(Reason.NODE_ACCESS),
    ]
    return rules


def _forward(settings: Settings) -> dict[str, list[str]]:
    to_workload = [
        f"meta iifgroup {OURS} ct state != related accept",
        f"meta iifgroup {OURS} goto error_to_workload",
    ]
    if settings.routed_pods:
        to_workload.append("accept")
    else:
        to_workload += [
            # Answers to masqueraded flows. Other flows are between pods: their
            # answers come by the links of pods and the overlay.
            "ct direction reply ct status snat accept",
            "ct status dnat accept",
            drop(Reason.UNSOLICITED),
        ]
    refused, excepted = [], []
    for version, family, _ in _FAMILIES:
        refused.append(
            f"{family} daddr {{ {elements(metadata.NOT_FORWARDED, version)} }} goto to_metadata"
        )
        if wanted := elements(settings.forwarded, version):
            excepted.append(f"{family} daddr {{ {wanted} }} accept")
        if resolvers := elements(map(ip_network, settings.resolvers), version):
            excepted.append(
                f"{family} daddr {{ {resolvers} }} meta l4proto {{ tcp, udp }} th dport 53 accept"
            )
    return {
        "forward": [
            f"meta oifgroup {WORKLOAD} goto to_workload",
            f"meta iifgroup {WORKLOAD} goto from_workload_out",
            f"meta iifgroup {OVERLAY} " + drop(Reason.OVERLAY_TRANSIT),
        ],
        "to_workload": to_workload,
        # A flow that was masqueraded, and not DNATed, is with the outside.
        "error_to_workload": [
            "ct status & (snat | dnat) == snat " + drop(Reason.FORGED_ERROR),
            "accept",
        ],
        "from_workload_out": [f"meta oifgroup {OVERLAY} accept", *refused],
        "to_metadata": [*excepted, drop(Reason.NOT_FORWARDED)],
    }


# ---- Outgoing ---------------------------------------------------------------


def _leaving(settings: Settings) -> dict[str, list[str]]:
    into, of, withheld = [], [], []
    for version, family, _ in _FAMILIES:
        if elements(settings.pods, version):
            match = f"@pods_ipv{version}"
            into.append(f"{family} daddr {match} {drop(Reason.POD_NETWORK_UNENCRYPTED)}")
            of.append(f"{family} saddr {match} {drop(Reason.POD_ADDRESS_LEFT)}")
        if elements(settings.withheld, version):
            withheld.append(
                f"{family} daddr @withheld_ipv{version} {family} daddr != @in_use_ipv{version} "
                + drop(Reason.POD_NETWORK_UNENCRYPTED)
            )
    return {
        "postrouting": [
            f"meta iifgroup {WORKLOAD} meta oifgroup != {OURS} goto masquerade_workload"
        ],
        "masquerade_workload": [
            f"meta l4proto {{ tcp, udp, sctp }} masquerade to :{_MASQUERADE} fully-random",
            "masquerade fully-random",
        ],
        "leaving": [
            f"meta oifgroup vmap {{ {WORKLOAD} : accept, {OVERLAY} : accept, "
            f"{by_removal('goto removed')} }}",
            "meta oiftype != loopback goto to_outside",
        ],
        # The node's own packets have no incoming link.
        "to_outside": [*into, f"meta iifgroup {OURS} goto pod_leaves", *of],
        "pod_leaves": [
            *withheld,
            f"ip saddr {allocs.FIRST_HOP_IPV4} " + drop(Reason.UPLINK_NOT_READY),
            "ip6 saddr fe80::/10 " + drop(Reason.UPLINK_NOT_READY),
            "fib saddr type local accept",
            *(["ct direction reply accept"] if settings.routed_pods else []),
            drop(Reason.POD_ADDRESS_LEFT),
        ],
    }
