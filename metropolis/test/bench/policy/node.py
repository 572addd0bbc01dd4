# SPDX-License-Identifier: Apache-2.0
"""The node's network service with policies, in one process.

    node DIRECTORY POLICIES PREFIX...     DIRECTORY/workload.sock

Has so many synthetic policies, 0: none. Writes `ready` when the socket serves;
ends by a signal, uncaught.
"""

from metropolis.node.core import start  # noqa: F401  # before all others

# isort: split

import signal
import sys
from ipaddress import ip_network
from pathlib import Path

from metropolis.node.core.network.policy.api import Methods
from metropolis.node.core.network.policy.live import LiveKernel
from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.policy.sources import Source
from metropolis.node.core.network.policy.store import Store
from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.registry import PARTS
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.journal import Journal
from metropolis.test.bench.attach.host import prepare
from metropolis.test.bench.policy import synthetic


def main(arguments: list[str]) -> int:
    """See the module."""
    directory, policies = Path(arguments[0]), int(arguments[1])
    prepare()
    conditions = Conditions()
    manager = Manager(LiveKernel(), Store(directory / "policy"), conditions)
    engine = Engine(KernelDatapath(PARTS), conditions, Journal(), manager)
    engine.start()
    engine.set_prefixes([ip_network(prefix) for prefix in arguments[2:]])
    if policies:
        manager.set_policies(Source("api", 1, synthetic.policies(policies)))
    server = WorkloadServer(engine, directory / "workload.sock", more=Methods(manager).more())
    server.start()
    print("ready", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
