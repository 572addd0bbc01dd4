# SPDX-License-Identifier: Apache-2.0
"""An engine over the fake, for its tests."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import ip_network
from typing import Any

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import KernelRefused
from metropolis.node.core.network.workloads.model import AttachIntent, Attachment
from metropolis.node.core.network.workloads.testing.fake import HOME, FakeDatapath, FakeKernel

PREFIXES = [ip_network("10.0.0.0/29"), ip_network("fd00::/125")]
WAIT_S = 10.0


class World:
    """An engine over a fake kernel in which `/a` to `/h` are namespaces."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(namespaces={"/home": HOME})
        for letter in "abcdefgh":
            self.kernel.add_netns(f"/{letter}")
        self.restart()

    def restart(self) -> Engine:
        self.datapath = FakeDatapath(self.kernel)
        self.engine = Engine(self.datapath)
        self.engine.start()
        self.engine.set_prefixes(PREFIXES)
        return self.engine


def intent(workload_id: str = "w1", path: str = "/a", if_name: str = "eth0") -> AttachIntent:
    return AttachIntent(workload_id, path, if_name)


def ids(attachments: Sequence[Attachment]) -> set[tuple[str, str]]:
    return {(one.workload_id, one.if_name) for one in attachments}


class Held(World):
    """Links are deleted while `go` is set. groups: of each deletion, the ids.
    refusing: ids whose deletion the kernel refuses.
    """

    def restart(self) -> Any:
        self.go = threading.Event()
        self.groups: list[list[str]] = []
        self.refusing: set[str] = set()
        self.pool = ThreadPoolExecutor(64)
        engine = super().restart()
        self.datapath.on_remove = self.remove
        return engine

    def remove(self, records: Sequence[Record]) -> None:
        found = [one.workload_id for one in records]
        if refused := self.refusing & set(found):
            raise KernelRefused(f"detach {', '.join(refused)}: EPERM")
        assert self.go.wait(WAIT_S)
        self.groups.append(found)

    def waits(self, call: Callable[[], object]) -> Future[object]:
        """Begin a call; it waits for a removal."""
        ended: Any = self.engine._removals._ended
        before = len(ended._waiters)
        future = self.pool.submit(call)
        while len(ended._waiters) == before:
            assert not future.done(), future.result()
        return future

    def end(self) -> None:
        self.go.set()
        self.refusing = set()
        self.engine.close()
        self.pool.shutdown()


def detached(world: Held, *more: str) -> None:
    """w1 in /a, with the prefix's first address, is DETACHED."""
    for number, name in enumerate(("w1", *more)):
        world.engine.attach(intent(name, f"/{'abcdefgh'[number]}"))
        world.engine.detach(name)
