# SPDX-License-Identifier: Apache-2.0
"""Parsers survive garbage; transport_test tries builders on the kernel."""

import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.netlink import attrs, rtnl
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message

KINDS = st.sampled_from(
    [
        rtnl.RTM_NEWLINK,
        rtnl.RTM_DELLINK,
        rtnl.RTM_NEWADDR,
        rtnl.RTM_NEWROUTE,
        3,
    ]
)
PARSERS = (
    rtnl.parse_link,
    rtnl.parse_address,
    rtnl.parse_route,
    rtnl.parse_link_removed,
)


@given(KINDS, st.binary(max_size=120))
def test_garbage_is_parsed_or_refused(kind: int, body: bytes) -> None:
    found = Message(kind, 0, 1, 0, body)
    for parse in PARSERS:
        try:
            parse(found)
        except ProtocolError:
            continue


@given(KINDS, st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=20))))
def test_attributes_of_any_content_are_parsed_or_refused(
    kind: int, pairs: list[tuple[int, bytes]]
) -> None:
    encoded = b"".join(attrs.attr(k, payload) for k, payload in pairs)
    for header in (bytes(4), bytes(16), bytes([2, 32]) + bytes(10), bytes([10, 128]) + bytes(10)):
        found = Message(kind, 0, 1, 0, header + encoded)
        for parse in PARSERS:
            try:
                parse(found)
            except ProtocolError:
                continue


def link_message(family: int, kind: int = rtnl.RTM_DELLINK) -> Message:
    header = struct.pack("=BxHiII", family, 1, 7, 0, 0)
    return Message(kind, 0, 1, 0, header + attrs.text(rtnl.IFLA_IFNAME, b"wl0"))


def test_a_port_that_leaves_a_bridge_is_not_a_removed_link() -> None:
    bridge = 7  # AF_BRIDGE
    assert rtnl.parse_link_removed(link_message(bridge)) is None
    assert rtnl.parse_link_removed(link_message(0, rtnl.RTM_NEWLINK)) is None
    assert rtnl.parse_link_removed(link_message(0)) == rtnl.LinkRemoved(7, "wl0")


def route(bits: int, *attributes: bytes) -> Message:
    header = struct.pack("=BBBBBBBBI", rtnl.AF_INET, bits, 0, 0, 254, 77, 253, 1, 0)
    return Message(rtnl.RTM_NEWROUTE, 0, 1, 0, header + b"".join(attributes))


def test_routes() -> None:
    hop = ip_address("10.0.0.7")
    default = route(0, attrs.u32(4, 9), attrs.attr(5, hop.packed), attrs.attr(7, hop.packed))
    found = rtnl.parse_route(default)
    assert found == rtnl.Route(ip_network("0.0.0.0/0"), 9, 77, gateway=hop, source=hop)
    host = route(32, attrs.attr(1, hop.packed))
    assert rtnl.parse_route(host) == rtnl.Route(ip_network("10.0.0.7/32"), None, 77)
    for bits, destination in ((24, hop.packed), (33, hop.packed), (32, bytes(16))):
        with pytest.raises(ProtocolError):
            rtnl.parse_route(route(bits, attrs.attr(1, destination)))


def test_what_is_not_a_link_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not a link"):
        rtnl.parse_link(Message(rtnl.RTM_NEWROUTE, 0, 1, 0, bytes(20)))
