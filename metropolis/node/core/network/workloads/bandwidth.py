# SPDX-License-Identifier: Apache-2.0
"""Bandwidth limits as values, and as the text of a part. Pure.

    Limit     of one direction: bits of IP packets per second
    Bandwidth the limits of an attachment
    part_of   limits -> the part of an AttachIntent; of_parts: back
    text_of   limits -> their text, in canonical form
    changed   limits -> the text of those that replace others
    parse     the text -> limits

A rate counts IP packets with their headers, as an operator reads it: payload of
TCP is less, by 3.5 % in IPv4 and 4.8 % in IPv6 at an MTU of 1500.

The text has an entry for each limit, the one to the workload first:

    DIRECTION RATE [/BURST]     i10000000
                                i10000000/20000,e5000000

DIRECTION: i for ingress, to the workload; e for egress, from it. RATE: bits per
second. BURST: bits. A text that begins with `=` replaced the attach's, and may
have no entry.

A burst is what may pass at once after a pause. The service's own is worth
BURST_MS of the rate: with more, the first second has more than the rate.
Runtimes ask for absurd ones (containerd: 4 Gbit, whatever the rate). So a burst
only lowers ours, and one that does not is not in the text.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import PartText
from metropolis.node.core.network.workloads.parts import CHANGED
from metropolis.node.core.network.workloads.validate import show

LETTER: Final = "b"
FIELD: Final = "bandwidth"
"""Letter and name of the part."""

RATE_MIN: Final = 8_000
"""Bits per second: at less, a packet of 1500 bytes takes more than 1.5 s."""
RATE_MAX: Final = 10**12
BURST_MS: Final = 4

_ENTRY: Final = r"([1-9][0-9]{0,12})(?:/([1-9][0-9]{0,12}))?"
_TEXT: Final = re.compile(rf"(?=.)(?:i{_ENTRY})?(?:(?:^|,)e{_ENTRY})?")


@dataclass(frozen=True, slots=True)
class Limit:
    """rate: bits per second, 0: no limit. burst: bits, 0: the service's."""

    rate: int = 0
    burst: int = 0


NO_LIMIT: Final = Limit()


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """ingress: to the workload; egress: from it."""

    ingress: Limit = NO_LIMIT
    egress: Limit = NO_LIMIT


NO_LIMITS: Final = Bandwidth()


def part_of(limits: Bandwidth) -> tuple[PartText, ...]:
    """Return the part of an AttachIntent; (): no limits. Raises
    InvalidArgument, its field `bandwidth`.
    """
    text = text_of(limits)
    return ((LETTER, text),) if text else ()


def of_parts(parts: Iterable[PartText]) -> Bandwidth:
    """Return an attachment's limits. Raises InvalidArgument."""
    return next((parse(text) for letter, text in parts if letter == LETTER), NO_LIMITS)


def text_of(limits: Bandwidth) -> str:
    """Return the text of the limits; "": there are none. Raises
    InvalidArgument, its field `bandwidth`.
    """
    entries = []
    for name, limit in (("ingress", limits.ingress), ("egress", limits.egress)):
        _check(name, limit)
        if limit.rate:
            burst = f"/{limit.burst}" if _lowers(limit) else ""
            entries.append(f"{name[0]}{limit.rate}{burst}")
    return ",".join(entries)


def changed(limits: Bandwidth) -> str:
    """Return the text of limits that replace others, also if there are none.
    Raises as text_of.
    """
    return CHANGED + text_of(limits)


@functools.lru_cache(maxsize=64)
def parse(text: str) -> Bandwidth:
    """Return the limits. Raises InvalidArgument."""
    if text == CHANGED:
        return NO_LIMITS
    entries = text.removeprefix(CHANGED)
    found = _TEXT.fullmatch(entries)
    if found is None:
        raise invalid(f"{show(text)}: is not understood")
    rates = [int(number or 0) for number in found.groups()]
    limits = Bandwidth(Limit(*rates[:2]), Limit(*rates[2:]))
    if text_of(limits) != entries:
        raise invalid(f"{show(text)}: is not in canonical form")
    return limits


def _lowers(limit: Limit) -> bool:
    return 0 < limit.burst < limit.rate * BURST_MS // 1000


def _check(name: str, limit: Limit) -> None:
    """Raise InvalidArgument for what cannot be done."""
    rate, burst = limit.rate, limit.burst
    if rate and not RATE_MIN <= rate <= RATE_MAX:
        raise invalid(f"{name}_rate {rate}: must be {RATE_MIN} to {RATE_MAX} bits per second")
    if burst < 0:
        raise invalid(f"{name}_burst {burst}: must not be negative")
    if burst and not rate:
        raise invalid(f"{name}_burst {burst}: needs an {name}_rate")


def invalid(text: str) -> InvalidArgument:
    """Return an error about limits."""
    return InvalidArgument(f"{FIELD}: {text}", field=FIELD)
