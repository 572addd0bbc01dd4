# SPDX-License-Identifier: Apache-2.0
"""Small random worlds, for hypothesis. Names, labels, ports and prefixes are
few, so that policies meet workloads and each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import strategies as some

from metropolis.node.core.network.policy.model import (
    NAMESPACE_NAME,
    Action,
    Direction,
    NamedPort,
    Networks,
    Operator,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    Tier,
    Workload,
    Workloads,
    World,
)
from metropolis.node.core.network.workloads.model import IPAddress

_NAMESPACES = ("default", "web")
_VALUES = ("a", "b")
_PREFIXES = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/0",
        "10.0.0.0/29",
        "10.0.0.2/31",
        "192.0.2.0/24",
        "192.0.2.128/25",
        "192.0.2.7/32",
        "255.255.255.255/32",
        "::/0",
        "fd00::/125",
        "fd00::2/127",
        "2001:db8::/32",
        "2001:db8::/128",
    )
)
_IPS = tuple((f"10.0.0.{i}", f"fd00::{i}") for i in range(1, 7))
_PORTS = ((0, 65535), (0, 0), (80, 80), (79, 81), (81, 443), (443, 65535))
_PORT_NAMES = ("http", "dns")

_labels = some.dictionaries(some.sampled_from(("app", "tier")), some.sampled_from(_VALUES))
_requirements = some.one_of(
    some.builds(
        Requirement,
        some.sampled_from(("app", "tier")),
        some.sampled_from((Operator.IN, Operator.NOT_IN)),
        some.lists(some.sampled_from(_VALUES), min_size=1, max_size=2, unique=True).map(tuple),
    ),
    some.builds(
        Requirement,
        some.sampled_from(("app", "tier")),
        some.sampled_from((Operator.EXISTS, Operator.DOES_NOT_EXIST)),
    ),
)
_selectors = some.lists(_requirements, max_size=1).map(tuple)
_by_name = some.sampled_from(_NAMESPACES).map(
    lambda name: (Requirement(NAMESPACE_NAME, Operator.IN, (name,)),)
)
_workloads = some.builds(Workloads, some.one_of(_by_name, _selectors), _selectors)


@some.composite
def _networks(draw: some.DrawFn) -> Networks:
    prefixes = draw(some.lists(some.sampled_from(_PREFIXES), min_size=1, max_size=2))
    inner = [
        one
        for one in _PREFIXES
        if any(
            one.version == prefix.version
            and one != prefix
            and one.network_address in prefix
            and one.broadcast_address in prefix
            for prefix in prefixes
        )
    ]
    excepts = draw(some.lists(some.sampled_from(inner), max_size=2)) if inner else []
    return Networks(tuple(prefixes), tuple(excepts))


_ports = some.one_of(
    some.builds(
        lambda protocol, bounds: Ports(protocol, *bounds),
        some.sampled_from(Protocol),
        some.sampled_from(_PORTS),
    ),
    some.builds(
        NamedPort,
        some.sampled_from(_PORT_NAMES),
        some.sampled_from((None, *Protocol)),
    ),
)


def _rules(actions: tuple[Action, ...]) -> some.SearchStrategy[tuple[Rule, ...]]:
    rule = some.builds(
        Rule,
        some.one_of(
            some.none(), some.lists(some.one_of(_workloads, _networks()), max_size=2).map(tuple)
        ),
        some.one_of(some.none(), some.lists(_ports, max_size=2).map(tuple)),
        some.sampled_from(actions),
    )
    return some.lists(rule, max_size=3).map(tuple)


@some.composite
def policies(draw: some.DrawFn, name: str) -> Policy:
    """Draw a policy of any tier."""
    tier = draw(some.sampled_from(Tier))
    is_namespace = tier is Tier.NAMESPACE
    rules = _rules((Action.ACCEPT,) if is_namespace else tuple(Action))
    return Policy(
        name,
        tier,
        draw(_workloads),
        draw(rules),
        draw(rules),
        draw(some.frozensets(some.sampled_from(Direction))) if is_namespace else frozenset(),
        0 if is_namespace else draw(some.integers(0, 1)),
        draw(some.sampled_from(("",) * 4 + ("unknown field",))),
    )


@some.composite
def workloads(draw: some.DrawFn, index: int) -> Workload:
    """Draw a workload. index: of its addresses, 0 to 5."""
    both = tuple(ip_address(text) for text in _IPS[index])
    named = some.tuples(some.sampled_from(Protocol), some.sampled_from((80, 443)))
    return Workload(
        f"w{index}",
        draw(some.sampled_from((both, both, both[:1], both[1:]))),
        draw(some.sampled_from((*_NAMESPACES, *_NAMESPACES, None))),
        draw(_labels),
        draw(some.dictionaries(some.sampled_from(_PORT_NAMES), named)),
        draw(some.sampled_from((True,) * 9 + (False,))),
    )


@some.composite
def worlds(draw: some.DrawFn) -> World:
    """Draw a world with up to three policies and six workloads."""
    names = draw(some.sets(some.sampled_from(("p0", "p1", "p2", "p3")), max_size=3))
    indexes = draw(some.sets(some.integers(0, len(_IPS) - 1), max_size=len(_IPS)))
    return World(
        tuple(draw(policies(name)) for name in sorted(names)),
        draw(some.dictionaries(some.sampled_from(_NAMESPACES), _labels)),
        tuple(draw(workloads(index)) for index in sorted(indexes)),
    )


@some.composite
def changes(draw: some.DrawFn, world: World) -> World:
    """Draw a world that has much in common with another: half of the time,
    only the labels of some workloads differ.
    """
    if draw(some.booleans()):
        return replace(
            world,
            workloads=tuple(
                replace(one, labels=draw(_labels)) if draw(some.booleans()) else one
                for one in world.workloads
            ),
        )
    other = draw(worlds())
    kept_policies = [one for one in world.policies if draw(some.booleans())]
    kept_workloads = [one for one in world.workloads if draw(some.booleans())]
    names = {one.name for one in kept_policies}
    keys = {one.key for one in kept_workloads}
    return World(
        (*kept_policies, *(one for one in other.policies if one.name not in names)),
        world.namespaces if draw(some.booleans()) else other.namespaces,
        (*kept_workloads, *(one for one in other.workloads if one.key not in keys)),
    )


def addresses(world: World) -> Iterator[IPAddress]:
    """Yield addresses that verdicts may differ for: those of workloads, and the
    ends of prefixes with their neighbours.
    """
    found: dict[IPAddress, None] = {ip: None for one in world.workloads for ip in one.ips}
    for prefix in _PREFIXES:
        make = IPv4Address if prefix.version == 4 else IPv6Address
        limit = int(make(b"\xff" * (4 if prefix.version == 4 else 16)))
        for end in (int(prefix.network_address), int(prefix.broadcast_address)):
            for number in (end - 1, end, end + 1):
                if 0 <= number <= limit:
                    found[make(number)] = None
    yield from found


def ports() -> Iterator[tuple[Protocol | None, int]]:
    """Yield protocols and ports that verdicts may differ for."""
    yield None, 0
    for protocol in Protocol:
        for port in (0, 1, 78, 79, 80, 81, 82, 442, 443, 444, 65535):
            yield protocol, port
