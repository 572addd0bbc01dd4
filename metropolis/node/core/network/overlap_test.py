# SPDX-License-Identifier: Apache-2.0
"""Which pod prefixes are refused, and why."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node import allocs
from metropolis.node.core.network.overlap import (
    Refusal,
    Used,
    conflicts,
    judge,
    lacking,
    of_address,
    of_kernel,
)
from osbase.ip import IPNetwork
from osbase.net.occupied import Kind, Occupied

VIA = ip_address("192.0.2.1")


def nets(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(ip_network(text) for text in texts)


@pytest.mark.parametrize(
    ("kind", "used", "refused"),
    [
        (Kind.NETWORK, "198.51.100.0/24", True),  # inside
        (Kind.NETWORK, "198.51.0.0/16", True),  # the same
        (Kind.NETWORK, "198.0.0.0/8", True),  # around
        (Kind.NETWORK, "198.52.0.0/16", False),
        (Kind.NETWORK, "2001:db8::/32", False),
        (Kind.ROUTE, "198.51.100.0/24", True),
        (Kind.ROUTE, "198.51.0.0/16", True),
        (Kind.ROUTE, "198.0.0.0/8", False),  # ordinary
        (Kind.ROUTE, "198.52.0.0/16", False),
        (Kind.ADDRESS, "198.51.7.7", True),
        (Kind.ADDRESS, "198.51.0.0", True),
        (Kind.ADDRESS, "198.52.7.7", False),
        (Kind.GATEWAY, "198.51.255.255", True),
    ],
)
@pytest.mark.parametrize("version", [4, 6])
def test_what_refuses_a_prefix(kind: Kind, used: str, refused: bool, version: int) -> None:
    """In both families alike: 2001:db8 is put before each."""

    def network(text: str) -> IPNetwork:
        found = ip_network(text)
        if version == 4 or found.version == 6:
            return found
        packed = b"\x20\x01\x0d\xb8" + found.network_address.packed + bytes(8)
        bits = 128 if found.prefixlen == 32 else 32 + found.prefixlen
        return ip_network((packed, bits))

    prefix = network("198.51.0.0/16")
    if version == 6 and used.startswith("2001"):
        pytest.skip("around it in IPv6")
    found = conflicts([prefix], of_kernel([Occupied(kind, network(used), "up0", 0, True)], ()))
    assert bool(found) == refused
    if refused:
        assert str(found[prefix]).startswith(f"pod prefix {prefix} overlaps ")


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Occupied(Kind.NETWORK, ip_network("198.51.100.0/24"), "up0", 76, True),
         "198.51.100.0/24 on up0 (by DHCP)"),
        (Occupied(Kind.NETWORK, ip_network("198.51.101.0/24"), "up0", 76, True),
         "198.51.101.0/24 on up0 (as configured)"),
        (Occupied(Kind.NETWORK, ip_network("198.51.2.0/24"), "docker0", 0, True),
         "198.51.2.0/24 on docker0"),
        (Occupied(Kind.NETWORK, ip_network("198.51.2.0/24"), "up0", 2, True),
         "198.51.2.0/24 on up0 (by router advertisement)"),
        (Occupied(Kind.ADDRESS, ip_network("198.51.2.3"), "lo", 0, True),
         "address 198.51.2.3 on lo"),
        (Occupied(Kind.GATEWAY, ip_network("198.51.2.3"), "up0", 9, False),
         "gateway 198.51.2.3 on up0 (by router advertisement)"),
        (Occupied(Kind.ROUTE, ip_network("198.51.2.0/24"), "up0", 4, False, VIA),
         "route 198.51.2.0/24 via 192.0.2.1 on up0 (by hand)"),
        (Occupied(Kind.ROUTE, ip_network("198.51.2.0/24"), "wg0", 0, False),
         "route 198.51.2.0/24 on wg0"),
    ],
)  # fmt: skip
def test_both_are_named(one: Occupied, text: str) -> None:
    (prefix,) = nets("198.51.0.0/16")
    found = conflicts([prefix], of_kernel([one], nets("198.51.101.0/24")))
    assert str(found[prefix]) == f"pod prefix 198.51.0.0/16 overlaps {text}"
    assert allocs.ROUTE_PROTOCOL_UPLINK == 76


def test_the_cause_stays_while_it_is_one() -> None:
    """A second is no news; when the first is over, the second is reported."""
    prefixes = nets("10.192.0.0/24")
    one, two = (of_address(ip_address(text), "x") for text in ("10.192.0.1", "10.192.0.2"))
    first = conflicts(prefixes, [two])
    assert conflicts(prefixes, [one, two], first) == first
    assert conflicts(prefixes, [one], first)[prefixes[0]].cause == one
    assert conflicts(prefixes, [], first) == {}


def test_prefixes_of_a_refused_network_are_refused_with_it() -> None:
    networks = nets("198.51.0.0/16", "fd00:200::/48")
    own = nets("198.51.7.0/24", "fd00:200:0:7::/64")
    underlay = Used(ip_network("198.51.100.0/24"), "198.51.100.0/24 on up0")
    verdict = judge(own, networks, [underlay])
    assert verdict.networks == networks[1:]
    assert verdict.prefixes == own[1:]
    assert verdict.withheld == networks[:1]
    assert verdict.in_use == (underlay.network,)
    assert verdict.causes == (Refusal(networks[0], underlay),)
    assert verdict.refusals[own[0]] == verdict.refusals[networks[0]]
    assert lacking(own, verdict, ()) == str(verdict.causes[0])
    assert lacking(own, verdict, (4,)) == ""


def test_one_of_two_prefixes_of_a_family_is_enough() -> None:
    own = nets("10.192.0.0/24", "10.193.0.0/24")
    verdict = judge(own, (), [of_address(ip_address("10.192.0.9"), "name server")])
    assert verdict.prefixes == verdict.networks == own[1:]
    assert lacking(own, verdict, ()) == ""
    assert lacking(own[:1], judge(own[:1], (), [verdict.causes[0].cause]), ()) != ""


SMALL = st.builds(
    lambda number, bits: IPv4Network((0x0A000000 + number, 24 + bits), strict=False),
    st.integers(0, 255),
    st.integers(0, 8),
)
USED = st.builds(lambda network, behind: Used(network, str(network), behind), SMALL, st.booleans())


def _disjoint(networks: list[IPv4Network]) -> list[IPv4Network]:
    """As those of a cluster are; see curator.records."""
    chosen: list[IPv4Network] = []
    for network in networks:
        if not any(network.overlaps(other) for other in chosen):
            chosen.append(network)
    return chosen


def _addresses(networks: Iterable[IPNetwork]) -> set[int]:
    return {int(address) for network in networks for address in network}


@given(
    st.lists(SMALL, max_size=4),
    st.lists(SMALL, max_size=3).map(_disjoint),
    st.lists(USED, max_size=5),
)
def test_against_a_model(
    own: list[IPv4Network], networks: list[IPv4Network], used: list[Used]
) -> None:
    """What is let through shares no address with what is in use near by, and
    contains none that is behind a gateway; what is refused does.
    """
    verdict = judge(own, networks, used)
    near = _addresses(one.network for one in used if not one.behind)
    behind = [_addresses([one.network]) for one in used if one.behind]

    def bad(network: IPNetwork) -> bool:
        held = _addresses([network])
        return bool(held & near) or any(one <= held for one in behind)

    for network in verdict.networks:
        assert not bad(network)
    for prefix in verdict.prefixes:
        assert not bad(prefix)
        assert prefix not in verdict.refusals
    for network, refusal in verdict.refusals.items():
        assert bad(network) or bad(refusal.prefix)
        assert refusal.cause in used
    assert set(verdict.prefixes) | set(verdict.refusals) >= set(own)
    assert set(verdict.withheld) == set(networks) & set(verdict.refusals)
    withheld = _addresses(verdict.withheld)
    touching = {one.network for one in used if _addresses([one.network]) & withheld}
    assert set(verdict.in_use) == touching
    assert set(verdict.networks) | set(verdict.refusals) >= set(networks)
