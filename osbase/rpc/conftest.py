# SPDX-License-Identifier: Apache-2.0
"""Both servers, for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from osbase.rpc.choose import QUEUES, STOCK
from osbase.rpc.testing import Service


@pytest.fixture(params=[QUEUES, STOCK])
def kind(request: pytest.FixtureRequest) -> str:
    """Run each test that uses it for both servers."""
    name: str = request.param
    return name


@pytest.fixture
def service(tmp_path: Path, kind: str) -> Iterator[Service]:
    """Yield a server of one kind, with handlers and a client."""
    made = Service(tmp_path, kind)
    yield made
    made.close()
