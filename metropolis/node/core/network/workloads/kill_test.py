# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every point of Attach, Detach and recovery: whole or nothing.

Points are enumerated, not sampled: before and after each system call by which
the service acts, after each message of a batch, and with each message refused.
The next service must find each attachment whole or gone, the caller's retry
must succeed, and nothing else may change; strace shows no other point.
"""

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from pyroute2 import IPRoute

from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.node.core.network.workloads.testing import dump, killed
from metropolis.node.core.network.workloads.testing.killed import Call, Plan
from metropolis.node.core.network.workloads.testing.lab import Pod
from metropolis.node.core.network.workloads.testing.served import DEADLINE_S, PREFIXES, Client
from metropolis.node.core.network.workloads.testing.trace import calls, traced

NEVER = Plan()
OUTPUTS = Path(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", "/tmp"))
MAC = bytes.fromhex("020000000000")


# A new interpreter and its imports would be most of a point's cost: each
# service is forked from a process that has imported all of it, and has no
# thread. (This process has gRPC's, and may not fork.)
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([killed.__name__])


class KilledService:
    """A service that dies where a plan says; see testing.killed."""

    def __init__(self, socket_path: Path, plan: Plan = NEVER) -> None:
        self.log = socket_path.parent.parent / "log"
        arguments = ["--socket", str(socket_path), "--workers=1"]
        arguments += [f"--prefix={prefix}" for prefix in PREFIXES]
        self._orders, orders = _FORKS.Pipe()
        self._output, output = _FORKS.Pipe(duplex=False)
        self.process = _FORKS.Process(
            target=killed.run, args=(orders, output, str(self.log), plan, arguments)
        )
        self.process.start()
        orders.close()
        output.close()
        self.ready = os.read(self._output.fileno(), 6) == b"ready\n"
        self.client = Client(socket_path)

    def arm(self, plan: Plan = NEVER) -> None:
        """Follow this plan, and count from 1 again."""
        self._orders.send(plan)
        assert self._orders.recv() is None

    def calls(self) -> list[Call]:
        """Return the calls that were counted since the last plan."""
        self._orders.send(None)
        found: list[Call] = self._orders.recv()
        return found

    def wait(self) -> int | None:
        """Return its exit status, once it has ended."""
        self.client.close()
        self._orders.close()
        self._output.close()
        self.process.join(DEADLINE_S)
        status = self.process.exitcode
        if status not in (0, -signal.SIGKILL):
            print(f"the service ended with {status}:\n{self.log.read_text()}")
        return status

    def end(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()
        assert self.wait() == 0


class World:
    """A host with a service, a pod to be attached, and a bystander.

    gains: each attachment's objects in the kernel, by interface.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / "run" / "s"
        self.pods = {"pod": Pod(), "other": Pod()}
        self.served = KilledService(self.path)
        self.served.client.attach("other", self.pods["other"])
        self.base = dump.take_settled(self.pods)
        self.gains: dict[str, dump.State] = {}
        self.rows: list[tuple[str, ...]] = []

    def attach(self, if_name: str) -> None:
        """Attach, always with the same addresses and MAC."""
        number = 100 + int(if_name[-1])
        netns = pb.NetNSAttachment(netns_path=self.pods["pod"].path, if_name=if_name)
        request = pb.AttachRequest(
            workload_id="w",
            netns=netns,
            requested_ip=[
                bytes([10, 192, 0, number]),
                bytes.fromhex(f"fd00001001920000{number:016x}"),
            ],
            requested_mac=MAC[:5] + bytes([number]),
        )
        self.served.client.stub.Attach(request, timeout=DEADLINE_S)

    def detach(self, path: str = "", if_name: str = "") -> None:
        self.served.client.detach("w", path, if_name)

    def detached(self, path: str = "", if_name: str = "") -> None:
        """Detach, and wait for the end of the links."""
        self.detach(path, if_name)
        self.state()

    def learn(self, *if_names: str) -> None:
        """Attach them for the first time, record their gains, detach them."""
        state = self.base
        for if_name in if_names:
            self.attach(if_name)
            after = dump.take_settled(self.pods)
            self.gains[if_name] = after.minus(state)
            state = after
        assert self.state() == set(if_names)
        self.detach()
        assert self.state() == set()

    def traced(self, act: Callable[[], None], *options: str) -> str:
        """Return strace's log of the service while `act` runs."""
        log = self.path.parent.parent / "strace"
        assert self.served.process.pid is not None, "it was started"
        return traced(self.served.process.pid, log, act, "-s", "0", *options)

    def listed(self) -> set[str]:
        """Return the interfaces that the service lists."""
        request = pb.ListRequest(workload_id="w")
        found = self.served.client.stub.List(request, timeout=DEADLINE_S).attachments
        return {one.if_name for one in found}

    def state(self) -> set[str]:
        """Return the existing interfaces, each complete; AssertionError if
        there is anything besides, or anything less.
        """
        expected = self.base
        found = self.listed()
        for if_name in found:
            expected = expected.plus(self.gains[if_name])
        actual = dump.await_state(self.pods, expected)
        for one, other in [
            (actual.host, expected.host),
            *((actual.pods[name], expected.pods[name]) for name in self.pods),
        ]:
            assert one == other, f"more: {list(one - other)[:4]}, less: {list(other - one)[:4]}"
        return found

    def left(self) -> str:
        """Return a word for the kernel's state while no service runs."""
        actual = dump.take(self.pods)
        states = {"nothing": [], "whole": list(self.gains)}
        for word, if_names in states.items():
            expected = self.base
            for if_name in if_names:
                expected = expected.plus(self.gains[if_name])
            if actual == expected:
                return word
        return "part"

    def restart(self, plan: Plan = NEVER) -> None:
        self.served = KilledService(self.path, plan)

    def row(self, *row: str) -> None:
        self.rows.append(row)

    def close(self) -> None:
        if self.served.process.is_alive():
            for workload_id in ("w", "other"):
                self.served.client.detach(workload_id)
            self.served.end()
        for pod in self.pods.values():
            pod.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def plans(calls: list[Call], first: int = 0) -> Iterator[tuple[Plan, str]]:
    """Yield every plan for these calls, without the first, and its description
    as text.
    """
    for number, call in enumerate(calls):
        if number < first:
            continue
        count = len(call.messages)
        nth = calls[: number + 1].count(call)
        yield Plan("before", call, nth), f"before {call}"
        for cut in range(1, count):
            yield Plan("cut", call, nth, cut), f"{call}, after message {cut}"
        for spoilt in range(1, count + 1):
            yield Plan("spoil", call, nth, spoilt), f"{call}, message {spoilt} refused"
        yield Plan("after", call, nth), f"after {call}"


