# SPDX-License-Identifier: Apache-2.0
"""An engine over the fake, for its tests."""

from collections.abc import Sequence
from ipaddress import ip_network

from metropolis.node.core.network.workloads.engine.engine import Engine
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
