# SPDX-License-Identifier: Apache-2.0
"""The node's network service as far as workloads see it, in one process: host
settings and rules, engine, gRPC and CNI sockets.

    node DIRECTORY PREFIX...     DIRECTORY/workload.sock, DIRECTORY/cni.sock

The parts are put together as network.service does, without its supervisor and
its uplink. Writes `ready` when both sockets serve; ends by a signal, uncaught.
"""

from metropolis.node.core import start  # noqa: F401  # before all others

# isort: split

import asyncio
import logging
import sys
from ipaddress import ip_network
from pathlib import Path

from metropolis.node.core.network.cni.server import CniServer
from metropolis.node.core.network.workloads.api.server import WorkloadServer
from metropolis.node.core.network.workloads.datapath.host_ports import PART
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.journal import Journal
from metropolis.test.bench.attach.host import prepare


async def _serve(directory: Path, prefixes: list[str]) -> None:
    engine = Engine(KernelDatapath((PART,)), journal=Journal())
    engine.start()
    engine.set_prefixes([ip_network(prefix) for prefix in prefixes])
    server = WorkloadServer(engine, directory / "workload.sock")
    await asyncio.to_thread(server.start)
    cni = CniServer(engine, directory / "cni.sock")
    serving = asyncio.create_task(cni.run())
    # The task runs until its first await; by then it listens, or has failed.
    await asyncio.sleep(0)
    if not serving.done():
        print("ready", flush=True)
    await serving


def main(arguments: list[str]) -> int:
    """See the module."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    prepare()
    asyncio.run(_serve(Path(arguments[0]), arguments[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
