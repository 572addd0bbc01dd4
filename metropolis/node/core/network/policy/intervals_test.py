# SPDX-License-Identifier: Apache-2.0
"""Intervals are sets: compared with Python's, number by number."""

from __future__ import annotations

from ipaddress import ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as some

from metropolis.node.core.network.policy.intervals import (
    EVERYTHING,
    LAST_ADDRESS,
    Intervals,
    bits_of,
    elementary,
    intersect,
    of_networks,
    of_ports,
    storable,
    subtract,
    to_ports,
    union,
)
from metropolis.node.core.network.policy.model import Networks, Ports, Protocol

_pieces = some.lists(
    some.tuples(some.integers(0, 20), some.integers(0, 5)).map(lambda pair: (pair[0], sum(pair)))
)
_sets = _pieces.map(union)


def numbers(intervals: Intervals) -> set[int]:
    return {number for first, last in intervals for number in range(first, last + 1)}


def is_normal(intervals: Intervals) -> bool:
    flat = [bound for first, last in intervals for bound in (first, last + 1)]
    return all(a < b for a, b in pairwise(flat))


@given(_pieces)
def test_union(pieces: list[tuple[int, int]]) -> None:
    assert numbers(union(pieces)) == numbers(tuple(pieces))
    assert is_normal(union(pieces))


@given(_sets, _sets)
def test_intersect_and_subtract(one: Intervals, other: Intervals) -> None:
    assert numbers(intersect(one, other)) == numbers(one) & numbers(other)
    assert numbers(subtract(one, other)) == numbers(one) - numbers(other)
    assert is_normal(intersect(one, other))
    assert is_normal(subtract(one, other))


def test_large_sets() -> None:
    """A hundred thousand excepts of a policy: hours, if each met each."""
    even = tuple((number, number) for number in range(0, 400_000, 2))
    odd = subtract(((0, 399_999),), even)
    assert len(odd) == len(even)
    assert subtract(even, odd) == even
    assert intersect(even, odd) == ()
    assert intersect(even, ((100_000, 100_003),)) == ((100_000, 100_000), (100_002, 100_002))


@given(some.lists(_sets, max_size=4))
def test_elementary_intervals_have_the_bits_of_the_sets(sets: list[Intervals]) -> None:
    seen = 0
    for first, last, bits in elementary(((1 << i, one) for i, one in enumerate(sets)), 25):
        assert first == seen
        for number in range(first, last + 1):
            assert bits == sum(1 << i for i, one in enumerate(sets) if number in numbers(one))
        seen = last + 1
    assert seen == 26


@given(some.integers(0, 1 << 200))
def test_bits(mask: int) -> None:
    assert sum(1 << bit for bit in bits_of(mask)) == mask


def test_ports_of_all_protocols_on_one_line() -> None:
    ports = [Ports(Protocol.TCP, 0, 65535), Ports(Protocol.UDP, 0, 5), Ports(Protocol.SCTP, 7, 7)]
    line = union(of_ports(one) for one in ports)
    assert list(to_ports(line)) == [
        (Protocol.TCP, 0, 65535),
        (Protocol.UDP, 0, 5),
        (Protocol.SCTP, 7, 7),
    ]
    assert intersect(EVERYTHING, line) == line == intersect(line, EVERYTHING)


def test_only_everything_has_protocols_without_ports() -> None:
    assert storable(EVERYTHING) == EVERYTHING
    port = (of_ports(Ports(Protocol.TCP, 25, 25)),)
    rest = storable(subtract(EVERYTHING, port))
    assert list(to_ports(rest)) == [
        (Protocol.TCP, 0, 24),
        (Protocol.TCP, 26, 65535),
        (Protocol.UDP, 0, 65535),
        (Protocol.SCTP, 0, 65535),
    ]
    assert rest[-1][1] < EVERYTHING[0][1]


def test_addresses() -> None:
    some_networks = Networks(
        (ip_network("0.0.0.0/0"), ip_network("::/0")), (ip_network("128.0.0.0/1"),)
    )
    assert of_networks(some_networks, 4) == ((0, (1 << 31) - 1),)
    assert of_networks(some_networks, 6) == ((0, LAST_ADDRESS[6]),)
