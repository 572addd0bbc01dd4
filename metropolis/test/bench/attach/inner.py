# SPDX-License-Identifier: Apache-2.0
"""The service's inner path: its engine, called in this process, without RPC."""

import logging
import sys
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_network
from typing import Any

from metropolis.node.core.network.workloads.datapath.host_ports import PART
from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.journal import Journal
from metropolis.node.core.network.workloads.host_ports import Mapping, part_of
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.test.bench.attach.commands import answer_commands
from metropolis.test.bench.attach.host import prepare
from metropolis.test.bench.attach.model import Op, Pod, host_ports
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
        call = self._cycle if op is Op.CYCLE else self._attach
        return [partial(call, pod, _mappings(pod, extra.get("ports", 0))) for pod in pods]

    def _attach(self, pod: Pod, mappings: Sequence[Mapping]) -> None:
        # As the gRPC API does: the text is a cost of ports.
        parts = part_of(mappings) if mappings else ()
        self._engine.attach(AttachIntent(pod.workload, pod.path, "eth0", parts=parts))

    def _cycle(self, pod: Pod, mappings: Sequence[Mapping]) -> None:
        self._attach(pod, mappings)
        self._engine.detach(pod.workload, pod.path, "eth0")

    def done(self, op: Op, pods: Sequence[Pod]) -> None:
        """See Work."""


def _mappings(pod: Pod, count: int) -> list[Mapping]:
    return [Mapping("tcp", port, own) for port, own in host_ports(pod, count)]


def main(arguments: list[str]) -> int:
    """inner PREFIX..., in the namespace that is the host."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    prepare()
    engine = Engine(KernelDatapath((PART,)), journal=Journal())
    engine.set_prefixes([ip_network(prefix) for prefix in arguments])
    engine.start()
    try:
        return answer_commands(Inner(engine))
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
