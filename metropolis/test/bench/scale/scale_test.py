# SPDX-License-Identifier: Apache-2.0
"""A real node among 59 simulated ones: correct, and with few messages."""

from metropolis.test.bench.scale import scale
from metropolis.test.bench.scale.model import Plan

PLAN = Plan(
    nodes=60, samples=2, unrelated=4, churn=10, rate=10.0, bursts=1, burst_s=3.0, idle_s=1.0
)


def test_the_kernel_has_what_etcd_says() -> None:
    _, found = scale.run(PLAN)

    # After growth, changes, churn, a kill and a cold start.
    assert found.failures == ()
    # One message for a change, in both sizes; none for an unrelated change.
    for size in (found.small, found.large):
        assert [change.messages for change in size.changes] == [1] * PLAN.samples
        assert size.unrelated_messages == 0
    # All at once, not one by one.
    assert found.growth.added == 50
    assert found.growth.messages <= 10
    assert found.cold.start.messages <= 2
    # Peers that the kernel has already are not sent again.
    assert found.warm.with_peers == 0
