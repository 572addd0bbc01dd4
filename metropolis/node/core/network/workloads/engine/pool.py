# SPDX-License-Identifier: Apache-2.0
"""Allocation of addresses, in prefixes of any size. Pure; not thread-safe.

    prefix  |first|.........|#########|..............|last|
                   behind     in use    not looked at yet
                   the cursor           <- cursor

A cursor walks each prefix, from the beginning of the longest stretch that was
free when the prefix was added (most likely it was not used lately), round to
its beginning. Each address it passes is handed out, or was in use, or is
reserved. Freed addresses queue up. When the cursors of the family have walked
everything the queue is handed out, the longest free first: reuse is as late as
it can be.

The queue keeps the REMEMBERED addresses that were freed last, per family. A
longer queue drops its oldest addresses, and their cursor makes another lap,
past all remembered ones, before the queue is handed out. So a prefix of no more
than REMEMBERED addresses has the exact order. In a larger one a freed address
comes again after the rest of the lap, and never before REMEMBERED / 2 others
were freed, as long as there are others.

So nothing is stored for an address that was never used, and nothing for one
that was used long ago: a /64 costs what a /24 costs, for ever. All steps take
constant time, the cursor's on average: when it passes more than _STEPS
unavailable ones, a queue that is at least half full gives its oldest instead.

Usable is every address but the first (network; in IPv6 subnet-router anycast,
RFC 4291 2.6.1) and, in IPv4, the last (broadcast). Prefixes of two addresses
(/31 RFC 3021, /127 RFC 6164) and of one (/32, /128) are usable whole.

A prefix leaves in two steps: while it is draining it hands out nothing new, and
`in_use` reaches 0 when its last address is back; then it can be removed. If a
draining prefix returns, its lately used addresses are known; after a removal
they are not. Addresses in use stay so whatever becomes of their prefix.

Why not a bitmap: it has no order of freeing, and 16 million addresses are 2 MB
for ten pods. Why not remember all freed ones: that is 180 bytes for each
address that was ever used, 3 GB of a 10.0.0.0/8.
"""

