# SPDX-License-Identifier: Apache-2.0
"""A template and the builders give the same bytes."""

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.ip import AF_INET, AF_INET6
from osbase.netlink.address import add_address
from osbase.netlink.link import dump_links, set_link_alias, set_link_up
from osbase.netlink.message import Request, encode
from osbase.netlink.route import add_route
from osbase.netlink.template import FIRST_SEQUENCE, Sample, Template


def batch(index: int, ipv4: IPv4Address, ipv6: IPv6Address) -> list[Request]:
    return [
        set_link_up(index, "eth0"),
        add_address(index, "eth0", ipv4, 32),
        add_route(None, index, "eth0", family=AF_INET, protocol=4, gateway=ipv4, source=ipv4),
        add_address(index, "eth0", ipv6, 128, no_dad=True),
        add_route(ipv6, index, "eth0", family=AF_INET6, protocol=4, metric=37),
    ]


def values(index: int, ipv4: IPv4Address, ipv6: IPv6Address) -> tuple[bytes, ...]:
    return struct.pack("=I", index), ipv4.packed, ipv6.packed


def sample(seed: int) -> Sample:
    chosen = 0x51A7B3C0 + seed, IPv4Address(0xF1E2D3C4 + seed), IPv6Address(seed * 7 << 90 | 0xABCD)
    return Sample(batch(*chosen), values(*chosen))


TEMPLATE = Template(sample(1), sample(2))


@given(
    index=st.integers(1, 2**31 - 1),
    ipv4=st.integers(0, 2**32 - 1).map(IPv4Address),
    ipv6=st.integers(0, 2**128 - 1).map(IPv6Address),
)
def test_a_filled_template_is_the_encoded_batch(
    index: int, ipv4: IPv4Address, ipv6: IPv6Address
) -> None:
    filled = TEMPLATE.fill(*values(index, ipv4, ipv6))
    assert filled.data == encode(batch(index, ipv4, ipv6), FIRST_SEQUENCE)
    assert filled.last_sequence == FIRST_SEQUENCE + 4


def link_up(index: int, *more: Request) -> Sample:
    return Sample([set_link_up(index, "x"), *more], [struct.pack("=I", index)])


def test_one_gap_is_enough() -> None:
    template = Template(link_up(0x12345678), link_up(0x23456789))
    assert template.fill(struct.pack("=I", 7)).data == encode([set_link_up(7, "x")], FIRST_SEQUENCE)


def test_percent_signs_are_bytes_like_others() -> None:
    alias = [set_link_alias(1, "x", "100 %b %% %d", ipv6=False)]
    template = Template(link_up(0x12345678, *alias), link_up(0x23456789, *alias))
    assert template.fill(struct.pack("=I", 7)).data == encode(
        [set_link_up(7, "x"), *alias], FIRST_SEQUENCE
    )


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (link_up(0x12345678), link_up(7, dump_links()), "differ in more"),
        (Sample([dump_links()], [b"1234"]), link_up(7), "not in the batch"),
        (Sample(link_up(0x12345678).requests, [b"\x78\x56"]), link_up(7), "of 2 bytes"),
        (
            Sample(link_up(0x12345678).requests, [b"\x78\x56\x34\x12", b"\x56\x34\x12\x01"]),
            link_up(7),
            "overlap",
        ),
    ],
)
def test_samples_that_cannot_be_are_refused(one: Sample, other: Sample, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Template(one, other)
