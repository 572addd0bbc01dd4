# SPDX-License-Identifier: Apache-2.0
"""The kernel's events, sorted by what they may concern.

    kind       events
    RULES      a commit to nftables, not by this process
    ROUTE      a route of ours, or that came with an address, is deleted;
               any route is replaced
    ADDRESS    an address is deleted
    SETTING    forwarding, rp_filter and the like, of one link or of all
    POLICY     a routing policy rule is deleted
    LINK       a link is set down

An attach causes no such event: the filter in the kernel passes neither new
links, routes and addresses, nor the settings of a new link, which come all in
one message where a single written setting comes alone. A removal does pass: the
reconciler asks whether the link still exists.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Callable
from typing import Final

from metropolis.node import allocs
from osbase.netlink import attrs, bpf, fibrules
from osbase.netlink.address import RTM_DELADDR, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR
from osbase.netlink.events import Events
from osbase.netlink.ifla import IFF_UP, RTM_NEWLINK, RTNLGRP_LINK
from osbase.netlink.message import Message
from osbase.netlink.route import (
    RTM_DELROUTE,
    RTM_NEWROUTE,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    RTPROT_KERNEL,
)
from osbase.nftables.digest import generation_events

PAUSE_S: Final = 0.05
"""How long the kernel's events of a burst gather, seconds."""


class Kind(enum.Enum):
    """See above."""

    RULES = enum.auto()
    ROUTE = enum.auto()
    ADDRESS = enum.auto()
    SETTING = enum.auto()
    POLICY = enum.auto()
    LINK = enum.auto()


type OnEvent = Callable[[Kind, int], None]
"""Kind, and the index of the link that it is about; 0: no link, or all."""

_RTM_NEWNETCONF: Final = 80
_GROUPS: Final = (
    RTNLGRP_LINK,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
    fibrules.RTNLGRP_IPV4_RULE,
    fibrules.RTNLGRP_IPV6_RULE,
    24,  # RTNLGRP_IPV4_NETCONF
    25,  # RTNLGRP_IPV6_NETCONF
)
_KINDS: Final = {
    RTM_NEWLINK: Kind.LINK,
    RTM_DELADDR: Kind.ADDRESS,
    RTM_NEWROUTE: Kind.ROUTE,
    RTM_DELROUTE: Kind.ROUTE,
    fibrules.RTM_DELRULE: Kind.POLICY,
    _RTM_NEWNETCONF: Kind.SETTING,
}

# Offsets in a message; 16 bytes are its header.
_LENGTH: Final = 0
_FLAGS: Final = 6
_ROUTE_PROTOCOL: Final = 16 + 5
_LINK_FLAGS: Final = 16 + 8
_LINK_CHANGE: Final = 16 + 12
_ALL_CHANGED: Final = 1 << 31  # as for a new link
_REPLACE: Final = 0x100  # NLM_F_REPLACE
_KERNEL: Final = RTPROT_KERNEL
_OURS: Final = sorted(
    (
        allocs.ROUTE_PROTOCOL_UPLINK,
        allocs.ROUTE_PROTOCOL_WORKLOAD,
        allocs.ROUTE_PROTOCOL_OVERLAY,
    )
)
# Header, struct netconfmsg, index and one value; a new link's message has all.
_ONE_SETTING: Final = 16 + 4 + 8 + 8

MATCHES: Final = (
    bpf.Match(
        RTM_NEWLINK,
        (
            bpf.bit_set(_LINK_CHANGE, 4, IFF_UP),
            bpf.bit_clear(_LINK_CHANGE, 4, _ALL_CHANGED),
            bpf.bit_clear(_LINK_FLAGS, 4, IFF_UP),
        ),
    ),
    bpf.Match(RTM_DELADDR),
    bpf.Match(RTM_NEWROUTE, (bpf.bit_set(_FLAGS, 2, _REPLACE),)),
    bpf.Match(RTM_DELROUTE, (bpf.Byte(_ROUTE_PROTOCOL, low=_OURS[0], high=_OURS[-1]),)),
    bpf.Match(RTM_DELROUTE, (bpf.Byte(_ROUTE_PROTOCOL, low=_KERNEL, high=_KERNEL),)),
    bpf.Match(fibrules.RTM_DELRULE),
    bpf.Match(_RTM_NEWNETCONF, (bpf.Byte(bpf.low_byte(_LENGTH, 4), high=_ONE_SETTING),)),
)

_INDEX = struct.Struct("=4xi")  # in ifinfomsg and ifaddrmsg
_RTMSG_SIZE: Final = 12
_RTA_OIF: Final = 4


def route_events(on_event: OnEvent, on_overrun: Callable[[], None]) -> Events:
    """Subscribe to all kinds but RULES. Raises OSError."""

    def on_message(message: Message) -> None:
        kind = _KINDS[message.kind]
        on_event(kind, link_of(kind, message.body))

    return Events(
        on_message,
        on_overrun,
        groups=_GROUPS,
        matches=MATCHES,
        name="reconcile-events",
        pause_s=PAUSE_S,
    )


def rules_events(on_event: OnEvent, on_overrun: Callable[[], None]) -> Events:
    """Subscribe to RULES. Raises OSError."""

    def on_commit(_name: str, task: int) -> None:
        # The kernel tells the thread. A host port is a commit, too.
        if not os.path.exists(f"/proc/self/task/{task}"):
            on_event(Kind.RULES, 0)

    return generation_events(on_commit, on_overrun, pause_s=PAUSE_S)


def link_of(kind: Kind, body: bytes) -> int:
    """Return the index of the link that the message is about, or 0. Pure."""
    if kind in (Kind.LINK, Kind.ADDRESS) and len(body) >= _INDEX.size:
        return int(_INDEX.unpack_from(body)[0])
    if kind is Kind.ROUTE:
        index = attrs.parse(body[_RTMSG_SIZE:]).get(_RTA_OIF)
        return 0 if index is None else attrs.to_u32(index)
    return 0
