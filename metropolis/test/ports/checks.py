# SPDX-License-Identifier: Apache-2.0
"""What cases have in common: a world, and the results of its checks."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import grpc

from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.test.ports import kernel, oracle
from metropolis.test.ports.oracle import At
from metropolis.test.ports.table import Result, describe, request
from metropolis.test.ports.world import ADDRESSES, Space, World
from metropolis.test.world.namespaces import WorldError

_ANSWER_S: Final = 5.0

NODE, NODE6 = ADDRESSES[At.NODE, 4], ADDRESSES[At.NODE, 6]
SECOND, SECOND6 = ADDRESSES[At.SECOND, 4], ADDRESSES[At.SECOND, 6]


class Checks:
    """Collects results. Each check adds one."""

    def __init__(self, case: str, world: World, setting: oracle.Setting) -> None:
        self._case = case
        self.world = world
        self.setting = setting
        self.results: list[Result] = []

    def check(self, name: str, ok: bool, expected: str, got: str, why: str) -> None:
        """Add a result; its cell is the case's and this name."""
        self.results.append(Result(f"case/{self._case}/{name}", expected, got, why, ok))

    def failed(self, error: Exception) -> None:
        """Add that the case could not go on."""
        text = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else ""
        self.check("all of it", False, "no error", text or str(error), "the case ends here")

    def answers(
        self,
        name: str,
        client: Space,
        address: str,
        port: int,
        by: Space | str,
        why: str,
        *,
        number: int = 0,
        protocol: str = "tcp",
        source: str = "",
    ) -> None:
        """Check the answer of one question. by: the space that must answer, or
        `refused`. number: its port, by default the one that is asked. source:
        what it must see; "": any.
        """
        got = ask(client, protocol, address, port)
        if isinstance(by, str):
            self.check(name, describe(got) == by, by, describe(got), why)
            return
        wanted = (by.name, number or port)
        ok = (got["name"], got["port"]) == wanted and source in ("", got["source"])
        expected = f"{by.name} port {wanted[1]}, which sees {source or 'any address'}"
        self.check(name, ok, expected, describe(got), why)

    def refused(
        self,
        name: str,
        ports: Iterable[pb.PortMapping],
        code: str,
        words: Sequence[str],
        why: str,
        workload: str = "refused",
    ) -> None:
        """Check that an Attach fails with a code and all these words, and that
        nothing is left. code: names of codes with `|` between them.
        """
        node = self.world.node
        before = kernel.snapshot(node)
        listed = self._listed()
        got, text = attempt(self.world, workload, ports)
        if got == "OK":
            self.world.detach(workload)
        missing = [word for word in words if word not in text]
        expected = f"{code} with {', '.join(map(repr, words))}" if words else code
        self.check(name, got in code.split("|") and not missing, expected, f"{got}: {text}", why)
        more = kernel.left(node, before) + sorted(self._listed() - listed)
        self.check(f"{name}/left", not more, "nothing", "; ".join(more[:3]) or "nothing", why)

    def _listed(self) -> set[str]:
        answer = self.world.stub.List(pb.ListRequest(), timeout=_ANSWER_S)
        return {one.workload_id for one in answer.attachments}

    def allowed(self, name: str, workload: str, ports: Iterable[pb.PortMapping], why: str) -> None:
        """Check that an Attach succeeds; detach again."""
        got, text = attempt(self.world, workload, ports)
        if got == "OK":
            self.world.detach(workload)
        self.check(name, got == "OK", "OK", f"{got}: {text}" if text else got, why)

    def elements(
        self,
        name: str,
        attached: Iterable[tuple[str, Sequence[oracle.Port]]],
        why: str,
        limit_s: float = _ANSWER_S,
    ) -> None:
        """Check that the kernel has the elements of these workloads only."""
        wanted = oracle.elements([(self.world.attached[one], ports) for one, ports in attached])
        found = kernel.until(
            lambda: kernel.differences(self.world.node, wanted), lambda more: not more, limit_s
        )
        count = sum(map(len, wanted.values()))
        self.check(name, not found, f"these {count}", "; ".join(found[:3]) or "these", why)


def ask(client: Space, protocol: str, address: str, port: int) -> dict[str, Any]:
    """Return the answer of one question."""
    one = {"protocol": protocol, "address": address, "port": port, "timeout": _ANSWER_S}
    return client.ask([one])[0]


def attempt(
    world: World, workload: str, ports: Iterable[pb.PortMapping], space: str = ""
) -> tuple[str, str]:
    """Attach; return the name of the code, and the text of the error."""
    try:
        world.attach(workload, ports, space)
    except grpc.RpcError as error:
        return error.code().name, str(error.details())
    return "OK", ""


@contextlib.contextmanager
def listening(space: Space, name: str, sockets: Iterable[Sequence[Any]]) -> Iterator[None]:
    """Listen for the time of a block."""
    space.listen(sockets, name)
    try:
        yield
    finally:
        space.forget(name)


@contextlib.contextmanager
def server(
    world: World,
    workload: str,
    ports: Sequence[oracle.Port],
    *,
    mute: bool = False,
    space: str = "",
) -> Iterator[Space]:
    """Attach a workload that listens at its container ports; for a block."""
    pod = world.pod(space or workload)
    sockets = [
        (protocol, address, number, mute)
        for protocol, number in dict.fromkeys((p.protocol, p.container_port) for p in ports)
        for address in ("0.0.0.0", "::")
    ]
    with listening(pod, pod.name, sockets), world.workload(workload, request(ports), space):
        yield pod


def answering(client: Space, protocol: str, address: str, port: int, limit_s: float) -> float:
    """Return the seconds until the port answers; -1: not within the limit."""
    begun = time.monotonic()
    while (now := time.monotonic() - begun) < limit_s:
        one = {"protocol": protocol, "address": address, "port": port, "timeout": 0.5}
        if client.ask([one])[0]["by"] == "answered":
            return now
        time.sleep(0.02)
    return -1.0


def kill(world: World) -> None:
    """Kill the service by SIGKILL."""
    world.core.stop(signal.SIGKILL)


type Case = Callable[[Checks], None]


def run(name: str, case: Case, world: World, setting: oracle.Setting) -> list[Result]:
    """Run one case; what it raises is a wrong result."""
    checks = Checks(name, world, setting)
    try:
        case(checks)
    except (grpc.RpcError, WorldError, AssertionError, KeyError) as error:
        checks.failed(error)
    return checks.results
