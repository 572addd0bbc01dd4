# SPDX-License-Identifier: Apache-2.0
"""The node of metropolis/test/e2e, the cluster of metropolis/test/cluster."""

import pytest

from metropolis.test.cluster.conftest import cluster
from metropolis.test.e2e.conftest import lab, node

# So that they say what was not as it should be.
pytest.register_assert_rewrite("metropolis.test.security.trials")

__all__ = ["cluster", "lab", "node"]
