# SPDX-License-Identifier: Apache-2.0
"""A server with one pod, and a gate in the middle of attaches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from metropolis.node.core.network.workloads.api.testing import Gate, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)
