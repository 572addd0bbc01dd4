# SPDX-License-Identifier: Apache-2.0
"""Which address is whose, in prefixes of any size. Pure; not thread-safe.

    prefix  |first|.........|#########|..............|last|
                   behind     in use    not looked at yet
                   the cursor           <- cursor

A cursor walks each prefix once, from behind the highest address in use when
the prefix was added (what lies beyond was most likely not used lately), round
to where it began. What it passes is handed out, or was in use, or is
reserved. Freed addresses queue up, and are handed out only when the cursors of
the family have walked everything, the longest free first: reuse is as late as
it can be. Nothing is stored for an address that was never used: a /64 costs
what a /24 costs, and both steps take constant time, the cursor's on average.

Usable is every address but the first (network; in IPv6 subnet-router anycast,
RFC 4291 2.6.1) and, in IPv4, the last (broadcast). Prefixes of two addresses
(/31 RFC 3021, /127 RFC 6164) and of one (/32, /128) are usable whole.

Why not a bitmap: it knows nothing of the order of freeing, and 16 million
addresses are 2 MB for ten pods.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    InvalidArgument,
)
from metropolis.node.core.network.workloads.model import IPAddress, IPNetwork


def usable_range(prefix: IPNetwork) -> tuple[int, int]:
    """First and last usable address of the prefix, as numbers."""
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    if last - first <= 1:
        return first, last
    return first + 1, last - 1 if prefix.version == 4 else last


@dataclass(slots=True)
class _Cursor:
    """A walk over a prefix's usable addresses, starting at `start`."""

    prefix: IPNetwork
    first: int
    size: int
    start: int  # offset from first
    walked: int = 0  # addresses passed

    def contains(self, number: int) -> bool:
        return 0 <= number - self.first < self.size

    def passed(self, number: int) -> bool:
        return (number - self.first - self.start) % self.size < self.walked

    def step(self) -> int:
        offset = (self.start + self.walked) % self.size
        self.walked += 1
        return self.first + offset


class _Family:
    """The addresses of one IP version, as numbers."""

    def __init__(self) -> None:
        self.used: dict[int, str] = {}
        self.reserved: frozenset[int] = frozenset()
        self.cursors: list[_Cursor] = []
        self.freed: OrderedDict[int, None] = OrderedDict()

    def set(self, prefixes: Sequence[IPNetwork], reserved: frozenset[int]) -> None:
        known = {cursor.prefix: cursor for cursor in self.cursors}
        self.cursors = [known.get(prefix) or self._cursor(prefix) for prefix in prefixes]
        for number in self.reserved - reserved:
            if number not in self.used and any(
                cursor.contains(number) and cursor.passed(number) for cursor in self.cursors
            ):
                self.freed[number] = None
        self.reserved = reserved
        for number in list(self.freed):
            if number in reserved or not self.contains(number):
                del self.freed[number]

    def _cursor(self, prefix: IPNetwork) -> _Cursor:
        first, last = usable_range(prefix)
        highest = max((n for n in self.used if first <= n <= last), default=first - 1)
        size = last - first + 1
        return _Cursor(prefix, first, size, (highest + 1 - first) % size)

    def contains(self, number: int) -> bool:
        return any(cursor.contains(number) for cursor in self.cursors)

    def take(self, owner: str) -> int | None:
        for cursor in self.cursors:
            while cursor.walked < cursor.size:
                number = cursor.step()
                # A requested address that was freed before the cursor came by
                # waits in the queue like the others.
                if not (number in self.used or number in self.reserved or number in self.freed):
                    self.used[number] = owner
                    return number
        if not self.freed:
            return None
        number, _ = self.freed.popitem(last=False)
        self.used[number] = owner
        return number

    def release(self, number: int) -> None:
        if self.used.pop(number, None) is None:
            return
        if self.contains(number) and number not in self.reserved:
            self.freed[number] = None

    def describe(self) -> str:
        """The prefixes, their sizes and what became of their addresses."""
        parts: list[str] = []
        for cursor in self.cursors:
            used = sum(1 for number in self.used if cursor.contains(number))
            held = sum(1 for number in self.reserved if cursor.contains(number))
            parts.append(f"{cursor.prefix} ({cursor.size} usable, {used} in use, {held} reserved)")
        return ", ".join(parts)


class AddressPool:
    """The addresses of a node's workloads.

    An owner is a text that error messages show. Addresses in use need not be
    in a prefix: those of a prefix that was taken away stay in use until they
    are released.
    """

    def __init__(self) -> None:
        self._families = {4: _Family(), 6: _Family()}

    def set_prefixes(
        self, prefixes: Sequence[IPNetwork], reserved: Collection[IPAddress] = ()
    ) -> None:
        """Replace prefixes and reserved addresses; attachments are untouched.

        Prefixes are used in their order. Raises InvalidArgument when two of
        them overlap, and changes nothing then.
        """
        for version in self._families:
            _check_disjoint([p for p in dict.fromkeys(prefixes) if p.version == version])
        for version, family in self._families.items():
            chosen = list(dict.fromkeys(p for p in prefixes if p.version == version))
            family.set(chosen, frozenset(int(ip) for ip in reserved if ip.version == version))

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions for which there is a prefix."""
        return tuple(version for version, family in self._families.items() if family.cursors)

    def take(self, version: int, owner: str) -> IPAddress:
        """An address that was not in use for as long as possible.

        Raises Exhausted, naming the prefixes.
        """
        family = self._families[version]
        number = family.take(owner)
        if number is None:
            raise Exhausted(f"no free IPv{version} address left in {family.describe()}")
        return IPv4Address(number) if version == 4 else IPv6Address(number)

    def take_requested(self, ip: IPAddress, owner: str) -> None:
        """This address.

        Raises InvalidArgument or AlreadyExists when it cannot be had.
        """
        family, number = self._families[ip.version], int(ip)
        if not family.contains(number):
            have = family.describe() or f"there is no IPv{ip.version} prefix"
            raise InvalidArgument(f"requested_ip {ip}: not a usable address of this node: {have}")
        if number in family.reserved:
            raise InvalidArgument(f"requested_ip {ip}: is reserved")
        if number in family.used:
            raise AlreadyExists(f"requested_ip {ip}: in use by {family.used[number]}")
        family.freed.pop(number, None)
        family.used[number] = owner

    def adopt(self, ip: IPAddress, owner: str) -> None:
        """Note that an address is in use, wherever it is from."""
        family, number = self._families[ip.version], int(ip)
        family.freed.pop(number, None)
        family.used[number] = owner

    def release(self, ip: IPAddress) -> None:
        """Queue the address for reuse. Releasing what is free does nothing."""
        self._families[ip.version].release(int(ip))


def _check_disjoint(prefixes: list[IPNetwork]) -> None:
    ordered = sorted(prefixes, key=lambda prefix: int(prefix.network_address))
    for one, other in pairwise(ordered):
        if int(other.network_address) <= int(one.broadcast_address):
            raise InvalidArgument(f"prefixes {one} and {other} overlap")
