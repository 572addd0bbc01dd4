# SPDX-License-Identifier: Apache-2.0
"""An engine on the fake datapath for each test."""

import pytest

from metropolis.node.core.network.workloads.testing.world import World


@pytest.fixture
def world() -> World:
    return World()
