# SPDX-License-Identifier: Apache-2.0
"""The fake kernel keeps the contract."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from metropolis.node.core.network.overlay.testing.contract import KernelContract
from metropolis.node.core.network.overlay.testing.fake import FakeKernel


@dataclass
class FakeBench:
    """See contract.Bench."""

    kernel: FakeKernel = field(default_factory=FakeKernel)

    def again(self) -> FakeKernel:
        return self.kernel

    def take_name(self) -> None:
        self.kernel.taken = True

    def delete_link(self) -> None:
        self.kernel.delete_link()

    def mtu(self) -> int:
        return self.kernel.mtu


class TestFake(KernelContract):
    """The whole contract."""

    @pytest.fixture
    def bench(self) -> FakeBench:
        return FakeBench()
