# SPDX-License-Identifier: Apache-2.0
"""The fake keeps the datapath's contract."""

import pytest

from metropolis.node.core.network.workloads.testing.contract import DatapathContract
from metropolis.node.core.network.workloads.testing.fake_bench import FakeBench
from metropolis.node.core.network.workloads.testing.parts_contract import PartsContract
from metropolis.node.core.network.workloads.testing.toy_part import COLOUR


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench()


@pytest.fixture
def parts_bench() -> FakeBench:
    return FakeBench((COLOUR,))


class TestFakeDatapath(DatapathContract):
    """All of the contract."""


class TestFakeParts(PartsContract):
    """All of the contract of parts."""
