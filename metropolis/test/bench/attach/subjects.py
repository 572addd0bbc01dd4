# SPDX-License-Identifier: Apache-2.0
"""The measured subjects, as the driver sees them: each has its own host.

A host is an empty network namespace. Other subjects do not see the attachments
and leftovers in it, and the kernel removes them with the namespace.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from metropolis.test.bench.attach.model import MANY_PORTS, Batch, Op, Pod
from metropolis.test.bench.attach.processes import Program, processor_ns
from metropolis.test.world.namespaces import Netns

_PACKAGE = "metropolis.test.bench.attach"
IPV4 = "10.192.0.0/16"
IPV6 = "fd00:10:192::/112"
_DIRECTORIES = itertools.count()


class Subject:
    """An implementation that can attach and detach.

    name: in all output. versions: of IP. pid: the long-lived process that does
    the work; None if each operation is a process. is_service: people would run
    it. cycles: it has Op.CYCLE. most: the limit of attachments, and its reason;
    None: the number of addresses. ports: host ports of each pod. beside: host
    ports of others, which are there from the beginning. rated: its rates are
    measured, too.
    """

    pid: int | None = None
    is_service = False
    cycles = False
    most: int | None = None
    why_most = ""
    ports = 0
    beside = 0
    rated = True

    def __init__(self, name: str, versions: tuple[int, ...]) -> None:
        self.name = name
        self.versions = versions
        self.host = Netns()
        self._numbers: Iterator[int] = itertools.count(2)

    def next_number(self) -> int:
        """Return the number of a new pod."""
        return next(self._numbers)

    def prepare_pod(self, netns: Netns) -> None:
        """Apply settings that a pod needs before it is attached."""

    def ready(self) -> None:
        """Wait until it can be run. Raises BenchError."""

    def run(self, op: Op, pods: Sequence[Pod], at_once: int) -> Batch:
        """Run the operations. Raises BenchError if one fails."""
        raise NotImplementedError

    def fill(self) -> None:
        """Attach the others, once all programs run."""

    def populate(self, pods: Sequence[Pod]) -> None:
        """Attach many by any means; not measured."""
        self.run(Op.ADD, pods, 8)

    def close(self) -> None:
        """End the subject and its host."""
        self.host.close()


class Grpc(Subject):
    """Ours over gRPC; the client is one process, which may serve several."""

    is_service = True
    cycles = True

    def __init__(
        self,
        name: str,
        versions: tuple[int, ...],
        run_dir: Path,
        *,
        ports: int = 0,
        beside: int = 0,
    ) -> None:
        super().__init__(name, versions)
        self.ports, self.beside, self.rated = ports, beside, not ports
        self._others: list[Netns] = []
        self.directory = new_directory(run_dir, name)
        self.node = start_node(self.host, self.directory, versions)
        self.pid = self.node.pid
        self.client: Program | None = None

    def ready(self) -> None:
        """See Subject."""
        self.node.ready()

    def run(self, op: Op, pods: Sequence[Pod], at_once: int) -> Batch:
        """See Subject."""
        before = processor_ns(self.node.pid)
        batch = self._measure(op, pods, at_once, self.ports)
        cpu = processor_ns(self.node.pid) - before
        return Batch(batch.each_ns, batch.wall_ns, cpu, client_cpu_ns=batch.cpu_ns)

    def _measure(self, op: Op, pods: Sequence[Pod], at_once: int, ports: int) -> Batch:
        assert self.client is not None, "connect comes first"
        return self.client.measure(
            op, pods, at_once, service=self.name, addresses=len(self.versions), ports=ports
        )

    def fill(self) -> None:
        """See Subject."""
        pods = []
        for number in range(self.beside // MANY_PORTS):
            self._others.append(Netns())
            pods.append(Pod(number, f"other-{number}", self._others[-1].path))
        self._measure(Op.ADD, pods, 1, MANY_PORTS)

    def close(self) -> None:
        """See Subject."""
        self.node.close()
        for other in self._others:
            other.close()
        super().close()


def new_directory(parent: Path, name: str) -> Path:
    """Make a directory for a subject's files; the name may be used already."""
    made = parent / f"{name.replace(' ', '-')}-{next(_DIRECTORIES)}"
    made.mkdir(mode=0o700)
    return made


def start_node(host: Netns, directory: Path, versions: tuple[int, ...]) -> Program:
    """Start our service on a host; its sockets are in the directory."""
    return Program(
        f"{_PACKAGE}.node", host, [str(directory), *_prefixes(versions)], directory / "log"
    )


def connect(subjects: Sequence[Grpc], run_dir: Path) -> Program:
    """Start the client of all subjects."""
    sockets = [f"{one.name}={one.directory}/workload.sock" for one in subjects]
    client = Program(f"{_PACKAGE}.client", None, sockets, run_dir / "client.log")
    client.ready()
    for one in subjects:
        one.client = client
    return client


class InProgram(Subject):
    """A subject inside a program of the benchmark: the engine, the floor."""

    def __init__(
        self,
        name: str,
        versions: tuple[int, ...],
        run_dir: Path,
        module: str,
        arguments: Sequence[str],
        ports: int = 0,
    ) -> None:
        super().__init__(name, versions)
        self.ports, self.rated = ports, not ports
        log = new_directory(run_dir, name) / "log"
        self.program = Program(f"{_PACKAGE}.{module}", self.host, arguments, log)
        self.pid = self.program.pid
        self.cycles = module == "inner"

    def ready(self) -> None:
        """See Subject."""
        self.program.ready()

    def run(self, op: Op, pods: Sequence[Pod], at_once: int) -> Batch:
        """See Subject."""
        return self.program.measure(op, pods, at_once, ports=self.ports)

    def populate(self, pods: Sequence[Pod]) -> None:
        """See Subject."""
        self.program.measure(Op.ADD, pods, 4, plain=True)

    def close(self) -> None:
        """See Subject."""
        self.program.close()
        super().close()


def inner(name: str, versions: tuple[int, ...], run_dir: Path, ports: int = 0) -> InProgram:
    """Return our engine without RPC."""
    return InProgram(name, versions, run_dir, "inner", _prefixes(versions), ports)


def floor(name: str, versions: tuple[int, ...], run_dir: Path, kind: str) -> InProgram:
    """See attach.floor for the kinds."""
    return InProgram(name, versions, run_dir, "floor", [kind])


def _prefixes(versions: tuple[int, ...]) -> list[str]:
    return [prefix for version, prefix in ((4, IPV4), (6, IPV6)) if version in versions]
