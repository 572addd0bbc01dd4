# SPDX-License-Identifier: Apache-2.0
"""A difference is what makes tables equal to others, and no more."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as some

from metropolis.node.core.network.policy.compiler import Compiler
from metropolis.node.core.network.policy.difference import Difference, difference
from metropolis.node.core.network.policy.tables import Tables
from metropolis.node.core.network.policy.testing import worlds

SETS = (
    "isolated_egress",
    "isolated_ingress",
    "pairs",
    "pair_ports",
    "world_egress",
    "world_ingress",
)


@settings(max_examples=60, deadline=None)
@given(some.data())
def test_applied_it_gives_the_other_tables(data: some.DataObject) -> None:
    world = data.draw(worlds.worlds())
    compiler = Compiler()
    before = compiler.update(world).tables
    after = compiler.update(data.draw(worlds.changes(world))).tables
    step = difference(before, after)
    assert bool(step) == (before != after)
    for name in SETS:
        removed, added = getattr(step.removed, name), getattr(step.added, name)
        assert removed <= getattr(before, name)
        assert not removed & getattr(after, name)
        assert (getattr(before, name) - removed) | added == getattr(after, name)
    kept = before.identities.items() - step.removed.identities.items()
    assert {**dict(kept), **step.added.identities} == after.identities


def test_another_identity_is_a_removal_and_an_addition() -> None:
    one, two = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
    step = difference(Tables({one: 1, two: 1}), Tables({one: 2, two: 1}))
    assert step == Difference(Tables({one: 1}), Tables({one: 2}))


def test_equal_tables_differ_in_nothing() -> None:
    assert not difference(Tables(pairs=frozenset({(1, 2)})), Tables(pairs=frozenset({(1, 2)})))