import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from metropolis.node.core.network.workloads.errors import (
    AlreadyExists,
    Exhausted,
    InvalidArgument,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import IPAddress, IPNetwork

REMEMBERED = 4096  # addresses of a family that were freed last; under 1 MB
_STEPS = 1024  # a cursor's for one address


def usable_range(prefix: IPNetwork) -> tuple[int, int]:
    """Return the first and last usable address of the prefix, as numbers."""
    first, last = int(prefix.network_address), int(prefix.broadcast_address)
    if last - first <= 1:
        return first, last
    return first + 1, last - 1 if prefix.version == 4 else last


@dataclass(slots=True)
class _Cursor:
    """Laps over a prefix's usable addresses, starting at `start`.

    walked: addresses passed in this lap. forgotten: whether some that are
    behind the cursor are free and not in the queue. draining: nothing is handed
    out.
    """

    prefix: IPNetwork
    first: int
    size: int
    start: int  # offset from first
    walked: int = 0
    forgotten: bool = False
    draining: bool = False

    def contains(self, number: int) -> bool:
        return 0 <= number - self.first < self.size

    def passed(self, number: int) -> bool:
        return (number - self.first - self.start) % self.size < self.walked

    def step(self) -> int:
        offset = (self.start + self.walked) % self.size
        self.walked += 1
        return self.first + offset

    def begin_lap(self) -> bool:
        """Begin another lap; return False when it would find nothing."""
        begins, self.forgotten = self.forgotten, False
        if begins:
            self.walked = 0
        return begins


class _Family:
    """The addresses of one IP version, as numbers."""

    def __init__(self) -> None:
        self.used: dict[int, str] = {}
        self.reserved: frozenset[int] = frozenset()
        self.cursors: list[_Cursor] = []
        # The longest free first: those to hand out, those of draining prefixes.
        self.freed: OrderedDict[int, int] = OrderedDict()
        self.parked: OrderedDict[int, int] = OrderedDict()
        self._clock = itertools.count()

    def set(
        self,
        prefixes: Sequence[IPNetwork],
        reserved: frozenset[int],
        draining: Collection[IPNetwork],
    ) -> None:
        known = {cursor.prefix: cursor for cursor in self.cursors}
        self.cursors = [known.get(prefix) or self._cursor(prefix) for prefix in prefixes]
        for cursor in self.cursors:
            cursor.draining = cursor.prefix in draining
        returned: dict[int, int] = {}
        for number in self.reserved - reserved:
            if number not in self.used and any(
                cursor.contains(number) and cursor.passed(number) for cursor in self.cursors
            ):
                returned[number] = next(self._clock)
        self.reserved = reserved
        free = sorted((self.freed | self.parked | returned).items(), key=lambda item: item[1])
        self.freed.clear()
        self.parked.clear()
        for number, when in free:
            self._queue(number, when)

    def _queue(self, number: int, when: int) -> None:
        """Put a free address where it belongs, if it can be handed out."""
        cursor = self.cursor_of(number)
        if cursor is None or number in self.reserved:
            return
        queue = self.parked if cursor.draining else self.freed
        queue[number] = when
        if len(queue) > REMEMBERED:
            oldest, _ = queue.popitem(last=False)
            of_oldest = self.cursor_of(oldest)
            # Not passed yet: the cursor will reach it.
            if of_oldest is not None and of_oldest.passed(oldest):
                of_oldest.forgotten = True

    def _cursor(self, prefix: IPNetwork) -> _Cursor:
        first, last = usable_range(prefix)
        size = last - first + 1
        used = sorted(number for number in self.used if first <= number <= last)
        if not used:
            return _Cursor(prefix, first, size, 0)
        # Not behind the highest, which may have been a requested one.
        following = [*used[1:], used[0] + size]
        _, start = max((after - one, one + 1) for one, after in zip(used, following, strict=True))
        return _Cursor(prefix, first, size, (start - first) % size)

    def cursor_of(self, number: int) -> _Cursor | None:
        return next((cursor for cursor in self.cursors if cursor.contains(number)), None)

    def claim(self, number: int, owner: str) -> None:
        self.freed.pop(number, None)
        self.parked.pop(number, None)
        self.used[number] = owner

    def take(self, owner: str) -> int | None:
        number = self._step()
        if number is None and self._begin_laps():
            number = self._step()
        if number is None:
            if not self.freed:
                return None
            number, _ = self.freed.popitem(last=False)
        self.used[number] = owner
        return number

    def _begin_laps(self) -> bool:
        """Begin laps when all has been walked: addresses that were dropped
        since then are older than those in the queue.
        """
        cursors = [cursor for cursor in self.cursors if not cursor.draining]
        if any(cursor.walked < cursor.size for cursor in cursors):
            return False
        begun = [cursor.begin_lap() for cursor in cursors]  # every one
        return any(begun)

    def _step(self) -> int | None:
        """Return the next address of a cursor; None also if that is too far
        and the queue is long enough to be the better choice.
        """
        steps = _STEPS if 2 * len(self.freed) >= REMEMBERED else -1
        for cursor in self.cursors:
            while not cursor.draining and cursor.walked < cursor.size and steps:
                steps -= 1
                number = cursor.step()
                # A requested address that was freed before the cursor passed it
                # waits in the queue like the others.
                if not (number in self.used or number in self.reserved or number in self.freed):
                    return number
        return None

    def release(self, number: int) -> None:
        if self.used.pop(number, None) is None:
            return
        self._queue(number, next(self._clock))

    def has_room(self) -> bool:
        """Return whether `take` finds an address. It counts only if it must."""
        cursors = [cursor for cursor in self.cursors if not cursor.draining]
        size = sum(cursor.size for cursor in cursors)
        if self.freed or size > len(self.used) + len(self.reserved):
            return True
        taken = self.used.keys() | self.reserved
        return size > sum(1 for n in taken if any(cursor.contains(n) for cursor in cursors))

    def describe(self) -> str:
        """Return the prefixes, their sizes and the state of their addresses."""
        parts: list[str] = []
        for cursor in self.cursors:
            used = sum(1 for number in self.used if cursor.contains(number))
            held = sum(1 for number in self.reserved if cursor.contains(number))
            draining = ", draining" if cursor.draining else ""
            parts.append(
                f"{cursor.prefix} ({cursor.size} usable, {used} in use, {held} reserved{draining})"
            )
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
        self,
        prefixes: Sequence[IPNetwork],
        reserved: Collection[IPAddress] = (),
        draining: Collection[IPNetwork] = (),
    ) -> None:
        """Replace prefixes and reserved addresses; attachments are untouched.

        Prefixes are used in their order; those of `draining`, which may be
        among them or not, hand out nothing new. Raises InvalidArgument when
        two of them overlap, and changes nothing then.
        """
        every = list(dict.fromkeys([*prefixes, *draining]))
        by_version = {v: [p for p in every if p.version == v] for v in self._families}
        for chosen in by_version.values():
            _check_disjoint(chosen)
        for version, family in self._families.items():
            held = frozenset(int(ip) for ip in reserved if ip.version == version)
            family.set(by_version[version], held, draining)

    def in_use(self, prefix: IPNetwork) -> int:
        """Return how many addresses of the prefix are in use, by any owner."""
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        return sum(first <= number <= last for number in self._families[prefix.version].used)

    @property
    def versions(self) -> tuple[int, ...]:
        """Return the IP versions with a prefix that is not draining."""
        return tuple(
            version
            for version, family in self._families.items()
            if any(not cursor.draining for cursor in family.cursors)
        )

    def take(self, version: int, owner: str) -> IPAddress:
        """Take the address that was free the longest.

        Raises Exhausted, naming the prefixes.
        """
        family = self._families[version]
        number = family.take(owner)
        if number is None:
            raise self._exhausted(version)
        return IPv4Address(number) if version == 4 else IPv6Address(number)

    def take_all(
        self, requested: Iterable[IPAddress], versions: Iterable[int], owner: str
    ) -> tuple[IPAddress, ...]:
        """Take the requested addresses, and one of each other version; all or
        none. Returns them IPv4 first. Raises as `take` and `take_requested`.
        """
        ips: list[IPAddress] = []
        try:
            for ip in requested:
                self.take_requested(ip, owner)
                ips.append(ip)
            for version in versions:
                if all(ip.version != version for ip in ips):
                    ips.append(self.take(version, owner))
        except WorkloadError:
            for ip in ips:
                self.release(ip)
            raise
        return tuple(sorted(ips, key=lambda ip: ip.version))

    def may_be_taken(self, ip: IPAddress) -> bool:
        """Return whether it can be handed out once it is free."""
        family, number = self._families[ip.version], int(ip)
        cursor = family.cursor_of(number)
        return cursor is not None and not cursor.draining and number not in family.reserved

    def has_room(self, version: int) -> bool:
        """Return whether `take` finds an address."""
        return self._families[version].has_room()

    def check_room(self, version: int) -> None:
        """Raise Exhausted as `take` would."""
        if not self._families[version].has_room():
            raise self._exhausted(version)

    def _exhausted(self, version: int) -> Exhausted:
        have = self._families[version].describe()
        return Exhausted(f"no free IPv{version} address left in {have}")

    def take_requested(self, ip: IPAddress, owner: str) -> None:
        """Take this address.

        Raises InvalidArgument or AlreadyExists when it cannot be had.
        """
        family, number = self._families[ip.version], int(ip)
        cursor = family.cursor_of(number)
        if cursor is None:
            have = family.describe() or f"there is no IPv{ip.version} prefix"
            raise _not_to_be_had(ip, f"not a usable address of this node: {have}")
        if number in family.reserved:
            raise _not_to_be_had(ip, "is reserved")
        if cursor.draining:
            raise _not_to_be_had(ip, f"its prefix {cursor.prefix} is draining")
        if number in family.used:
            raise AlreadyExists(f"requested_ip {ip}: in use by {family.used[number]}")
        family.claim(number, owner)

    def adopt(self, ip: IPAddress, owner: str) -> None:
        """Record an address as used, from inside a prefix or not."""
        family, number = self._families[ip.version], int(ip)
        family.claim(number, owner)

    def release(self, ip: IPAddress) -> None:
        """Queue the address for reuse. A free one is ignored."""
        self._families[ip.version].release(int(ip))


def _not_to_be_had(ip: IPAddress, why: str) -> InvalidArgument:
    return InvalidArgument(f"requested_ip {ip}: {why}", field="requested_ip")


def _check_disjoint(prefixes: list[IPNetwork]) -> None:
    ordered = sorted(prefixes, key=lambda prefix: int(prefix.network_address))
    for one, other in itertools.pairwise(ordered):
        if int(other.network_address) <= int(one.broadcast_address):
            raise InvalidArgument(f"prefixes {one} and {other} overlap")
