# SPDX-License-Identifier: Apache-2.0
"""The kernel's datapath for each test; nothing is left behind."""

from collections.abc import Iterator

import pytest

from metropolis.node.core.network.workloads.testing.kernel_bench import KernelBench
from metropolis.node.core.network.workloads.testing.lab import objects


@pytest.fixture
def bench() -> Iterator[KernelBench]:
    made = KernelBench()
    before = objects()
    yield made
    made.close()
    assert objects() == before
