# SPDX-License-Identifier: Apache-2.0
"""What is asked for, and what was measured. Values only.

Times are seconds, of the node's clock unless told otherwise; memory is KiB.
"""

from dataclasses import dataclass

from metropolis.test.bench.scale.trace import Start


@dataclass(frozen=True, slots=True)
class Plan:
    """nodes: of the cluster, the real one among them; first: of the small one
    it is compared with. samples: changes measured one by one. unrelated: writes
    that change nothing for the node. churn: nodes that change, `bursts` times
    `burst_s` long, `rate` changes a second.
    """

    nodes: int
    first: int = 10
    samples: int = 20
    unrelated: int = 300
    churn: int = 100
    rate: float = 10.0
    bursts: int = 6
    burst_s: float = 10.0
    idle_s: float = 10.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """Of node core and its machine. begun_s: of the process, on the node's
    clock. slab_kib: of WireGuard's peers and allowed IPs.
    """

    process: int
    begun_s: float
    cpu_s: float
    rss_kib: int
    threads: int
    slab_kib: int
    available_kib: int


@dataclass(frozen=True, slots=True)
class Change:
    """One change of another node. host_s: since the host asked etcd for it,
    until the kernel has it; node_s: likewise, since the node has got the event.
    messages, message_bytes: to WireGuard; etcd_bytes: from etcd, in TCP.
    """

    host_s: float
    node_s: float
    messages: int
    message_bytes: int
    etcd_bytes: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of CPU time: of node core, as the node counts it, also while the
    host does something else; of the whole machine, as the host does.
    """

    node_core: float
    machine: float

    def __add__(self, other: Cpu) -> Cpu:
        return Cpu(self.node_core + other.node_core, self.machine + other.machine)

    def __sub__(self, other: Cpu) -> Cpu:
        return self + other.times(-1)

    def times(self, factor: float) -> Cpu:
        """So many of it."""
        return Cpu(self.node_core * factor, self.machine * factor)


@dataclass(frozen=True, slots=True)
class Size:
    """A cluster of so many nodes. offset_error_s: what host_s is off by at
    most. cpu_s: for one change, without what is needed idle, which is told of a
    second.
    """

    nodes: int
    changes: tuple[Change, ...]
    change_cpu_s: Cpu
    unrelated_messages: int
    unrelated_etcd_bytes: float
    unrelated_cpu_s: Cpu
    idle_cpu_s: Cpu
    offset_error_s: float
    usage: Usage


@dataclass(frozen=True, slots=True)
class Growth:
    """Many nodes that join at once. written_s: the host's clock, for all
    writes; done_s: since the first was asked for, until all are peers.
    """

    added: int
    written_s: float
    done_s: float
    messages: int
    message_bytes: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Started:
    """A start of node core. cpu_s: since the process began, until all is so."""

    start: Start
    cpu_s: float
    rss_kib: int


@dataclass(frozen=True, slots=True)
class Warm:
    """A restart with all peers in the kernel. listed_s: from etcd's first byte
    to the list's last; done_s: from there to the last request to the kernel.
    """

    process_s: float
    listed_s: float
    done_s: float
    messages: int
    with_peers: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Burst:
    """writes: transactions. lag_s: since the last was answered, until the
    kernel has all; below 0: before etcd has answered.
    """

    writes: int
    lag_s: float
    messages: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Store:
    """What etcd holds for that many nodes. bytes: of keys and values.
    keepalives: a second. keepalive_cpu_s: of etcd for one, on the host's CPU.
    directory_s: node core's code reads all of it, on the host's CPU.
    """

    keys: int
    bytes: int
    database_bytes: int
    keepalives: float
    keepalive_cpu_s: float
    directory_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All of it. failures: what the kernel has that it should not, and the
    other way round. handshakes: packets that begin sessions with simulated
    nodes, before the churn and in all.
    """

    small: Size
    growth: Growth
    large: Size
    bursts: tuple[Burst, ...]
    churn_rss_kib: tuple[int, int]
    cold: Started
    warm: Warm
    store: Store
    handshakes: tuple[int, int]
    failures: tuple[str, ...]
