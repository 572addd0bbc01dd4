# SPDX-License-Identifier: Apache-2.0
"""An engine whose attachments may have the toy part, over either datapath."""

import itertools
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Protocol

from metropolis.node.core.network.workloads.datapath.elements import parse_comment
from metropolis.node.core.network.workloads.datapath.interface import Datapath
from metropolis.node.core.network.workloads.datapath.parts import LinkPart
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent, Attachment, PartText
from metropolis.node.core.network.workloads.testing.fake import HOME, FakeDatapath, FakeKernel
from metropolis.node.core.network.workloads.testing.lab import Pod, await_equal, objects
from metropolis.node.core.network.workloads.testing.toy_part import (
    COLOUR,
    COLOURS,
    TABLE,
    element,
    shown_key,
)
from osbase.nftables import digest

PREFIXES = [ip_network("10.0.0.0/28"), ip_network("fd00::/124")]
RED: tuple[PartText, ...] = (("c", "red"),)
BLUE_RED: tuple[PartText, ...] = (("c", "blue,red"),)

WAIT_S = 10.0


class Host(Protocol):
    """What the tests need: a kernel and an engine over it."""

    engine: Engine

    def restart(self, parts: Sequence[LinkPart] = (COLOUR,)) -> None:
        """Another engine over what the last one left."""

    def add_netns(self) -> str:
        """Return the path of a new namespace."""

    def kill_netns(self, path: str) -> None:
        """End it."""

    def keys(self) -> set[str]:
        """The keys in the part's map."""

    def take_key(self, key: str) -> None:
        """Remove one behind everybody's back."""


class FakeHost:
    """See Host."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(namespaces={"/home": HOME})
        self._count = itertools.count()
        self.restart()

    def restart(self, parts: Sequence[LinkPart] = (COLOUR,)) -> None:
        self.datapath = FakeDatapath(self.kernel, parts=parts)
        self.engine = started(self.datapath)

    def add_netns(self) -> str:
        path = f"/{next(self._count)}"
        self.kernel.add_netns(path)
        return path

    def kill_netns(self, path: str) -> None:
        self.datapath.kill_netns(path)

    def keys(self) -> set[str]:
        return {shown_key(key) for _, key in self.kernel.elements}

    def take_key(self, key: str) -> None:
        del self.kernel.elements[COLOURS, element(key).key]


class KernelHost:
    """See Host."""

    def __init__(self) -> None:
        nft(TABLE)
        self.pods: dict[str, Pod] = {}
        self.engine = started(KernelDatapath((COLOUR,)))

    def restart(self, parts: Sequence[LinkPart] = (COLOUR,)) -> None:
        self.engine.close()
        self.engine = started(KernelDatapath(parts))

    def add_netns(self) -> str:
        pod = Pod()
        self.pods[pod.path] = pod
        return pod.path

    def kill_netns(self, path: str) -> None:
        self.pods.pop(path).close()

    def keys(self) -> set[str]:
        with digest.open_socket() as sock:
            found = digest.element_comments(sock, "inet", "toy", "colours")
        return {
            shown_key(ours.key) if (ours := parse_comment(COLOURS, comment)) else comment
            for comment in found or ()
        }

    def take_key(self, key: str) -> None:
        nft(f"delete element inet toy colours {{ {key} }}")

    def close(self) -> None:
        self.restart()
        self.engine.collect(lambda _, __: False)
        self.engine.close()
        for pod in self.pods.values():
            pod.close()
        nft("flush ruleset")


def started(datapath: Datapath) -> Engine:
    engine = Engine(datapath)
    engine.start()
    engine.set_prefixes(PREFIXES)
    return engine


def nft(command: str) -> None:
    subprocess.run(["nft", command], check=True)


@contextmanager
def kernel_host() -> Iterator[KernelHost]:
    """One that leaves nothing behind, but the first hop on lo."""
    before = objects()
    made = KernelHost()
    with_first_hop = objects()
    yield made
    made.close()
    # A link that a test leaves ends with its namespace, a moment later.
    assert awaited(lambda: objects() in (before, with_first_hop))


def awaited(look: Callable[[], bool]) -> bool:
    """Return whether it becomes so: events come by themselves."""
    return await_equal(look, True, WAIT_S)


def always(_: str) -> bool:
    return True


def attach(
    host: Host, path: str, parts: tuple[PartText, ...] = RED, workload_id: str = "w1"
) -> Attachment:
    return host.engine.attach(AttachIntent(workload_id, path, "eth0", parts=parts))
