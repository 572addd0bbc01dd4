# SPDX-License-Identifier: Apache-2.0
"""Limits as runtimes write them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from metropolis.node.core.network.cni import limits
from metropolis.node.core.network.workloads.errors import InvalidArgument

SOURCE = "runtimeConfig.bandwidth"
MBIT = 10**6
# containerd's, whatever the rate is (kubernetes#90838), and CRI-O's.
BURSTS = (2**32 - 1, (2**32 - 1) * 8 - 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"ingressRate": MBIT}, "i1000000"),
        ({"IngressRate": 0, "IngressBurst": 0, "EgressRate": MBIT, "EgressBurst": BURSTS[0]},
         "e1000000"),
        ({"ingressRate": MBIT, "ingressBurst": BURSTS[1], "egressRate": None}, "i1000000"),
        ({"ingressRate": MBIT, "ingressBurst": 3000, "egressRate": 2 * MBIT, "egressBurst": 4000},
         "i1000000/3000,e2000000/4000"),
    ],
)  # fmt: skip
def test_what_runtimes_send(value: dict[str, Any], text: str) -> None:
    assert limits.part_of(value, SOURCE) == (("b", text),)


@pytest.mark.parametrize("value", [{}, {"ingressRate": 0}, {"IngressBurst": None}])
def test_what_asks_for_nothing(value: dict[str, Any]) -> None:
    assert limits.part_of(value, SOURCE) == ()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([], "an object"),
        ({"rate": 1}, "'rate': ingressRate, ingressBurst, egressRate, egressBurst are known"),
        ({"ingressRate": "1M"}, "ingressRate is '1M': a number of bits"),
        ({"ingressRate": -1}, "ingressRate is -1: "),
        ({"ingressRate": 2**64}, "ingressRate is 18446744073709551616: "),
        ({"ingressRate": True}, "ingressRate is True: "),
        ({"ingressRate": 1e6}, "ingressRate is 1000000.0: "),
        ({"ingressRate": MBIT, "IngressRate": MBIT}, "ingressRate twice"),
        (
            {"egressRate": 1000},
            "runtimeConfig.bandwidth.egressRate 1000: must be 8000 to 1000000000000",
        ),
        ({"egressRate": 10**18}, "egressRate 1000000000000000000: must be"),
        ({"egressBurst": 1000}, "egressBurst 1000: needs an egressRate"),
    ],
)
def test_what_is_wrong_is_named(value: Any, told: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        limits.part_of(value, SOURCE)
    assert told in str(refused.value)
    assert refused.value.field == "bandwidth"


JSON = some.none() | some.booleans() | some.floats() | some.integers() | some.text(max_size=3)


@given(some.dictionaries(some.sampled_from(["ingressRate", "EgressBurst", "x"]), JSON))
def test_garbage_is_an_error(value: dict[str, Any]) -> None:
    try:
        limits.part_of(value, SOURCE)
    except InvalidArgument as refused:
        assert refused.field == "bandwidth"
