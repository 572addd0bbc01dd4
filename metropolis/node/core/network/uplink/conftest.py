# SPDX-License-Identifier: Apache-2.0
"""A link and a server for each test that requests them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metropolis.node.core.network.uplink.testing import lab


@pytest.fixture
def world() -> Iterator[None]:
    """See lab."""
    with lab():
        yield
