# SPDX-License-Identifier: Apache-2.0
"""The text of bandwidth limits, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from metropolis.node.core.network.workloads.bandwidth import (
    BURST_MS,
    NO_LIMIT,
    NO_LIMITS,
    RATE_MAX,
    RATE_MIN,
    Bandwidth,
    Limit,
    changed,
    of_parts,
    parse,
    part_of,
    text_of,
)
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.parts import TEXT_MAX

MBIT = 10**6
limits = some.just(NO_LIMIT) | some.builds(
    Limit, some.integers(RATE_MIN, RATE_MAX), some.integers(0, 2**64 - 1)
)


@given(some.builds(Bandwidth, limits, limits))
def test_a_text_has_the_limits(asked: Bandwidth) -> None:
    """Only bursts that lower nothing are lost."""
    parts = part_of(asked)
    found = of_parts(parts)
    assert part_of(found) == parts
    assert all(len(text) <= TEXT_MAX for _, text in parts)
    for before, after in ((asked.ingress, found.ingress), (asked.egress, found.egress)):
        assert before.rate == after.rate
        lowers = before.burst < before.rate * BURST_MS // 1000
        assert after.burst == (before.burst if lowers else 0)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (NO_LIMITS, ""),
        (Bandwidth(ingress=Limit(MBIT)), "i1000000"),
        (Bandwidth(egress=Limit(MBIT, 3000)), "e1000000/3000"),
        (Bandwidth(Limit(MBIT, 2**32 - 1), Limit(RATE_MIN)), "i1000000,e8000"),
        (Bandwidth(Limit(MBIT, 4000), Limit(MBIT, 3999)), "i1000000,e1000000/3999"),
    ],
)
def test_texts(asked: Bandwidth, text: str) -> None:
    assert text_of(asked) == text


@given(some.builds(Bandwidth, limits, limits))
def test_a_changed_text_has_the_limits(asked: Bandwidth) -> None:
    """And is another one than the attach's, also without limits."""
    text = changed(asked)
    assert text == "=" + text_of(asked)
    assert parse(text) == (parse(text[1:]) if text[1:] else NO_LIMITS)


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (Limit(1), "_rate 1: must be 8000 to 1000000000000 bits per second"),
        (Limit(RATE_MIN - 1), "_rate 7999: "),
        (Limit(RATE_MAX + 1), "_rate 1000000000001: "),
        (Limit(10**18), "_rate 1000000000000000000: "),
        (Limit(-1), "_rate -1: "),
        (Limit(MBIT, -1), "_burst -1: must not be negative"),
        (Limit(0, 1), "_burst 1: needs an "),
    ],
)
def test_limits_that_are_refused(limit: Limit, told: str) -> None:
    for name, asked in (("ingress", Bandwidth(limit)), ("egress", Bandwidth(egress=limit))):
        with pytest.raises(InvalidArgument) as refused:
            part_of(asked)
        assert f"bandwidth: {name}{told}" in str(refused.value)
        assert refused.value.field == "bandwidth"


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "==", "=,",
        "i", "i0", "i7999", "e1000000000001", "i1000000,", ",e1000000", "x1000000",
        "i1000000e1000000", "e1000000,i1000000", "i1000000/0", "i1000000/4000", "i01000000",
        "i1000000,i1000000", "i1000000\n", "i-1000000", "i1000000/", "i٣٣٣٣٣٣",
    ],
)  # fmt: skip
def test_texts_that_are_not_canonical(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(text)


@given(some.text("ie0123456789/,", max_size=40))
def test_what_is_understood_is_canonical(text: str) -> None:
    try:
        found = parse(text)
    except InvalidArgument:
        return
    assert text_of(found) == text
