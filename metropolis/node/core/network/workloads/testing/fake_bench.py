# SPDX-License-Identifier: Apache-2.0
"""The fake as the contract's tests use it."""

import contextlib
import queue
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address

from metropolis.node.core.network.workloads.datapath.interface import Datapath, Record
from metropolis.node.core.network.workloads.datapath.parts import LinkPart
from metropolis.node.core.network.workloads.testing.fake import HOME, FakeDatapath, FakeKernel
from metropolis.node.core.network.workloads.testing.toy_part import (
    COLOURS,
    RESERVED,
    element,
    shown_key,
)
from osbase.netlink.sock_diag import Listener


class FakeBench:
    """See contract.Bench, and parts_contract.PartsBench."""

    not_netns = "/some/file"
    home = "/home"

    def __init__(self, parts: Sequence[LinkPart] = ()) -> None:
        self.parts = parts
        self.kernel = FakeKernel(namespaces={self.home: HOME})
        self.removed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.fake = FakeDatapath(self.kernel, parts=self.parts)
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
        return FakeDatapath(self.kernel, parts=self.parts)

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

    def keys(self) -> set[str]:
        return {shown_key(key) for _, key in self.kernel.elements}

    def take_key(self, key: str) -> None:
        del self.kernel.elements[COLOURS, element(key).key]

    def add_key(self, key: str) -> None:
        one = element(key, "10.9.9.9")
        self.kernel.elements[COLOURS, one.key] = (0, one)

    @contextlib.contextmanager
    def listen(self, address: str) -> Iterator[None]:
        ip = ip_address(address)
        at = None if ip.is_unspecified else ip
        self.kernel.sockets.append(("tcp", Listener(ip.version, RESERVED, at, 7)))
        yield
        self.kernel.sockets.clear()