def tell(name: str, rows: list[tuple[str, ...]]) -> None:
    """Print the table and keep it."""
    head = ("killed", "left by the kill", "after the restart", "after the retry")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    text = f"{name}: {len(rows)} kill points\n" + "\n".join(lines) + "\n"
    print(text)
    with (OUTPUTS / "kill-points.txt").open("a") as file:
        file.write(text + "\n")


def words(found: set[str]) -> str:
    return " ".join(sorted(found)) or "nothing"


def everywhere(
    world: World, name: str, prepare: Callable[[], None], act: Callable[[], None], whole: set[str]
) -> None:
    """Kill at every point of `act`, which leads from the state of `prepare` to
    `whole`.
    """
    prepare()
    world.served.arm()
    act()
    assert world.state() == whole
    calls = world.served.calls()  # also those behind the answer
    for plan, what in plans(calls):
        world.detach()
        prepare()
        start = world.state()
        world.served.arm(plan)
        answered = True
        try:
            act()
        except grpc.RpcError as refused:
            answered = False
            assert refused.code() is grpc.StatusCode.UNAVAILABLE, what
        assert world.served.wait() == -signal.SIGKILL, what
        left = world.left()
        world.restart()
        found = world.state()
        # Each attachment is as before the call, or as after it.
        assert start & whole <= found <= start | whole, what
        # What was answered holds.
        assert not answered or found == whole, what
        act()
        assert world.state() == whole, what
        world.row(what, left, words(found), words(whole))
    tell(name, world.rows)


def nothing() -> None:
    """An initial state."""


def test_attach(world: World) -> None:
    world.learn("eth0")
    everywhere(world, "Attach", nothing, lambda: world.attach("eth0"), {"eth0"})
    # 2 namespace changes, socket, pair, inside, commit: none was missed.
    assert len(world.rows) >= 12


def test_attach_of_a_second_interface(world: World) -> None:
    world.learn("eth0", "eth1")
    everywhere(
        world,
        "Attach, second interface",
        lambda: world.attach("eth0"),
        lambda: world.attach("eth1"),
        {"eth0", "eth1"},
    )


