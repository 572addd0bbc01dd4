# SPDX-License-Identifier: Apache-2.0
"""Sets of integers as intervals: ports, and addresses as numbers. Pure.

A set is a tuple of (first, last), both inclusive, in order, and neither
overlapping nor adjacent, so equal sets are equal tuples.

Ports of all protocols lie on one line, so that one algebra does for all:

    0        65536    131072   196608   262143
    | tcp    | udp    | sctp   | others |

"others" are protocols without ports. They are at one point of their own, which
is as wide as a protocol, so that everything is a single interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final

from metropolis.node.core.network.policy.model import Networks, Ports, Protocol

type Interval = tuple[int, int]
type Intervals = tuple[Interval, ...]

_WIDTH: Final = 65536
_PROTOCOLS: Final = tuple(Protocol)
_OFFSETS: Final = {protocol: i * _WIDTH for i, protocol in enumerate(_PROTOCOLS)}

NOTHING: Final[Intervals] = ()
EVERYTHING: Final[Intervals] = ((0, (len(_PROTOCOLS) + 1) * _WIDTH - 1),)
"""Ports of all protocols, and the protocols without ports."""

_WITH_PORTS: Final[Intervals] = ((0, len(_PROTOCOLS) * _WIDTH - 1),)

LAST_ADDRESS: Final = {4: (1 << 32) - 1, 6: (1 << 128) - 1}
"""The greatest address as a number, by IP version."""


def union(intervals: Iterable[Interval]) -> Intervals:
    """Return the set of intervals that may overlap, in any order."""
    result: list[Interval] = []
    for first, last in sorted(intervals):
        if result and first <= result[-1][1] + 1:
            if last > result[-1][1]:
                result[-1] = (result[-1][0], last)
        else:
            result.append((first, last))
    return tuple(result)


def intersect(one: Intervals, other: Intervals) -> Intervals:
    """Return what both contain."""
    if one == EVERYTHING:
        return other
    if other == EVERYTHING:
        return one
    result: list[Interval] = []
    i = j = 0
    while i < len(one) and j < len(other):
        first, last = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if first <= last:
            result.append((first, last))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(result)


def subtract(one: Intervals, other: Intervals) -> Intervals:
    """Return what the first contains and the second does not."""
    result: list[Interval] = []
    at = 0
    for first, last in one:
        rest = first
        while at < len(other) and other[at][1] < first:
            at += 1
        while at < len(other) and other[at][0] <= last:
            if rest < other[at][0]:
                result.append((rest, other[at][0] - 1))
            rest = other[at][1] + 1
            if rest > last:
                break  # it may reach into the next interval, too
            at += 1
        if rest <= last:
            result.append((rest, last))
    return tuple(result)


def of_ports(ports: Ports) -> Interval:
    """Return the ports as an interval of the line of all protocols."""
    offset = _OFFSETS[ports.protocol]
    return offset + ports.first, offset + ports.last


def to_ports(line: Intervals) -> Iterator[tuple[Protocol, int, int]]:
    """Yield protocol, first and last port; protocols without ports are left
    out.
    """
    for protocol, offset in _OFFSETS.items():
        for first, last in line:
            start, end = max(first, offset), min(last, offset + _WIDTH - 1)
            if start <= end:
                yield protocol, start - offset, end - offset


def storable(line: Intervals) -> Intervals:
    """Return what tables can say: they have protocols without ports only where
    everything is allowed.
    """
    return line if line == EVERYTHING else intersect(line, _WITH_PORTS)


def of_networks(networks: Networks, version: int) -> Intervals:
    """Return the addresses of one IP version, as numbers."""
    prefixes, excepts = (
        union(
            (int(prefix.network_address), int(prefix.broadcast_address))
            for prefix in some
            if prefix.version == version
        )
        for some in (networks.prefixes, networks.excepts)
    )
    return subtract(prefixes, excepts)


def elementary(sets: Iterable[tuple[int, Intervals]], last: int) -> Iterator[tuple[int, int, int]]:
    """Yield intervals from 0 to `last` without a gap, as (first, last, bits):
    no set begins or ends within one, and the bits are those of the sets that
    contain it.

    sets: bits of each, and its intervals.
    """
    flips: dict[int, int] = {0: 0}
    for bits, intervals in sets:
        for start, end in intervals:
            flips[start] = flips.get(start, 0) ^ bits
            flips[end + 1] = flips.get(end + 1, 0) ^ bits
    bounds = sorted(point for point in flips if point <= last)
    inside = 0
    for start, following in pairwise([*bounds, last + 1]):
        inside ^= flips[start]
        yield start, following - 1, inside


def bits_of(mask: int) -> Iterator[int]:
    """Yield the positions of the bits that are set, from the lowest."""
    text = f"{mask:b}"[::-1]
    position = text.find("1")
    while position >= 0:
        yield position
        position = text.find("1", position + 1)
