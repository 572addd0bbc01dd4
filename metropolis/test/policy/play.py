# SPDX-License-Identifier: Apache-2.0
"""Plays cases on a node: real pods, real connections.

Nine pods and an outside, each with a helper that listens and asks (see
test.ports.probes); others route to the pods. A step sets policies, namespaces
and labels by the service's API, and asks everybody everything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from metropolis.node.core.network.policy import messages
from metropolis.node.core.network.policy.kubernetes import convert
from metropolis.node.core.network.policy.spec import policy_pb2 as pb
from metropolis.node.core.network.policy.spec import policy_pb2_grpc as rpc
from metropolis.node.core.network.workloads.spec import workload_pb2 as workload
from metropolis.test.policy import scene
from metropolis.test.policy.oracle import IP
from metropolis.test.policy.scene import OUTSIDE, Probe, Step
from metropolis.test.ports.world import DIRECTORY, PREFIXES, Space, World
from metropolis.test.ports.world import OUTSIDE as OUTSIDE_ADDRESSES
from metropolis.test.world.namespaces import WorldError

_LIMIT_S: Final = 60.0
_ASK_S: Final = 1.0
_AGAIN: Final = 3  # how often what must pass is asked: a busy machine is slow

_ROUTES: Final = f"""\
route add {PREFIXES[4]} via 192.0.2.10
route add {PREFIXES[6]} via 2001:db8:2::10
"""


_LISTENERS: Final = [
    *((protocol, "*", port) for protocol in ("tcp", "udp") for port in scene.PORTS),
    *(("sctp", address, port) for address in ("0.0.0.0", "::") for port in scene.PORTS),
]


@dataclass(frozen=True)
class Wrong:
    """An answer that differs from the oracle's. got: the client's view."""

    cell: str
    expected: str
    got: str


class Play:
    """The node, its pods and the outside, in new namespaces: see test.world."""

    def __init__(self, log: Path) -> None:
        """log: file for what node core reports. Raises WorldError."""
        self.world = World(log)
        self._stub = rpc.NetworkPoliciesStub(self.world.channel)
        self._generation = 0
        self._identities: dict[str, workload.Identity] = {}
        self._listening: set[str] = set()
        self._pool = ThreadPoolExecutor(16)

    def build(self) -> None:
        """Make the links and the outside's listeners, and start the node. It
        knows no policies of a run before.
        """
        shutil.rmtree(DIRECTORY / "network" / "policy", ignore_errors=True)
        self.world.build()
        self.world.lan.run(["ip", "-batch", "-"], _ROUTES)
        self.world.start(access=True, versions=scene.VERSIONS, routed=True)
        self.world.outside.listen(_LISTENERS)

    def close(self) -> None:
        """End everything."""
        self._pool.shutdown()
        self.world.close()

    # ---- A state of the cluster ---------------------------------------------

    def address(self, name: str, version: int) -> IP:
        """Return an address; see scene.Addresses."""
        if name == OUTSIDE:
            return ip_address(OUTSIDE_ADDRESSES[version])
        return ip_address(self.world.attached[name][version])

    def enter(self, step: Step) -> None:
        """Have all of a step in force. Raises WorldError, grpc.RpcError."""
        for name in [one for one in self.world.attached if one not in step.pods]:
            self.world.detach(name)
            self._identities.pop(name)
        for name, labels in step.pods.items():
            self._pod(name, labels)
        found = self._read(step)
        self._generation += 1
        request = pb.SetPoliciesRequest(
            generation=self._generation,
            policies=map(messages.policy, found),
            namespaces=messages.namespaces(step.namespaces),
        )
        self._stub.SetPolicies(request, timeout=_LIMIT_S)

    def _read(self, step: Step) -> tuple[Any, ...]:
        if not step.policies:
            return ()
        # JSON is YAML, and leaves no label for a boolean.
        texts = [json.dumps(scene.resolve(one, self.address)) for one in step.policies]
        read = convert.read("\n---\n".join(texts), "case")
        if errors := [one for one in read.problems if not one.warning]:
            raise WorldError(f"{step.what}: {errors[0]}")
        return tuple(read.policies)

    def _pod(self, name: str, labels: Mapping[str, str]) -> None:
        """Attach a pod, or give it its labels."""
        identity = workload.Identity(
            namespace=name.partition("/")[0],
            labels=labels,
            ports=[
                workload.ContainerPort(name=word, protocol=protocol.lower(), port=port)
                for word, (protocol, port) in scene.ports(name).items()
            ],
        )
        if name not in self.world.attached:
            pod = self.world.pod(name)
            self.world.attach(name, identity=identity)
            if name not in self._listening:
                self._listening.add(name)
                pod.listen(_LISTENERS)
        elif identity != self._identities[name]:
            request = pb.SetLabelsRequest(workload_id=name, identity=identity)
            self._stub.SetLabels(request, timeout=_LIMIT_S)
        self._identities[name] = identity

    # ---- Questions ----------------------------------------------------------

    def ask(self, name: str, step: Step, probes: Iterable[Probe]) -> tuple[int, list[Wrong]]:
        """Ask all; return how many, and what was wrong. name: of the case."""
        chosen = set(probes)
        answers = [(one, ok) for one, ok in step.answers(self.address) if one in chosen]
        by_source: dict[str, list[tuple[Probe, bool]]] = {}
        for probe, allowed in answers:
            by_source.setdefault(probe.source, []).append((probe, allowed))
        wrong = []
        for found in self._pool.map(self._ask_from, by_source.values()):
            for probe, got in found:
                expected = "denied" if got.startswith("answered") else "allowed"
                wrong.append(Wrong(f"{name}/{step.what}/{probe}", expected, got))
        return len(answers), sorted(wrong, key=lambda one: one.cell)

    def _ask_from(self, asked: Sequence[tuple[Probe, bool]]) -> list[tuple[Probe, str]]:
        """Return what was not as it should be, and what the client saw."""
        source = asked[0][0].source
        space = self.world.outside if source == OUTSIDE else self.world.pod(source)
        wrong = self._differing(space, asked)
        for _ in range(_AGAIN):
            # What was answered and must not be is wrong at once.
            late = [one for one in wrong if one[1]]
            if not late:
                break
            wrong = [one for one in wrong if not one[1]]
            wrong += self._differing(space, [(probe, True) for probe, _, _ in late])
        return [(probe, got) for probe, _, got in wrong]

    def _differing(
        self, space: Space, asked: Sequence[tuple[Probe, bool]]
    ) -> list[tuple[Probe, bool, str]]:
        asks = [
            {
                "protocol": probe.protocol.lower(),
                "address": str(self.address(probe.destination, probe.version)),
                "port": probe.port,
                "timeout": _ASK_S,
            }
            for probe, _ in asked
        ]
        return [
            (probe, allowed, f"{answer['by']} {answer['error'] or answer['name']}".strip())
            for (probe, allowed), answer in zip(asked, space.ask(asks), strict=True)
            if (answer["by"] == "answered") is not allowed
        ]
