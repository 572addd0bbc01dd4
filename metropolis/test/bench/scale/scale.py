# SPDX-License-Identifier: Apache-2.0
"""Measure a node in a cluster of thousands.

    ./bazelw run //metropolis/test/bench/scale [-- --nodes 2000 --json]

One real node runs in a machine, and etcd with TLS on the lab's router. All
other nodes are records in etcd, written as nodes write them, under leases that
are kept alive. tracefs in the node's kernel records requests to the kernel, on
the node's own clock. There is no answer at the simulated nodes' addresses.

Limits. Without KVM the node's CPU is emulated, some ten times slower than real
ones: times are only comparable with each other, counts and bytes are exact. The
overlay's tests cover peers that answer, and traffic. Here, the overlay's second
look at a peer that changed its key always finds no handshake, and creates the
peer again. In the churn that is part of the node's delay. The kernel tries
sessions with new peers for 90 s, and the idle use of the machine is measured in
that time, so the machine's CPU time of a change in the large cluster is
reported too low. On a quiet host, use node core's CPU time.

Exit status: 0; 1 when the kernel does not agree with etcd, or a measurement
failed; 130 after Ctrl-C. Whether targets are met is only printed.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metropolis.node.core.curator.credentials import CredentialsError
from metropolis.node.core.curator.etcd import EtcdError
from metropolis.test.bench.common import vm
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.terminal import positive, say
from metropolis.test.bench.scale import report, simulated
from metropolis.test.bench.scale.experiment import experiment
from metropolis.test.bench.scale.model import Measured, Plan
from metropolis.test.bench.scale.oracle import OracleError
from metropolis.test.bench.scale.trace import TraceError
from metropolis.test.etcd import EtcdFailed
from metropolis.test.launch.child import ChildError
from metropolis.test.launch.images import ImagesError
from metropolis.test.launch.lab import LabError, enter_namespaces
from metropolis.test.launch.node import NodeError
from osbase.test.agent.client import AgentError
from osbase.test.qemu.config import Accel, ConfigError
from osbase.test.qemu.vm import VmError

EXPECTED = (
    AgentError, BenchError, ChildError, ConfigError, CredentialsError, EtcdError, EtcdFailed,
    ImagesError, LabError, NodeError, OracleError, TimeoutError, TraceError, VmError,
)  # fmt: skip


async def measure(plan: Plan, directory: Path) -> tuple[dict[str, Any], Measured]:
    """Run everything; return the machine and the figures. Raises one of
    EXPECTED.
    """
    async with experiment(plan, directory) as (node, work):
        try:
            found = await work.run()
        except Exception:
            say(f"--- the node's logs\n{await node.logs()}\n---")
            raise
        accel = node.accel or Accel.TCG
    return {**vm.describe(accel), "nodes": plan.nodes}, found


def run(plan: Plan) -> tuple[dict[str, Any], Measured]:
    """Call measure() in a temporary directory."""
    # Bazel's own directories are too deep for unix sockets.
    directory = Path(tempfile.mkdtemp(prefix="m-scale-", dir="/tmp"))
    try:
        return asyncio.run(measure(plan, directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def parse(arguments: Sequence[str]) -> tuple[Plan, bool]:
    """Return the plan, and whether to print JSON. Raises SystemExit."""
    parser = argparse.ArgumentParser(
        prog="scale",
        usage="%(prog)s [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--nodes", type=positive, default=2000, help="of the cluster (default: 2000)")
    add("--churn", type=positive, default=100, help="nodes that churn (default: 100)")
    add("--rate", type=float, default=10.0, help="their changes a second (default: 10)")
    add("--bursts", type=positive, default=6, help="of 10 s of churn (default: 6)")
    add("--samples", type=positive, default=20, help="changes, one by one (default: 20)")
    add("--seed", type=int, default=1, help="of the choice of nodes (default: 1)")
    add("--json", action="store_true", help="print one line of JSON, no table")
    options = parser.parse_args(arguments)
    plan = Plan(
        nodes=options.nodes,
        samples=options.samples,
        unrelated=15 * options.samples,
        churn=options.churn,
        rate=options.rate,
        bursts=options.bursts,
        seed=options.seed,
    )
    if not plan.first + plan.churn <= plan.nodes <= simulated.MAX_NODES:
        parser.error(f"nodes: from {plan.first + plan.churn} to {simulated.MAX_NODES}")
    if not 0 < plan.rate <= 1000:
        parser.error("rate: above 0, at most 1000")
    return plan, options.json


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    plan, as_json = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        enter_namespaces()
        machine, found = run(plan)
    except EXPECTED as error:
        say(f"scale: {error or type(error).__name__}")
        return 1
    except KeyboardInterrupt:
        say("scale: interrupted; the machine is gone")
        return 130
    if as_json:
        print(json.dumps(report.to_json(machine, plan, found)))
    else:
        print(report.table(machine, plan, found))
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
