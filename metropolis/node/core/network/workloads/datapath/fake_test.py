# SPDX-License-Identifier: Apache-2.0
"""The fake keeps the datapath's contract."""

import queue
from dataclasses import replace

import pytest

from metropolis.node.core.network.workloads.datapath.interface import Datapath, Record
from metropolis.node.core.network.workloads.testing.contract import DatapathContract
from metropolis.node.core.network.workloads.testing.fake import HOME, FakeDatapath, FakeKernel


class FakeBench:
    """See contract.Bench."""

    not_netns = "/some/file"
    home = "/home"

    def __init__(self) -> None:
        self.kernel = FakeKernel(namespaces={self.home: HOME})
        self.removed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.fake = FakeDatapath(self.kernel)
        self.datapath: Datapath = self.fake
        self.fake.open(self.removed.put, lambda: None)
        self._count = 0

    def add_netns(self) -> str:
        self._count += 1
        path = f"/ns/{self._count}"
        self.kernel.add_netns(path)
        return path

    def kill_netns(self, path: str) -> None:
        self.fake.kill_netns(path)

    def again(self) -> Datapath:
        return FakeDatapath(self.kernel)

    def take_name(self, path: str, name: str) -> None:
        self.kernel.names_inside.add((self.kernel.namespaces[path], name))

    def set_mtu(self, record: Record, mtu: int) -> None:
        self.kernel.changed[record.host_ifindex] = replace(record, mtu=mtu)

    def take_host_route(self, record: Record) -> None:
        self.kernel.changed[record.host_ifindex] = replace(record, ips=record.ips[1:])

    def take_route(self, path: str, record: Record) -> None:
        self.kernel.routes_lost.add(record.host_ifindex)

    def forge(self, path: str, record: Record) -> None:
        self.kernel.links[record.host_ifindex] = record


@pytest.fixture
def bench() -> FakeBench:
    return FakeBench()


class TestFakeDatapath(DatapathContract):
    """The whole contract."""
