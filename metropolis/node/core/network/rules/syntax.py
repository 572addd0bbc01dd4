# SPDX-License-Identifier: Apache-2.0
"""Expressions that several parts of the rule set share. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.rules.drops import Reason, drop
from metropolis.node.core.network.rules.settings import IPNetwork

WORKLOAD: Final = allocs.LINK_GROUP_WORKLOAD
OVERLAY: Final = allocs.LINK_GROUP_OVERLAY
OURS: Final = f"{{ {WORKLOAD}, {OVERLAY} }}"
LOOPBACK_ENTERED: Final = "ip daddr 127.0.0.0/8 " + drop(Reason.LOOPBACK_ENTERED)


def elements(networks: Iterable[IPNetwork], version: int) -> str:
    """Return a family's networks as set elements, without nested ones."""
    if version == 4:
        return ", ".join(
            map(str, collapse_addresses(n for n in networks if isinstance(n, IPv4Network)))
        )
    return ", ".join(
        map(str, collapse_addresses(n for n in networks if isinstance(n, IPv6Network)))
    )


def chains(declared: Mapping[str, str], rules: Mapping[str, Sequence[str]]) -> str:
    """Return the chains of a table. declared: their hooks, "" for none."""
    assert not rules.keys() - declared.keys(), "each chain is declared"
    text = ""
    for name, hook in declared.items():
        lines = [hook] if hook else []
        lines += rules.get(name, [])
        text += (
            f"    chain {name} {{\n" + "".join(f"        {line}\n" for line in lines) + "    }\n"
        )
    return text


def by_removal(verdict: str) -> str:
    """Return an element of a verdict map by group, for links being removed."""
    return f"{allocs.LINK_GROUP_REMOVAL:#x} : {verdict}"


def limited(name: str, per_second: int) -> str:
    """Return a match for packets whose link exceeds the rate."""
    limit = f"limit rate over {per_second}/second burst {2 * per_second} packets"
    return f"update @{name} {{ meta iif {limit} }}"
