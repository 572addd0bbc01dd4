# SPDX-License-Identifier: Apache-2.0
"""Parsers survive garbage; transport_test tries builders on the kernel."""

from hypothesis import given
from hypothesis import strategies as st

from osbase.netlink import attrs
from osbase.netlink.address import RTM_NEWADDR, parse_address
from osbase.netlink.errors import ProtocolError
from osbase.netlink.ifla import RTM_DELLINK, RTM_NEWLINK
from osbase.netlink.link import parse_link, parse_link_removed
from osbase.netlink.message import Message
from osbase.netlink.route import RTM_NEWROUTE, parse_route

KINDS = st.sampled_from(
    [
        RTM_NEWLINK,
        RTM_DELLINK,
        RTM_NEWADDR,
        RTM_NEWROUTE,
        3,
    ]
)
PARSERS = (
    parse_link,
    parse_address,
    parse_route,
    parse_link_removed,
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
