# SPDX-License-Identifier: Apache-2.0
"""The policies are as many, and as related, as the module says."""

import pytest

from metropolis.node.core.network.policy.compiler import compile_tables
from metropolis.node.core.network.policy.evaluate import Evaluator
from metropolis.node.core.network.policy.model import Protocol
from metropolis.test.bench.policy import chains, synthetic
from metropolis.test.bench.policy.packets import world


def test_pairs_of_a_class() -> None:
    tables = compile_tables(world(200, 800)).tables
    assert len(tables.identities) == 800
    assert len(tables.isolated_ingress) == len(set(tables.identities.values())) == 200
    assert (len(tables.pairs), len(tables.pair_ports)) == (200 * 40, 200 * 10)


@pytest.mark.parametrize("count", [2, 60, 1500])
def test_the_first_pod_reaches_the_second(count: int) -> None:
    policies = synthetic.policies(count)
    assert len(policies) == len({one.name for one in policies}) == count
    evaluator = Evaluator(world(count, 100))
    assert evaluator.verdict("pod0 eth0", "pod1 eth0", Protocol.TCP, 1002, version=4).allowed


def test_another_port_changes_one_policy() -> None:
    before, after = synthetic.policies(60), synthetic.policies(60, port=81)
    assert [one != other for one, other in zip(before, after, strict=True)] == [True] + [False] * 59


def test_chains() -> None:
    text = chains.render(3, "10.0.0.2", "10.0.0.1")
    assert text.count("goto policy") == 3
    assert "ip daddr 10.0.0.2 goto policy2" in text
