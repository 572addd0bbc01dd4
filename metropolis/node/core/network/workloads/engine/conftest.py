# SPDX-License-Identifier: Apache-2.0
"""An engine on the fake datapath for each test."""

from collections.abc import Iterator

import pytest

from metropolis.node.core.network.workloads.testing.world import Held, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def held() -> Iterator[Held]:
    """One that deletes links when the test says so."""
    made = Held()
    yield made
    made.end()
