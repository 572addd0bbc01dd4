# SPDX-License-Identifier: Apache-2.0
"""Routes, parsed; transport_test asks the kernel."""

import struct
from ipaddress import ip_address, ip_network

import pytest

from osbase.ip import AF_INET
from osbase.netlink import attrs
from osbase.netlink.errors import ProtocolError
from osbase.netlink.message import Message
from osbase.netlink.route import RTM_NEWROUTE, Route, parse_route


def route(bits: int, *attributes: bytes) -> Message:
    header = struct.pack("=BBBBBBBBI", AF_INET, bits, 0, 0, 254, 77, 253, 1, 0)
    return Message(RTM_NEWROUTE, 0, 1, 0, header + b"".join(attributes))


def test_routes() -> None:
    hop = ip_address("10.0.0.7")
    default = route(0, attrs.u32(4, 9), attrs.attr(5, hop.packed), attrs.attr(7, hop.packed))
    found = parse_route(default)
    assert found == Route(ip_network("0.0.0.0/0"), 9, 77, gateway=hop, source=hop)
    host = route(32, attrs.attr(1, hop.packed))
    assert parse_route(host) == Route(ip_network("10.0.0.7/32"), None, 77)
    for bits, destination in ((24, hop.packed), (33, hop.packed), (32, bytes(16))):
        with pytest.raises(ProtocolError):
            parse_route(route(bits, attrs.attr(1, destination)))
