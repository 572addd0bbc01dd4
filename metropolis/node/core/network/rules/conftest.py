# SPDX-License-Identifier: Apache-2.0
"""One set of links for a module's tests: making it takes most of a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metropolis.node.core.network.rules.testing.lab import lab


@pytest.fixture(scope="module")
def links() -> Iterator[None]:
    """See lab. Each test loads its own rules."""
    with lab():
        yield
