# SPDX-License-Identifier: Apache-2.0
"""Parsing removals of links; transport_test asks the kernel."""

import struct

import pytest

from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.ifla import IFLA_IFNAME, RTM_DELLINK, RTM_NEWLINK
from osbase.netlink.link import LinkRemoved, parse_link, parse_link_removed
from osbase.netlink.message import Message
from osbase.netlink.route import RTM_NEWROUTE


def link_message(family: int, kind: int = RTM_DELLINK) -> Message:
    header = struct.pack("=BxHiII", family, 1, 7, 0, 0)
    return Message(kind, 0, 1, 0, header + attrs.text(IFLA_IFNAME, b"wl0"))


def test_a_port_that_leaves_a_bridge_is_not_a_removed_link() -> None:
    bridge = 7  # AF_BRIDGE
    assert parse_link_removed(link_message(bridge)) is None
    assert parse_link_removed(link_message(0, RTM_NEWLINK)) is None
    assert parse_link_removed(link_message(0)) == LinkRemoved(7, "wl0")


def test_what_is_not_a_link_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not a link"):
        parse_link(Message(RTM_NEWROUTE, 0, 1, 0, bytes(20)))
