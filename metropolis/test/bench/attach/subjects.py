# SPDX-License-Identifier: Apache-2.0
"""What is measured, as the driver sees it: each with a host of its own.

A host is a network namespace with nothing in it; what a subject attaches and
leaves there nobody else sees, and it goes with the namespace.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from metropolis.test.bench.attach.model import Batch, Op, Pod
from metropolis.test.bench.attach.processes import Program, processor_ns
from metropolis.test.world.namespaces import Netns

_PACKAGE = "metropolis.test.bench.attach"
IPV4 = "10.192.0.0/16"
IPV6 = "fd00:10:192::/112"
_DIRECTORIES = itertools.count()


class Subject:
    """One that can attach and detach.

    name: in all output. versions: of IP. pid: of the process that does the
    work and stays; None where each operation is a process. is_service: it is
    one that people would run. most: how many can
    be attached, and why not more; None: as many as there are addresses.
    """

    pid: int | None = None
    is_service = False
    most: int | None = None
    why_most = ""

    def __init__(self, name: str, versions: tuple[int, ...]) -> None:
        self.name = name
        self.versions = versions
        self.host = Netns()
        self._numbers: Iterator[int] = itertools.count(2)

    def next_number(self) -> int:
        """For a new pod."""
        return next(self._numbers)

    def prepare_pod(self, netns: Netns) -> None:
        """Settings that a pod must have before it is attached."""

    def ready(self) -> None:
        """Wait until it can be run. Raises BenchError."""

    def run(self, op: Op, pods: Sequence[Pod], at_once: int) -> Batch:
        """Do it; raises BenchError if any of them was not done."""
        raise NotImplementedError

    def populate(self, pods: Sequence[Pod]) -> None:
        """Attach many, however; not measured."""
        self.run(Op.ADD, pods, 8)

    def close(self) -> None:
        """End it, and its host."""
        self.host.close()


class Grpc(Subject):
    """Ours over gRPC; the client is one process, which may serve several."""

    is_service = True

    def __init__(self, name: str, versions: tuple[int, ...], run_dir: Path) -> None:
        super().__init__(name, versions)
        self.directory = new_directory(run_dir, name)
        self.node = start_node(self.host, self.directory, versions)
        self.pid = self.node.pid
        self.client: Program | None = None

    def ready(self) -> None:
        """See Subject."""
        self.node.ready()

    def run(self, op: Op, pods: Sequence[Pod], at_once: int) -> Batch:
        """See Subject."""
        assert self.client is not None, "connect comes first"
        before = processor_ns(self.node.pid)
        batch = self.client.measure(
            op, pods, at_once, service=self.name, addresses=len(self.versions)
        )
        cpu = processor_ns(self.node.pid) - before
        return Batch(batch.each_ns, batch.wall_ns, cpu, client_cpu_ns=batch.cpu_ns)

    def close(self) -> None:
        """See Subject."""
        self.node.close()
        super().close()


def new_directory(parent: Path, name: str) -> Path:
    """For a subject's files; one of the same name may have been there."""
    made = parent / f"{name.replace(' ', '-')}-{next(_DIRECTORIES)}"
    made.mkdir(mode=0o700)
    return made


def start_node(host: Netns, directory: Path, versions: tuple[int, ...]) -> Program:
    """Our service on a host; its sockets are in the directory."""
    return Program(
        f"{_PACKAGE}.node", host, [str(directory), *_prefixes(versions)], directory / "log"
    )


def connect(subjects: Sequence[Grpc], run_dir: Path) -> Program:
    """The client of all of them."""
    sockets = [f"{one.name}={one.directory}/workload.sock" for one in subjects]
    client = Program(f"{_PACKAGE}.client", None, sockets, run_dir / "client.log")
    client.ready()
    for one in subjects:
        one.client = client
    return client


class InProgram(Subject):
    """One that works in a program of the benchmark: the engine, the floor."""

    def __init__(
        self,
        name: str,
        versions: tuple[int, ...],
        run_dir: Path,
        module: str,
        arguments: Sequence[str],
    ) -> None:
        super().__init__(name, versions)
        log = new_directory(run_dir, name) / "log"
        self.program = Program(f"{_PACKAGE}.{module}", self.host, arguments, log)
        self.pid = self.program.pid

    def ready(self) -> None:
        """See Subject."""
        self.program.ready()

    def run(self, op: Op, pods: Sequence[Pod], at_once: int) -> Batch:
        """See Subject."""
        return self.program.measure(op, pods, at_once)

    def populate(self, pods: Sequence[Pod]) -> None:
        """See Subject."""
        self.program.measure(Op.ADD, pods, 4, plain=True)

    def close(self) -> None:
        """See Subject."""
        self.program.close()
        super().close()


def inner(name: str, versions: tuple[int, ...], run_dir: Path) -> InProgram:
    """Our engine without RPC."""
    return InProgram(name, versions, run_dir, "inner", _prefixes(versions))


def floor(name: str, versions: tuple[int, ...], run_dir: Path, kind: str) -> InProgram:
    """See attach.floor for the kinds."""
    return InProgram(name, versions, run_dir, "floor", [kind])


def _prefixes(versions: tuple[int, ...]) -> list[str]:
    return [prefix for version, prefix in ((4, IPV4), (6, IPV6)) if version in versions]
