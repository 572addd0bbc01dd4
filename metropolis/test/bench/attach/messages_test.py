# SPDX-License-Identifier: Apache-2.0
"""The floor's messages, read by the parsers of osbase.netlink."""

from ipaddress import ip_address

import pytest

from metropolis.test.bench.attach import messages
from osbase.netlink.address import parse_address
from osbase.netlink.link import parse_link
from osbase.netlink.message import NLM_F_ACK, Message, decode
from osbase.netlink.route import parse_route
from osbase.netlink.veth import VethEnd, new_veth


def read(data: bytes) -> list[Message]:
    return list(decode(data))


def test_only_the_last_message_asks_for_an_answer() -> None:
    for data in (messages.host_batch(7, 3, (4, 6)), messages.inner_batch(7, (4, 6))):
        found = read(data)
        assert [bool(one.flags & NLM_F_ACK) for one in found] == [False] * (len(found) - 1) + [True]
        assert [one.sequence for one in found] == list(range(1, len(found) + 1))
        assert messages.last_sequence(data) == len(found)
        assert messages.requests_in(data) == len(found)


def test_the_host_has_a_route_to_each_address() -> None:
    veth, alias, *routes = read(messages.host_batch(7, 3, (4, 6)))
    link = parse_link(veth)
    assert (link.ifindex, link.kind, link.group) == (messages.host_index(7), b"veth", 8)
    assert parse_link(alias).up
    found = [parse_route(route) for route in routes]
    assert [str(one.destination) for one in found if one] == ["10.192.0.7/32", "fd00:10:192::7/128"]


def test_the_namespace_has_default_routes() -> None:
    loopback, link, *rest = read(messages.inner_batch(7, (4,)))
    assert parse_link(loopback).ifindex == 1
    assert parse_link(link).ifindex == 2
    address = parse_address(rest[0])
    assert address is not None
    assert address.address == ip_address("10.192.0.7")
    default = parse_route(rest[2])
    assert default is not None
    assert default.gateway == ip_address("169.254.77.1")
    assert len(rest) == 3


def test_another_file_of_the_namespace() -> None:
    data = messages.host_batch(7, 3, (4, 6))
    assert messages.netns_fd(data) == 3
    moved = messages.with_netns(data, 3, 99)
    assert messages.netns_fd(moved) == 99
    assert messages.with_netns(moved, 99, 3) == data
    with pytest.raises(ValueError, match="0 times"):
        messages.with_netns(data, 98, 99)
    with pytest.raises(ValueError, match="no file"):
        messages.netns_fd(messages.inner_batch(7, (4,)))


def test_which_datagram_makes_the_link() -> None:
    assert messages.new_link_index(messages.host_batch(7, 3, (4,))) == messages.host_index(7)
    assert messages.new_link_index(messages.inner_batch(7, (4,))) is None


def test_our_own_datapath_s_messages_are_understood() -> None:
    host, peer = VethEnd("a", 5, None), VethEnd("b", 2, None)
    kind, flags, body, *_ = new_veth(host, peer, netns_fd=9, mtu=1400, group=8)
    data = messages.encode([(kind, flags, body)])
    assert (messages.new_link_index(data), messages.netns_fd(data)) == (5, 9)
