# SPDX-License-Identifier: Apache-2.0
"""No two pods of a subject have a common host port."""

import itertools

import pytest

from metropolis.test.bench.attach.model import MANY_PORTS, Pod, host_ports

_CROWD = 2100  # pods that are attached at the same time


def pod(number: int) -> Pod:
    return Pod(number, str(number), "")


@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("first", [2, 2490, 24_990])
def test_host_ports(count: int, first: int) -> None:
    own = [host_ports(pod(first + n), count) for n in range(_CROWD)]
    many = [host_ports(pod(number), MANY_PORTS) for number in range(5)]
    assert {len(ports) for ports in own} == {count}
    assert {len(ports) for ports in many} == {MANY_PORTS}
    there = [port for port, _ in itertools.chain(*own, *many)]
    assert len(set(there)) == len(there)
    assert 1024 < min(there) <= max(there) < 65_536


def test_ten_are_not_a_range() -> None:
    """A range would be one entry in the text of the attachment."""
    ports = [port for port, _ in host_ports(pod(7), 10)]
    assert all(after - before == 2 for before, after in itertools.pairwise(ports))
