# SPDX-License-Identifier: Apache-2.0
"""A table with a chain per policy: a stand-in for peers that work so. Pure.

A new flow meets a rule per policy until the one of its destination, which jumps
to the policy's chain, with a rule per peer; the measured flow is of the last.
So the table shows how such tables grow, not what one of a certain peer costs:
most have a chain per pod between both, which bounds the walk by the policies of
a pod, and adds what keeps these chains.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from typing import Final

TABLE: Final = "bench_chains"
_FIRST: Final = IPv4Address("10.64.0.1")


def render(count: int, destination: str, source: str) -> str:
    """Return a table of `count` policies, for nft. The last is of a destination
    that one source reaches.
    """
    return "\n".join(_lines(count, destination, source))


def _lines(count: int, destination: str, source: str) -> Iterator[str]:
    yield f"table ip {TABLE} {{"
    others = [(f"{_FIRST + number}", f"{_FIRST + number + 1}") for number in range(count - 1)]
    policies = [*others, (destination, source)]
    for number, (_, peer) in enumerate(policies):
        yield from _chain(f"policy{number}", [f"ip saddr {peer} accept", "drop"])
    jumps = [f"ip daddr {one} goto policy{number}" for number, (one, _) in enumerate(policies)]
    hook = "type filter hook forward priority filter; policy accept;"
    yield from _chain("forward", [hook, "ct state established,related accept", *jumps])
    yield "}"


def _chain(name: str, rules: Iterable[str]) -> Iterator[str]:
    yield f"chain {name} {{"
    yield from rules
    yield "}"
