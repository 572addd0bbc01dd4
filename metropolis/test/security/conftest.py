# SPDX-License-Identifier: Apache-2.0
"""The node of metropolis/test/e2e, the cluster of metropolis/test/cluster."""

import pytest

from metropolis.test.cluster.conftest import cluster, left_whole
from metropolis.test.e2e.conftest import lab, left_clean, node, world
from metropolis.test.launch.shared import shared

# So that they say what was not as it should be.
pytest.register_assert_rewrite("metropolis.test.security.trials")

__all__ = ["cluster", "lab", "left_clean", "left_whole", "node", "shared", "world"]
