# SPDX-License-Identifier: Apache-2.0
"""The service's inner path: its engine, called in this process, without RPC."""

import logging
import sys
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_network
from typing import Any

from metropolis.node.core.network.host import prepare_host
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.journal import Journal
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.test.bench.attach.commands import answer_commands
from metropolis.test.bench.attach.model import Op, Pod
from metropolis.test.bench.attach.timing import Call


class Inner:
    """commands.Work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def prepare(self, op: Op, pods: Sequence[Pod], extra: dict[str, Any]) -> list[Call]:
        """See Work."""
        engine = self._engine
        if op is Op.DEL:
            return [partial(engine.detach, pod.workload, pod.path, "eth0") for pod in pods]
        intents = [AttachIntent(pod.workload, pod.path, "eth0") for pod in pods]
        return [partial(self._cycle if op is Op.CYCLE else engine.attach, one) for one in intents]

    def _cycle(self, intent: AttachIntent) -> None:
        self._engine.attach(intent)
        self._engine.detach(intent.workload_id, intent.netns_path, intent.if_name)

    def done(self, op: Op, pods: Sequence[Pod]) -> None:
        """See Work."""


def main(arguments: list[str]) -> int:
    """inner PREFIX..., in the namespace that is the host."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    prepare_host()
    engine = Engine(KernelDatapath(), journal=Journal())
    engine.set_prefixes([ip_network(prefix) for prefix in arguments])
    engine.start()
    try:
        return answer_commands(Inner(engine))
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
