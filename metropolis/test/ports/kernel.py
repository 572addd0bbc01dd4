# SPDX-License-Identifier: Apache-2.0
"""Elements and links of the node, as nft and ip list them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from metropolis.test.ports import oracle
from metropolis.test.ports.world import Space
from metropolis.test.world.namespaces import WorldError

TABLE: Final = "inet metropolis_workloads"
_NUMBERS: Final = {"6": "tcp", "17": "udp", "132": "sctp"}
_SETTLED_S: Final = 10.0  # a link is deleted a moment after the answer


@dataclass(frozen=True)
class Snapshot:
    """What attachments leave on a node."""

    elements: tuple[tuple[str, frozenset[str]], ...]
    links: frozenset[str]
    routes: frozenset[str]

    def less(self, other: Snapshot) -> list[str]:
        """Return in words what is here and not there."""
        before = dict(other.elements)
        found = [
            f"element {one} of {name}"
            for name, some in self.elements
            for one in sorted(some - before.get(name, frozenset()))
        ]
        found += [f"link {one}" for one in sorted(self.links - other.links)]
        return found + [f"route {one}" for one in sorted(self.routes - other.routes)]


def elements(node: Space) -> oracle.Elements:
    """Return the elements of the maps and sets of host ports. Raises WorldError
    if there is no such table.
    """
    listed = json.loads(node.run(["nft", "--json", "list", "table", *TABLE.split()]))
    found: oracle.Elements = {name: set() for name in oracle.MAPS}
    for item in listed["nftables"]:
        one = item.get("map") or item.get("set")
        if one is None or one["name"] not in found:
            continue
        for element in one.get("elem", ()):
            pair = isinstance(element, list)
            words = [_words(part) for part in (element if pair else [element])]
            found[one["name"]].add(" : ".join(words))
    return found


def _words(value: Any) -> str:
    """Return a key or data as nft(8) writes it, with names of protocols."""
    if isinstance(value, dict) and "elem" in value:
        value = value["elem"]["val"]
    parts = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
    words = [str(one) for one in parts]
    at = next((n for n, one in enumerate(words) if one in _NUMBERS and n < len(words) - 1), None)
    if at is not None:
        words[at] = _NUMBERS[words[at]]
    return " . ".join(words)


def snapshot(node: Space) -> Snapshot:
    """Return what is there now; without the table there are no elements."""
    try:
        found = elements(node)
    except WorldError:
        found = {}
    links = json.loads(node.run(["ip", "-json", "link"]))
    routes = [
        f"{one['dst']} dev {one.get('dev', '')}"
        for family in ("-4", "-6")
        for one in json.loads(node.run(["ip", family, "-json", "route"]) or "[]")
        if one.get("protocol") == "77"
    ]
    return Snapshot(
        tuple((name, frozenset(some)) for name, some in sorted(found.items())),
        frozenset(str(one["ifname"]) for one in links),
        frozenset(routes),
    )


def left(node: Space, before: Snapshot) -> list[str]:
    """Return in words what is more than before, once links are deleted."""
    return until(lambda: snapshot(node).less(before), lambda more: not more, _SETTLED_S)


def differences(node: Space, expected: oracle.Elements) -> list[str]:
    """Return in words how the elements differ from the expected ones."""
    try:
        found = elements(node)
    except WorldError as error:
        return [str(error)]
    words = []
    for name in oracle.MAPS:
        words += [f"{name} lacks {one}" for one in sorted(expected[name] - found[name])]
        words += [f"{name} has {one}" for one in sorted(found[name] - expected[name])]
    return words


def until[T](look: Callable[[], T], good: Callable[[T], bool], limit_s: float) -> T:
    """Return what `look` finds, once it is good or after the time limit."""
    deadline = time.monotonic() + limit_s
    while not good(found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
