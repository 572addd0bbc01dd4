# SPDX-License-Identifier: Apache-2.0
"""What a new connection and an established flow cost, by rule set.

All rule sets are measured in each round, one behind the other, on one CPU:
their ratios hold where the times do not.
"""

import socket
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Final

from metropolis.node.core.network.policy.compiler import compile_tables
from metropolis.node.core.network.policy.kernel import PolicyKernel
from metropolis.node.core.network.policy.model import Workload, World
from metropolis.node.core.network.policy.tables import Tables
from metropolis.node.core.network.rules import host_ports
from metropolis.node.core.network.workloads.model import Identity
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.terminal import say
from metropolis.test.bench.packets.packets import Host, pod_address
from metropolis.test.bench.policy import chains, synthetic
from metropolis.test.bench.policy.report import Figure, by_round
from osbase import conntrack
from osbase.nftables import Nftables

NO_TABLE: Final = "no table"
NO_POLICIES: Final = "no policies"

_PORT: Final = 1002  # of packets.traffic: it greets each connection
_TIMEVAL: Final = struct.pack("ll", 30, 0)
_RESET: Final = struct.pack("ii", 1, 0)  # no TIME_WAIT

type Load = Callable[[], None]


def world(policies: int, addresses: int) -> World:
    """Return synthetic policies and workloads, and the two pods of a Host; the
    first reaches the second.
    """
    apps = min(policies, synthetic.APPS)
    pods = [
        Workload(
            f"pod{number} eth0",
            tuple(ip_address(pod_address(number, version)) for version in (4, 6)),
            *_labels(synthetic.identity(number, apps)),
        )
        for number in (0, 1)
    ]
    others = [
        Workload(f"{one.workload_id} eth0", one.ips, *_labels(synthetic.identity(number, apps)))
        for number in range(max(addresses // 2 - len(pods), 0))
        for one in (synthetic.record(number),)
    ]
    return World(synthetic.policies(policies), {}, (*pods, *others))


def _labels(one: Identity) -> tuple[str | None, dict[str, str]]:
    return one.namespace, dict(one.labels)


class Subjects:
    """Rule sets by name; each is loaded in place of the one before."""

    def __init__(self, nft: Nftables, counts: Sequence[int], addresses: int) -> None:
        """counts: of policies. addresses: with the last of these; fewer with
        others, in proportion.
        """
        self._nft = nft
        self._kernel = PolicyKernel()
        self.loads: dict[str, Load] = {
            NO_TABLE: partial(self._ruleset, ""),
            NO_POLICIES: partial(self._ruleset, host_ports.render()),
        }
        for count in counts:
            part = addresses * count // counts[-1]
            say(f"policy: compile {count:,} policies, {part:,} addresses")
            tables = compile_tables(world(count, part)).tables
            self.loads[name_of(count)] = partial(self._policies, tables)
        ends = pod_address(1, 4), pod_address(0, 4)
        for count in counts:
            text = chains.render(count, *ends)
            self.loads[f"chains of {count:,}"] = partial(self._ruleset, text)

    def _ruleset(self, text: str) -> None:
        self._nft.apply("flush ruleset\n" + text)
        # Flows of the rules before would not be judged.
        conntrack.flush()

    def _policies(self, tables: Tables) -> None:
        self._ruleset(host_ports.render())
        self._kernel.replace(tables, policed=True)


def name_of(policies: int) -> str:
    """Return the subject with so many policies."""
    return f"policies: {policies:,}"


def connections(host: Host, subjects: Subjects, rounds: int, seconds: float) -> list[Figure]:
    """Measure a new connection between the pods, and its first byte."""
    found: dict[str, list[list[float]]] = {name: [] for name in subjects.loads}
    for number in range(rounds):
        for name, load in subjects.loads.items():
            say(f"policy: connections, round {number + 1} of {rounds}: {name}")
            load()
            connect = partial(_connect, pod_address(1, 4), seconds)
            found[name].append(host.netns["pod0"].inside(connect))
    return by_round("connection", "us", found, NO_POLICIES)


def _connect(address: str, seconds: float) -> list[float]:
    """Connect for a time; return the microseconds of each."""
    took: list[float] = []
    end = time.perf_counter() + seconds
    while not took or time.perf_counter() < end:
        began = time.perf_counter()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            try:
                sock.connect((address, _PORT))
                greeted = sock.recv(1)
            except OSError as error:
                raise BenchError(f"connect to {address}: {error}") from error
            took.append((time.perf_counter() - began) * 1e6)
            if not greeted:
                raise BenchError(f"{address} does not greet")
    return took


def established(host: Host, subjects: Subjects, rounds: int, seconds: float) -> list[Figure]:
    """Measure a round trip and a MiB of flows that exist."""
    names = [name for name in subjects.loads if not name.startswith("chains")]
    found: dict[str, dict[str, list[list[float]]]] = {"TCP_RR": {}, "stream": {}}
    client = host.client("pod to pod", 4)
    for number in range(rounds):
        for name in names:
            say(f"policy: established flows, round {number + 1} of {rounds}: {name}")
            subjects.loads[name]()
            for kind, some in found.items():
                some.setdefault(name, []).append([client.measure(kind, seconds)])
    return [one for kind, some in found.items() for one in by_round(kind, "us", some, NO_POLICIES)]
