# SPDX-License-Identifier: Apache-2.0
"""Limits of the cost of an Attach and a Detach, counted and not timed.

Time on a shared machine says nothing; system calls, netlink messages, processes
and memory blocks do not depend on the machine. A number that grows here is
either a mistake or a decision: then it is changed here, with PERFORMANCE.md.
"""

import contextlib
import gc
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.lab import Pod, pods
from metropolis.node.core.network.workloads.testing.served import Served
from metropolis.node.core.network.workloads.testing.trace import calls, split, traced

ID = "4c0f" * 16  # as long as containerd's
MEASURED = 9  # calls, of which the median counts

# By the calling thread, without RPC. The target is 16; the first packet of a
# workload is worth one more.
ATTACH = Counter(
    {
        "newfstatat": 1,  # what the path is, before it is opened
        "openat": 1,
        "setns": 2,
        "socket": 1,
        "setsockopt": 1,  # the kernel's words in errors
        "getsockopt": 1,  # the namespace's cookie
        "ioctl": 2,  # whether lo is up; that the kernel looks at the carrier
        "sendto": 3,
        "recvfrom": 3,
        "close": 2,
    }
)
# bpf: whether a program was loaded that could come before our filters.
DETACH = Counter({"bpf": 1, "sendto": 1, "recvfrom": 1})
# Behind the answer, for links that go together: down and group, deletion.
REMOVAL = Counter({"sendto": 2, "recvfrom": 2})
# The calls that make a process or a thread.
CREATION = {"clone", "clone3", "fork", "vfork", "execve", "execveat"}
# By the interpreter and the C library, now and then.
RUNTIME = {"futex", "mmap", "munmap", "brk", "madvise", "mremap", "getrandom", "sched_yield"}


def engine(*prefixes: str) -> Engine:
    made = Engine(KernelDatapath())
    made.set_prefixes([ip_network(prefix) for prefix in prefixes])
    made.start()
    return made


@pytest.fixture
def dual() -> Iterator[Engine]:
    made = engine("10.192.0.0/28", "fd00:10:192::/124")
    yield made
    made.close()


def attach(to: Engine, pod: Pod, number: int = 0) -> None:
    to.attach(AttachIntent(f"{ID[:-4]}{number:04}", pod.path, "eth0"))


def detach(to: Engine, number: int = 0) -> None:
    """Return when the link is gone, too."""
    to.detach(f"{ID[:-4]}{number:04}")
    to.settle()


def count(log: Path, act: Callable[[int], None]) -> Counter[str]:
    """Return this thread's calls in most runs of `act`, without RUNTIME.

    A child process traces this one; a run is between two marks.
    """
    mark = "/the next run"

    def run() -> None:
        for number in range(MEASURED):
            with contextlib.suppress(OSError):
                os.rmdir(mark)
            act(number)
        with contextlib.suppress(OSError):
            os.rmdir(mark)

    seen = traced(os.getpid(), log, run)
    own = f"{os.getpid()} "
    lines = "\n".join(line for line in seen.splitlines() if line.startswith(own))
    runs: list[Counter[str]] = []
    for name, text in calls(lines):
        if name == "rmdir" and mark in text:
            runs.append(Counter())
        elif runs and name not in RUNTIME:
            runs[-1][name] += 1
    assert len(runs) == MEASURED + 1
    (common, times), *_ = Counter(frozenset(run.items()) for run in runs[:-1]).most_common()
    assert times > MEASURED / 2, runs
    assert not CREATION & {name for run in runs for name in run}
    return Counter(dict(common))


def test_system_calls(dual: Engine, tmp_path: Path) -> None:
    with pods(MEASURED) as made:
        for number, pod in enumerate(made):  # what is made once, is made
            attach(dual, pod, number)
            detach(dual, number)
        found = count(tmp_path / "attach", lambda number: attach(dual, made[number], number))
        assert found == ATTACH
        assert found.total() <= 17
        assert count(tmp_path / "detach", lambda number: detach(dual, number)) == DETACH