def test_detach_of_the_second_interface(world: World) -> None:
    """The pod lives: its rules go, too, and those of others stay."""
    world.learn("eth0", "eth1")

    def prepare() -> None:
        world.attach("eth0")
        world.attach("eth1")

    everywhere(
        world,
        "Detach, second interface",
        prepare,
        lambda: world.detach(world.pods["pod"].path, "eth1"),
        {"eth0"},
    )


def test_attach_that_fails(world: World) -> None:
    """Its address has a route already: the commit is refused, and undone."""
    world.learn("eth0")

    def foreign(command: str) -> None:
        with IPRoute() as other:
            other.route(command, dst="10.192.0.100/32", oif=1, scope=253, proto=4)

    foreign("add")
    world.base = dump.take_settled(world.pods)

    def act() -> None:
        world.attach("eth0")

    world.served.arm()
    with pytest.raises(grpc.RpcError, match="EEXIST"):
        act()
    calls = world.served.calls()
    assert Call("send", ("DELLINK",)) in calls
    for plan, what in plans(calls):
        world.served.arm(plan)
        with pytest.raises(grpc.RpcError) as refused:
            act()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, what
        assert world.served.wait() == -signal.SIGKILL
        left = world.left()
        world.restart()
        # If the last message was not sent, all but the route may exist: that
        # attachment stays, and is reported to lack its route, which another
        # had before.
        assert world.listed() in (set(), {"eth0"}), what
        found = world.listed()
        world.detach()
        assert world.state() == set(), what
        with pytest.raises(grpc.RpcError, match="EEXIST"):
            act()
        assert world.state() == set(), what
        world.row(what, left, words(found), "refused as before")
    foreign("del")
    tell("Attach that the kernel refuses, undone", world.rows)
    world.base = dump.take_settled(world.pods)


def test_detach(world: World) -> None:
    world.learn("eth0")
    everywhere(world, "Detach", lambda: world.attach("eth0"), world.detach, set())


def test_detach_with_a_namespace(world: World) -> None:
    world.learn("eth0")
    everywhere(
        world,
        "Detach, with the namespace's path",
        lambda: world.attach("eth0"),
        lambda: world.detach(world.pods["pod"].path, "eth0"),
        set(),
    )


def test_detach_of_all_interfaces(world: World) -> None:
    world.learn("eth0", "eth1", "eth2")

    def prepare() -> None:
        for if_name in world.gains:
            world.attach(if_name)

    everywhere(world, "Detach of three interfaces", prepare, world.detach, set())


@pytest.mark.parametrize(("cut", "expected"), [(1, set()), (2, {"eth0"})], ids=["1", "2"])
def test_recovery(world: World, cut: int, expected: set[str]) -> None:
    """An unfinished attach and an attachment without its routes exist; the
    service that cleans up is killed, at every point, and the next one too.

    cut: messages of the commit that were sent. The first is the alias, the
    second the records, with which it is a running pod, and is finished.
    """
    world.learn("eth0")

    def wreck() -> None:
        """With a running service; without one at the end."""
        world.served.arm()
        world.attach("eth0")
        calls = world.served.calls()
        world.detach()
        (commit,) = (call for call in calls if "NEWLINKPROP" in call.messages)
        world.served.arm(Plan("cut", commit, 1, cut))
        with pytest.raises(grpc.RpcError):
            world.attach("eth0")
        assert world.served.wait() == -signal.SIGKILL
        assert world.left() == "part"
        with IPRoute() as other:
            for family in (2, 10):
                for route in other.get_routes(family=family):
                    if route["proto"] == 77:
                        other.route("del", **_key(route))

    def _key(route: object) -> dict[str, object]:
        return {
            "dst": f"{route.get('dst')}/{route['dst_len']}",  # type: ignore[attr-defined,index]
            "oif": route.get("oif"),  # type: ignore[attr-defined]
            "scope": route["scope"],  # type: ignore[index]
            "family": route["family"],  # type: ignore[index]
        }

    wreck()
    world.restart()
    calls = world.served.calls()
    assert sum("DELLINK" in call.messages for call in calls) == (0 if expected else 1)
    assert sum("NEWROUTE" in call.messages for call in calls) == 1 + len(expected)
    assert world.state() == expected
    world.detach()
    # Before it writes, both are the same to it: once is enough.
    written = (
        n for n, call in enumerate(calls) if any("GET" not in kind for kind in call.messages)
    )
    first = next(written) if expected else 0
    for plan, what in plans(calls, first):
        wreck()
        world.restart(plan)
        assert not world.served.ready, what
        assert world.served.wait() == -signal.SIGKILL, what
        left = world.left()
        world.restart()
        found = world.state()
        assert found == expected, what
        world.attach("eth0")
        assert world.state() == {"eth0"}, what
        world.detach()
        world.row(what, left, words(found), "eth0")
    tell(f"Recovery after {cut} messages", world.rows)


