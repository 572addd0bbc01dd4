# SPDX-License-Identifier: Apache-2.0
"""The reasons why the rule set drops packets: each has a named counter.

A rule drops only by `drop(REASON)`. The names are an interface: dashboards and
tests read them with `nft list counters`.
"""

from __future__ import annotations

import enum
from typing import Final


class Reason(enum.Enum):
    """A counter's name, and a description of its packets."""

    # From a workload.
    SPOOFED_IPV4 = ("spoofed_ipv4", "source is not the workload's")
    SPOOFED_IPV6 = ("spoofed_ipv6", "source is not the workload's")
    IMPOSSIBLE_SOURCE = ("impossible_source", "loopback, multicast or unspecified")
    LINK_LOCAL = ("link_local", "link-local chatter, to no one; nothing unusual")
    NEIGHBOUR_TARGET = (
        "neighbour_target",
        "a workload asked who has an address not the first hop's",
    )
    NEIGHBOUR_RATE = ("neighbour_rate", "more neighbour discovery than a workload needs")
    INVALID = ("invalid", "a workload's, of no flow and beginning none")
    NEW_FLOW_RATE = ("new_flow_rate", "a workload began more flows a second than it may")
    FRAGMENT_RATE = ("fragment_rate", "more fragments a second than one link may bring")
    CONNTRACK_OFFENDER = ("conntrack_offender", "new flows of a workload that fills conntrack")
    NODE_ACCESS = ("node_access", "to the node, by the configuration not for workloads")
    FORGED_ERROR = ("forged_error", "an ICMP error of a pod or node, about a flow with the world")
    NOT_FORWARDED = ("not_forwarded", "to a link-local or metadata address beyond the node")
    # From and to a workload's link that is being removed.
    REMOVED = ("removed", "by or to the link of a workload that is being removed")
    # From any link.
    LOOPBACK_ENTERED = ("loopback_entered", "to 127.0.0.0/8, by a link")
    # From the overlay.
    OVERLAY_SOURCE = ("overlay_source", "by the overlay, from an address that is not behind it")
    OVERLAY_TRANSIT = ("overlay_transit", "by the overlay, to no workload of this node")
    # From other links.
    POD_NETWORK_FORGED = ("pod_network_forged", "from a pod, by a link of neither kind")
    POD_NETWORK_ENTERED = ("pod_network_entered", "to a pod network, by a link of neither kind")
    UNSOLICITED = ("unsolicited", "to a workload that did not ask, by a link of neither kind")
    FIRST_HOP_FORGED = ("first_hop_forged", "from or to the first hop, not by a workload's link")
    NODE_FORGED = ("node_forged", "from the node's own address, by a link")
    REVERSE_PATH = ("reverse_path", "by the uplink, from an address that is not behind it")
    INVALID_TCP = ("invalid_tcp", "TCP of no flow and beginning none, not a workload's")
    # To other links.
    UPLINK_NOT_READY = ("uplink_not_ready", "no address yet to masquerade with")
    POD_NETWORK_UNENCRYPTED = ("pod_network_unencrypted", "to a pod, by a link of neither kind")
    POD_ADDRESS_LEFT = ("pod_address_left", "a pod's address as source, by a link of neither kind")
    # In the table of ARP.
    ARP_TARGET = ("arp_target", "a workload asked who has an address not the first hop's")
    ARP_RATE = ("arp_rate", "more ARP than a workload needs")
    ARP_REMOVED = ("arp_removed", "ARP by the link of a workload that is being removed")

    @property
    def label(self) -> str:
        """Return the counter's name."""
        return self.value[0]

    @property
    def comment(self) -> str:
        """Return the description."""
        return self.value[1]


ARP: Final = (Reason.ARP_TARGET, Reason.ARP_RATE, Reason.ARP_REMOVED)
INET: Final = tuple(reason for reason in Reason if reason not in ARP)


def drop(reason: Reason) -> str:
    """Return the end of a rule that drops."""
    return f"counter name {reason.label} drop"


def declared(reasons: tuple[Reason, ...]) -> str:
    """Return the declarations of the counters, for a table."""
    return "".join(f'    counter {one.label} {{ comment "{one.comment}"; }}\n' for one in reasons)