def test_many_removals_cost_as_much_as_one(
    dual: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In system calls, of the removals' thread: they are done together, if the
    kernel is quick enough; a traced one may not be.
    """
    monkeypatch.setattr(KernelDatapath, "at_once", MEASURED)
    with pods(MEASURED) as made:
        for _ in range(2):
            for number, pod in enumerate(made):
                attach(dual, pod, number)

            def run() -> None:
                dual.collect(lambda *_: False)
                dual.settle()

            log = traced(os.getpid(), tmp_path / "log", run)
    mine = f"{os.getpid()} "
    others = "\n".join(line for line in log.splitlines() if not line.startswith(mine))
    found = Counter(name for name, text in calls(others) if "<NETLINK" in text)
    # The event thread hears of each link that is gone.
    assert found["sendto"] == REMOVAL["sendto"]


@pytest.mark.parametrize(
    ("prefixes", "first", "second"),
    [
        (["10.192.0.0/28", "fd00:10:192::/124"], [1, 10, 8], [1, 15, 8]),
        (["10.192.0.0/28"], [1, 6, 4], [1, 8, 4]),
        (["fd00:10:192::/124"], [1, 6, 7], [1, 8, 7]),
    ],
    ids=["dual stack", "IPv4", "IPv6"],
)
def test_netlink_messages(
    monkeypatch: pytest.MonkeyPatch, prefixes: list[str], first: list[int], second: list[int]
) -> None:
    """For each send, of a namespace's first interface and a further one."""
    sends: list[int] = []

    class Counting(socket.socket):
        def send(self, data: bytes, flags: int = 0, /) -> int:  # type: ignore[override]
            sends.append(len(split(data)))
            return super().send(data, flags)

    monkeypatch.setattr("osbase.netlink.transport.socket.socket", Counting)
    made = engine(*prefixes)
    with pods(1) as (pod,):
        sends.clear()
        made.attach(AttachIntent(ID, pod.path, "eth0"))
        assert sends == first
        made.attach(AttachIntent(ID, pod.path, "eth1"))
        assert sends[3:] == second
        sends.clear()
        for if_name in ("eth1", "eth0"):
            made.detach(ID, if_name=if_name, until_gone=True)
            # clsact, two filters; then down with the group, and its deletion.
            assert sends == [3, 1, 1]
            sends.clear()
    made.close()


def test_nothing_is_allocated_for_good(dual: Engine) -> None:
    """After a round of the pool, with every template made."""
    with pods(1) as (pod,):

        def cycle(times: int) -> int:
            for _ in range(times):
                attach(dual, pod)
                detach(dual)
            gc.collect()
            return sys.getallocatedblocks()

        cycle(30)
        before = cycle(10)
        after = cycle(60)
    # A block a cycle would be 60.
    assert after - before < 30


def test_an_attach_over_grpc_makes_no_process(tmp_path: Path) -> None:
    served = Served(tmp_path / "run" / "workload.sock")
    with pods(20) as made:
        for number, pod in enumerate(made[:4]):
            served.client.attach(f"warm-{number}", pod)
            served.client.detach(f"warm-{number}")

        def run() -> None:
            for number, pod in enumerate(made):
                served.client.attach(f"p{number}", pod)
            for number in range(len(made)):
                served.client.detach(f"p{number}")

        log = traced(served.process.pid, tmp_path / "log", run)
        # gRPC's own threads come and go.
        found = Counter(name for name, text in calls(log) if "CLONE_THREAD" not in text)
        assert not CREATION & found.keys()
        assert found["setns"] == ATTACH["setns"] * len(made)
        on_netlink = sum("<NETLINK" in text for name, text in calls(log) if name == "sendto")
        each = (ATTACH["sendto"] + DETACH["sendto"]) * len(made)
        # Removals of several take as many sends as one.
        assert each < on_netlink <= each + REMOVAL["sendto"] * len(made)
    assert served.end() == 0