# System calls that neither change the kernel's network nor the files, on what
# a service has open; and those whose arguments tell.
_INERT = frozenset(
    """
    futex epoll_wait epoll_pwait epoll_pwait2 epoll_ctl poll ppoll select recvmsg recvfrom read
    readv mmap munmap brk madvise mprotect mremap close fstat newfstatat statx stat lstat lseek
    getsockopt getsockname getpeername clock_nanosleep clock_gettime nanosleep gettid getpid
    restart_syscall rt_sigprocmask rt_sigaction rt_sigtimedwait sched_yield getrandom fcntl
    eventfd2 exit getcwd readlink readlinkat membarrier rseq set_robust_list getdents64 accept4
    accept timerfd_settime sched_getparam sched_getscheduler sched_setscheduler
    sched_getaffinity sched_get_priority_min sched_get_priority_max prctl sigaltstack
    set_tid_address
    """.split()  # noqa: SIM905
)
_HARMLESS = [
    r"(write|sendmsg|sendto|shutdown)\(\d+<(anon_inode|UNIX|UNIX-STREAM|pipe|socket|\{eventfd)[:\[-]",
    r"openat\([^)]*O_RDONLY",
    r"write\(2<",  # the journal writes a second later, on a busy machine in here
    r"ioctl\(\d+<[^)]*SIOCGIFFLAGS",
    r"ioctl\(\d+<[^)]*SIOCETHTOOL",  # the kernel looks at the carrier
    r"setsockopt\(\d+<(NETLINK|UNIX|UNIX-STREAM|socket)[:\[]",
    r"(clone|clone3)\(.*CLONE_THREAD",
    r"bpf\(BPF_(PROG_GET_NEXT_ID|PROG_GET_FD_BY_ID|OBJ_GET_INFO_BY_FD|PROG_QUERY),",
]
_ACTS = {
    "setns": r"setns\(",
    "socket": r"socket\(AF_NETLINK",
    "send": r"(sendto|sendmsg|write)\(\d+<NETLINK",
}


def acts(log: str) -> list[str]:
    """Return the acting calls in a log of strace; others must be harmless."""
    found: list[str] = []
    for name, text in calls(log):
        act = next((act for act, form in _ACTS.items() if re.match(form, text)), None)
        if act is not None:
            found.append(act)
        else:
            harmless = name in _INERT or any(re.match(form, text) for form in _HARMLESS)
            assert harmless, f"may act, and is not counted: {text[:200]}"
    return found


def test_there_are_no_other_points(world: World) -> None:
    """strace sees the counted calls, in their order, and no other call that
    could change something.
    """
    world.learn("eth0", "eth1")
    steps: list[Callable[[], None]] = [
        lambda: world.attach("eth0"),
        lambda: world.attach("eth1"),
        lambda: world.detached(world.pods["pod"].path, "eth0"),
        world.detached,
    ]
    for step in steps:
        world.served.arm()
        log = world.traced(step)
        assert acts(log) == [call.name for call in world.served.calls()]


@pytest.mark.parametrize("name", ["setns", "socket", "sendto"])
def test_killed_by_the_kernel_at_every_call(world: World, name: str) -> None:
    """The same without the service's help: strace kills it as it enters the
    first such call, the second, and so on until there is none.
    """
    world.learn("eth0")
    kills = 0
    while True:
        world.served.arm()
        inject = f"--inject={name}:signal=KILL:when={kills + 1}"
        try:
            world.traced(lambda: world.attach("eth0"), f"--trace={name}", inject)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert world.served.wait() == -signal.SIGKILL
        else:
            break
        kills += 1
        left = world.left()
        world.restart()
        found = world.state()
        assert found <= {"eth0"}
        world.attach("eth0")
        assert world.state() == {"eth0"}
        world.row(f"strace: entering {name} {kills}", left, words(found), "eth0")
        world.detached()
    counted = [call.name for call in world.served.calls()]
    assert kills == counted.count({"sendto": "send"}.get(name, name))
    tell(f"Attach, killed by strace at {name}", world.rows)
