# SPDX-License-Identifier: Apache-2.0
"""The plan and the results, as values.

Times are seconds, by default of the node's clock; memory is KiB.
"""

from dataclasses import dataclass

from metropolis.test.bench.scale.trace import Start


@dataclass(frozen=True, slots=True)
class Plan:
    """nodes: size of the cluster, including the real node; first: size of the
    small one that it is compared with. samples: changes measured one by one.
    unrelated: writes that change nothing for the node. churn: nodes that
    change, `bursts` times, each `burst_s` long, `rate` changes a second.
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
    """The usage of node core and its machine. begun_s: the start of the
    process. slab_kib: memory of WireGuard's peers and allowed IPs.
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
    """One change of another node. host_s: from the host's request to etcd until
    the kernel has it; node_s: from the node's event until then. messages,
    message_bytes: to WireGuard; etcd_bytes: from etcd, in TCP.
    """

    host_s: float
    node_s: float
    messages: int
    message_bytes: int
    etcd_bytes: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of CPU time: of node core, by the node's clock, which also counts
    while the host runs something else; of the whole machine, by the host's.
    """

    node_core: float
    machine: float

    def __add__(self, other: Cpu) -> Cpu:
        return Cpu(self.node_core + other.node_core, self.machine + other.machine)

    def __sub__(self, other: Cpu) -> Cpu:
        return self + other.times(-1)

    def times(self, factor: float) -> Cpu:
        """Return a multiple."""
        return Cpu(self.node_core * factor, self.machine * factor)


@dataclass(frozen=True, slots=True)
class Size:
    """A cluster of `nodes` nodes. offset_error_s: the largest error of host_s.
    CPU times are for one change, without the idle use, which is per second.
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
    """Many nodes that join at once. written_s: the time of all writes, by the
    host's clock; done_s: from the first request until all are peers.
    """

    added: int
    written_s: float
    done_s: float
    messages: int
    message_bytes: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Started:
    """A start of node core. cpu_s: from the process's start to its end."""

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
    """writes: transactions. lag_s: from the last answer until the kernel has
    all; negative: the kernel had all before etcd answered.
    """

    writes: int
    lag_s: float
    messages: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Store:
    """etcd's contents for that many nodes. bytes: of keys and values.
    keepalives: per second. keepalive_cpu_s: etcd's CPU time for one, on the
    host. directory_s: the time of node core's code to read all, on the host.
    """

    keys: int
    bytes: int
    database_bytes: int
    keepalives: float
    keepalive_cpu_s: float
    directory_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All results. failures: wrong or missing peers of the kernel. handshakes:
    packets that begin sessions with simulated nodes, before the churn and in
    all.
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
