# SPDX-License-Identifier: Apache-2.0
"""Odd leases that providers and their devices give. Pure.

Other clients (systemd-networkd, dhcpcd, dhclient, udhcpc) take each of these,
so networks are built with them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.net.dhcp4 import lease as leases
from osbase.net.dhcp4 import packet
from osbase.net.dhcp4.lease import Lease
from osbase.net.dhcp4.packet import Message, Option, PacketError, Type

MAC = b"\x02\x00\x00\x00\x00\x07"
SERVER = IPv4Address("192.0.2.1")
OTHER = IPv4Address("192.0.2.2")
ADDRESS = IPv4Address("192.0.2.50")
EVERYWHERE = IPv4Network("0.0.0.0/0")
TEN = IPv4Network("10.0.0.0/8")
OPTIONS: dict[int, bytes] = {
    Option.SERVER_ID: SERVER.packed,
    Option.SUBNET_MASK: b"\xff\xff\xff\x00",
    Option.ROUTER: SERVER.packed,
    Option.LEASE_TIME: (1000).to_bytes(4),
}


def given_by(
    options: Mapping[Option, bytes],
    *,
    without: Option | None = None,
    address: IPv4Address = ADDRESS,
) -> Lease:
    """Return the lease of an offer with the options of a good one and these."""
    every: dict[int, bytes] = dict(OPTIONS)
    every.update(options.items())
    if without is not None:
        del every[without]
    offer = Message(False, Type.OFFER, 1, MAC, yours=address, options=every)
    return leases.parse(offer, 0)


def classless(*routes: tuple[str, str]) -> bytes:
    """Encode option 121."""
    raw = b""
    for text, gateway in routes:
        network = IPv4Network(text)
        octets = (network.prefixlen + 7) // 8
        raw += bytes([network.prefixlen]) + network.network_address.packed[:octets]
        raw += IPv4Address(gateway).packed
    return raw


@pytest.mark.parametrize("mask", [None, b"", b"\0\0\0\0", b"\xff\xff\xff", b"\xff" * 5])
@pytest.mark.parametrize(
    ("address", "length"),
    [
        ("10.1.2.3", 8),
        ("127.255.255.254", None),
        ("128.0.0.1", 16),
        ("172.16.4.5", 16),
        ("191.255.0.9", 16),
        ("192.0.2.50", 24),
        ("223.1.2.3", 24),
        # By the guess it is the network's own address; it is still a host's.
        ("192.0.2.255", 32),
        ("192.0.2.0", 32),
    ],
)
def test_without_a_mask_the_class_counts(
    mask: bytes | None, address: str, length: int | None
) -> None:
    options = {} if mask is None else {Option.SUBNET_MASK: mask}
    without = Option.SUBNET_MASK if mask is None else None
    if length is None:
        with pytest.raises(PacketError):
            given_by(options, without=without, address=IPv4Address(address))
        return
    lease = given_by(options, without=without, address=IPv4Address(address))
    assert lease.address == IPv4Interface(f"{address}/{length}")
    # The router is reached in any case.
    assert lease.routes[-1] == (EVERYWHERE, SERVER)


@pytest.mark.parametrize(
    ("mask", "length"),
    [("255.0.255.0", 24), ("255.255.255.253", 32), ("0.0.255.0", 24), ("254.255.0.0", 16)],
)
def test_a_mask_with_holes_ends_at_its_last_bit(mask: str, length: int) -> None:
    lease = given_by({Option.SUBNET_MASK: IPv4Address(mask).packed})
    assert lease.address.network.prefixlen == length


def test_a_mask_that_leaves_no_network_is_none() -> None:
    """The kernel has no route to 0.0.0.0/4."""
    options = {Option.SUBNET_MASK: IPv4Address("240.0.0.0").packed}
    lease = given_by(options, address=IPv4Address("10.1.2.3"))
    assert lease.address == IPv4Interface("10.1.2.3/8")


@given(st.integers(0, 32))
def test_every_proper_mask_is_taken_as_it_is(length: int) -> None:
    mask = IPv4Network((0, length)).netmask.packed
    lease = given_by({Option.SUBNET_MASK: mask})
    assert lease.address.network.prefixlen == (length or 24)


@pytest.mark.parametrize(
    ("raw", "length_s"),
    [
        (None, 3600),
        (b"\0", 3600),
        ((0).to_bytes(4), 4),
        ((1).to_bytes(4), 4),
        ((60).to_bytes(4), 60),
        (b"\xff" * 4, None),
    ],
)
def test_lease_times(raw: bytes | None, length_s: int | None) -> None:
    """The time is missing, invalid, zero, tiny, short or infinite."""
    options = {} if raw is None else {Option.LEASE_TIME: raw}
    lease = given_by(options, without=Option.LEASE_TIME if raw is None else None)
    assert lease.length_s == length_s
    if length_s is None:
        assert lease.renew_s == lease.rebind_s == float("inf")
    else:
        assert 1 <= lease.renew_s < lease.rebind_s < length_s


@pytest.mark.parametrize(
    ("renew", "rebind", "times"),
    [
        (None, None, (500, 875)),
        (100, 900, (100, 900)),
        (100, None, (100, 875)),
        (None, 900, (500, 900)),
        (None, 400, (500, 875)),  # renewed before rebound, by halves
        (300, 400, (300, 400)),
        (0, 0, (500, 875)),
        (1000, 1000, (500, 875)),
        (900, 100, (500, 875)),
        (1, 2, (1, 2)),
        (0xFFFFFFFF, 0xFFFFFFFF, (500, 875)),
    ],
)
def test_times_of_renewal(
    renew: int | None, rebind: int | None, times: tuple[float, float]
) -> None:
    """Each is as the server says, if they are in order."""
    options: dict[Option, bytes] = {}
    if renew is not None:
        options[Option.RENEWAL_TIME] = renew.to_bytes(4)
    if rebind is not None:
        options[Option.REBINDING_TIME] = rebind.to_bytes(4)
    lease = given_by(options)
    assert (lease.renew_s, lease.rebind_s) == times


@pytest.mark.parametrize(
    ("routers", "routes"),
    [
        ((), ()),
        ((SERVER,), ((EVERYWHERE, SERVER),)),
        # One default route, through the first usable router.
        ((OTHER, SERVER), ((EVERYWHERE, OTHER),)),
        ((ADDRESS, SERVER), ((EVERYWHERE, SERVER),)),
        ((IPv4Address(0), SERVER), ((EVERYWHERE, SERVER),)),
        ((IPv4Address("255.255.255.255"), OTHER), ((EVERYWHERE, OTHER),)),
        ((IPv4Address("192.0.2.255"), OTHER), ((EVERYWHERE, OTHER),)),
    ],
)
def test_routers(
    routers: tuple[IPv4Address, ...], routes: tuple[tuple[IPv4Network, IPv4Address], ...]
) -> None:
    assert given_by({Option.ROUTER: b"".join(one.packed for one in routers)}).routes == routes


@pytest.mark.parametrize("gateway", ["169.254.1.1", "198.51.100.1", "10.0.0.1"])
@pytest.mark.parametrize("mask", ["255.255.255.0", "255.255.255.255", "255.255.255.254"])
def test_a_router_elsewhere_is_on_the_link(gateway: str, mask: str) -> None:
    """As in clouds: it is link-local or outside the network, in either
    option.
    """
    router = IPv4Address(gateway)
    expected = ((IPv4Network(router), None), (EVERYWHERE, router))
    options = {Option.SUBNET_MASK: IPv4Address(mask).packed}
    assert given_by(options | {Option.ROUTER: router.packed}).routes == expected
    routes = {Option.CLASSLESS_ROUTES: classless(("0.0.0.0/0", gateway))}
    assert given_by(options | routes).routes == expected


def test_classless_routes_that_include_the_gateway() -> None:
    """On the link, or senselessly through itself: then it is on the link."""
    expected = ((IPv4Network("10.0.0.1/32"), None), (EVERYWHERE, IPv4Address("10.0.0.1")))
    for first in ("0.0.0.0", "10.0.0.1"):
        raw = classless(("10.0.0.1/32", first), ("0.0.0.0/0", "10.0.0.1"))
        assert given_by({Option.CLASSLESS_ROUTES: raw}).routes == expected


def test_a_gateway_with_a_route_by_another_gateway() -> None:
    """The kernel requires it on the link."""
    raw = classless(
        ("10.0.0.1/32", str(OTHER)), ("0.0.0.0/0", "10.0.0.1"), ("10.0.0.0/8", str(OTHER))
    )
    assert given_by({Option.CLASSLESS_ROUTES: raw}).routes == (
        (IPv4Network("10.0.0.1/32"), None),
        (EVERYWHERE, IPv4Address("10.0.0.1")),
        (TEN, OTHER),
    )


def test_useless_classless_routes_leave_the_router() -> None:
    for raw in (b"", b"\x20\x0a", b"\x21" + bytes(9)):
        assert given_by({Option.CLASSLESS_ROUTES: raw}).routes == ((EVERYWHERE, SERVER),)


def test_the_other_number_of_classless_routes() -> None:
    """249 counts if there is no 121."""
    ten = classless(("10.0.0.0/8", str(OTHER)))
    eleven = classless(("11.0.0.0/8", str(OTHER)))
    theirs: dict[Option, bytes] = {Option.CLASSLESS_ROUTES_MICROSOFT: ten}
    assert given_by(theirs).routes == ((TEN, OTHER),)
    both = given_by(theirs | {Option.CLASSLESS_ROUTES: eleven}).routes
    assert both == ((IPv4Network("11.0.0.0/8"), OTHER),)


def test_static_routes_by_class() -> None:
    """RFC 2132, section 5.8; host bits make a host route; no default route."""
    pairs = (("10.0.0.0", OTHER), ("198.51.100.7", OTHER), ("0.0.0.0", OTHER))
    raw = b"".join(IPv4Address(text).packed + by.packed for text, by in pairs) + b"\x0a\x0b"
    assert given_by({Option.STATIC_ROUTES: raw}).routes == (
        (TEN, OTHER),
        (IPv4Network("198.51.100.7/32"), OTHER),
        (EVERYWHERE, SERVER),
    )


@pytest.mark.parametrize(
    ("raw", "mtu"),
    [
        ((68).to_bytes(2), None),
        ((576).to_bytes(2), None),
        ((1280).to_bytes(2), 1280),
        ((65535).to_bytes(2), 65535),
        (b"\x05", None),
        ((1400).to_bytes(4), None),
        (b"", None),
    ],
)
def test_mtu(raw: bytes, mtu: int | None) -> None:
    assert given_by({Option.INTERFACE_MTU: raw}).mtu == mtu


@pytest.mark.parametrize(
    ("raw", "dns"),
    [
        (IPv4Address(0).packed, ()),
        (IPv4Address(0).packed + OTHER.packed, (OTHER,)),
        (OTHER.packed + OTHER.packed, (OTHER,)),
        (OTHER.packed + b"\x01\x02", (OTHER,)),  # cut off
        (b"\xff\xff\xff\xff", ()),
        (b"", ()),
    ],
)
def test_name_and_time_servers(raw: bytes, dns: tuple[IPv4Address, ...]) -> None:
    assert given_by({Option.DNS: raw}).dns == dns
    assert given_by({Option.NTP: raw}).ntp == dns


_EXAMPLE = b"\x03eng\x07example\x03org\x00"


@pytest.mark.parametrize(
    ("listed", "named", "search"),
    [
        (None, b"example.org", ("example.org",)),
        (None, b"example.org\0", ("example.org",)),
        (None, b"a.test b.test", ("a.test", "b.test")),
        (None, b"a\nnameserver 6.6.6.6", ()),
        (_EXAMPLE, b"example.org", ("eng.example.org",)),
        # RFC 3397's own: the second name points into the first.
        (_EXAMPLE + b"\x09marketing\xc0\x04", b"", ("eng.example.org", "marketing.example.org")),
        (b"\xc0\x00", b"example.org", ("example.org",)),  # points at itself
        (b"\x03eng\xc0\x08\x00", b"example.org", ("example.org",)),  # forward
        (b"\x3feng", b"example.org", ("example.org",)),  # cut off
        (b"\x03a\nb\x00", b"example.org", ("example.org",)),
    ],
)
def test_domains(listed: bytes | None, named: bytes, search: tuple[str, ...]) -> None:
    """The list comes before the name; invalid names are left out."""
    options: dict[Option, bytes] = {Option.DOMAIN_NAME: named}
    if listed is not None:
        options[Option.DOMAIN_SEARCH] = listed
    assert given_by(options).search == search


@given(st.binary(max_size=64), st.binary(max_size=64), st.binary(max_size=64))
def test_any_bytes_give_a_lease(search: bytes, routes: bytes, static: bytes) -> None:
    """Invalid options are left out; every gateway is reachable."""
    lease = given_by(
        {
            Option.DOMAIN_SEARCH: search,
            Option.CLASSLESS_ROUTES: routes,
            Option.STATIC_ROUTES: static,
        }
    )
    on_link = [network for network, gateway in lease.routes if gateway is None]
    for network, gateway in lease.routes:
        if gateway is not None:
            assert any(gateway in near for near in (lease.address.network, *on_link))
            assert network != IPv4Network(gateway)
    assert len({network for network, _ in lease.routes}) == len(lease.routes)


def test_repeated_options_are_one() -> None:
    """RFC 3396: an option is split into two parts."""
    raw = classless(("10.0.0.0/8", str(OTHER)), ("0.0.0.0/0", str(SERVER)))
    good = Message(False, Type.OFFER, 1, MAC, yours=ADDRESS, options=OPTIONS).encode()
    end = good.rindex(b"\xff")
    pieces = b"".join(struct.pack("!BB", 121, len(one)) + one for one in (raw[:7], raw[7:]))
    split = packet.decode(good[:end] + pieces + b"\xff")
    assert leases.parse(split, 0).routes == ((TEN, OTHER), (EVERYWHERE, SERVER))
