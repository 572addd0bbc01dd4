# SPDX-License-Identifier: Apache-2.0
"""Threads that cannot be started, and other failures inside the server."""

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from osbase.rpc import queued
from osbase.rpc.call import Call, RpcError
from osbase.rpc.choose import QUEUES, server_class
from osbase.rpc.testing import WAIT_S, Code, Service, connect, refusal

real_start = threading.Thread.start


class Limit:
    """Threads with these names can start only `left` more times. Threads of
    clients, which are in this process too, always start.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int, names: str = "rpc-") -> None:
        self.left = left
        self.asked = 0
        limit = self

        def start(thread: threading.Thread) -> None:
            if thread.name.startswith(names):
                limit.asked += 1
                if not limit.left:
                    raise RuntimeError("can't start new thread")
                limit.left -= 1
            real_start(thread)

        monkeypatch.setattr(threading.Thread, "start", start)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def assert_no_more_descriptors(before: int) -> None:
    """C-core closes some a moment later, on its own thread."""
    deadline = time.monotonic() + WAIT_S
    while (now := descriptors()) > before:
        assert time.monotonic() < deadline, f"{now} descriptors, {before} before"


def ours() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith(("rpc-", "Thread-"))]


def made(kind: str, path: Path) -> Any:
    def echo(request: bytes, _: Call) -> bytes:
        return request

    server = server_class(kind)(
        blocking={"/t/Echo": echo, "/t/Own": echo},
        quick={"/t/Quick": echo},
        streams={},
        workers=4,
        own_workers={"/t/Own": 2},
        options=[("grpc.so_reuseport", 0)],
    )
    server.listen(f"unix:{path}")
    return server


def test_a_start_that_fails_leaves_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of the threads may be the one that cannot start."""
    made(kind, tmp_path / "first").stop(0)  # C-core opens some descriptors once
    before = descriptors()
    limit = Limit(monkeypatch, -1, "")
    for number in range(100):
        path = tmp_path / str(number)
        server = made(kind, path)
        limit.left = number
        try:
            server.start()
        except RuntimeError as error:
            assert "can't start new thread" in str(error)
        else:
            break
        assert not ours()
        assert_no_more_descriptors(before)
        with (
            socket.socket(socket.AF_UNIX) as probe,
            pytest.raises(OSError, match=r"refused|No such"),
        ):
            probe.connect(str(path))
        with pytest.raises(RuntimeError, match="starts once"):
            server.start()
        server.stop(0)
    assert number > 3
    limit.left = -1
    with connect(path) as channel:
        for method in ("Quick", "Echo", "Own"):
            assert channel.unary_unary(f"/t/{method}")(b"x", timeout=WAIT_S) == b"x"
    server.stop(0)
    assert not ours()


def test_stop_before_start_and_beside_it(tmp_path: Path, kind: str) -> None:
    made(kind, tmp_path / "first").stop(0)
    before = descriptors()
    server = made(kind, tmp_path / "a")
    server.stop(0)
    with pytest.raises(RuntimeError, match="not after its end"):
        server.start()
    for number in range(5):
        server = made(kind, tmp_path / str(number))
        with ThreadPoolExecutor(2) as pool:
            start, stop = pool.submit(server.start), pool.submit(server.stop, 0)
            stop.result()
            start.exception()
        assert not ours()
    assert_no_more_descriptors(before)


def test_no_more_threads_make_it_slower_and_nothing_else(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, kind, workers=8)
    assert service.call("Echo")(b"x", timeout=WAIT_S) == b"x"
    limit = Limit(monkeypatch, 0)
    calls = [service.call("Gate").future(b"", timeout=WAIT_S) for _ in range(8)]
    assert service.arrived.acquire(timeout=WAIT_S)
    assert service.call("Quick")(b"x", timeout=WAIT_S) == b"x"
    if kind == QUEUES:
        for _ in range(3):  # each call of its own
            assert refusal(lambda: next(service.stream("Count", b"1"))) == (
                Code.RESOURCE_EXHAUSTED,
                "count: no thread can be started: can't start new thread",
            )
    service.opened.set()
    assert [call.result() for call in calls] == [b"done"] * 8
    assert limit.asked
    assert service.most < 8
    # As before, when threads can start again.
    limit.left = -1
    service.opened.clear()
    calls = [service.call("Gate").future(b"", timeout=WAIT_S) for _ in range(8)]
    while service.arrived.acquire(timeout=0.0):
        pass
    while service.most < 8:
        assert service.arrived.acquire(timeout=WAIT_S)
    service.opened.set()
    assert [call.result() for call in calls] == [b"done"] * 8
    assert list(service.stream("Count", b"2")) == [b"0", b"1"]
    service.close()
    assert not [name for name in ours() if name.startswith("rpc-")]


@pytest.mark.parametrize(
    "error",
    [SystemExit(1), KeyboardInterrupt(), MemoryError(), RecursionError(), GeneratorExit()],
    ids=repr,
)
def test_whatever_a_handler_raises_fails_its_call_only(
    service: Service, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(service, "failure", fail)
    for _ in range(6):  # more than there are workers
        code, details = refusal(lambda: service.call("Fail")(b"this", timeout=WAIT_S))
        assert (code, type(error).__name__ in details) == (Code.INTERNAL, True)
    assert service.call("Echo")(b"x", timeout=WAIT_S) == b"x"


@pytest.mark.parametrize(
    ("details", "end"),
    [("a \\udcff file", "file"), ("ü" * 10_000, "ü ..."), ("x" * 100_000, "x ..."), ("\n\0", "\0")],
    ids=["no text", "long", "longer", "control"],
)
def test_details_can_be_anything(
    service: Service, details: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    details = details.encode().decode("unicode_escape") if "udcff" in details else details

    def fail() -> None:
        raise RpcError(Code.ABORTED, details)

    monkeypatch.setattr(service, "failure", fail)
    for _ in range(6):
        code, found = refusal(lambda: service.call("Fail")(b"this", timeout=WAIT_S))
        assert (code, found.endswith(end)) == (Code.ABORTED, True)


def test_an_answer_that_is_none_fails_its_call_only(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "failure", lambda: "text")
    for _ in range(6):
        assert refusal(lambda: service.call("Fail")(b"this", timeout=WAIT_S))[0] is Code.INTERNAL
    assert service.call("Echo")(b"x", timeout=WAIT_S) == b"x"


def test_failures_of_the_server_itself_fail_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each place that works for a single call."""
    service = Service(tmp_path, QUEUES)
    for place, method in (
        ("WorkerCall.read", "Echo"),
        ("WorkerCall.answer", "Echo"),
        ("QuickCall.begin", "Quick"),
        ("QuickCall.answer", "Quick"),
        ("StreamCall.begin", "Count"),
        ("StreamCall.serve", "Count"),
    ):
        kind, name = place.split(".")
        with monkeypatch.context() as patch:
            patch.setattr(getattr(queued, kind), name, _no_memory)
            for _ in range(6):
                if method == "Count":
                    refusal(lambda: next(service.stream("Count", b"1")))
                else:
                    refusal(lambda: service.call(method)(b"x", timeout=WAIT_S))  # noqa: B023
        for good in ("Echo", "Quick"):
            assert service.call(good)(b"x", timeout=WAIT_S) == b"x"
        assert list(service.stream("Count", b"1")) == [b"0"]
    service.close()
    assert not ours() or all(not name.startswith("rpc-") for name in ours())


def _no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_change_of_the_wall_clock_moves_no_deadline(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """The clock changes after the call arrives. The event is like cygrpc's."""
    wall, monotonic = 1e9, 100.0
    clock = SimpleNamespace(time=lambda: wall, monotonic=lambda: monotonic)
    monkeypatch.setattr(queued, "time", clock)
    details = SimpleNamespace(deadline=wall + 5, method=b"/t/Echo")
    event = SimpleNamespace(call=None, call_details=details)
    idle = SimpleNamespace(completion_type=queued._TIMEOUT)
    queue = SimpleNamespace(poll=lambda _: idle)
    calls = [queued.WorkerCall(event, "", queue), queued.QuickCall(event, "")]
    wall += jump
    assert [call.time_remaining() for call in calls] == [5.0, 5.0]
    monotonic += 4
    assert [call.time_remaining() for call in calls] == [1.0, 1.0]
    monotonic += 2
    assert [call.time_remaining() for call in calls] == [-1.0, -1.0]


LIMITED = """
import resource, sys, threading
from pathlib import Path
from osbase.rpc.testing import Service

service = Service(Path(sys.argv[2]), sys.argv[1], workers=64)
limits = resource.getrlimit(resource.RLIMIT_AS)
print("ready", flush=True)
for line in sys.stdin:
    command = line.strip()
    if command == "limit":
        # From here on the kernel refuses the stack of any further thread.
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + (256 << 20)
        threading.stack_size(1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (room, limits[1]))
    elif command == "lift":
        threading.stack_size(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    elif command == "open":
        service.opened.set()
    elif command == "close":
        service.opened.clear()
    print(service.most, flush=True)
service.close()
print("good")
"""


def test_a_limit_of_the_kernel_is_reached_and_lifted(tmp_path: Path, kind: str) -> None:
    """RLIMIT_AS in a separate process, since RLIMIT_NPROC excepts root."""
    with subprocess.Popen(
        [sys.executable, "-c", LIMITED, kind, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin
        assert child.stdout
        stdin, stdout = child.stdin, child.stdout

        def tell(command: str) -> str:
            stdin.write(f"{command}\n")
            stdin.flush()
            return stdout.readline()

        assert stdout.readline() == "ready\n"
        with connect(tmp_path / "s") as channel:
            gate = channel.unary_unary("/t/Gate")
            quick = channel.unary_unary("/t/Quick")
            assert channel.unary_unary("/t/Echo")(b"x", timeout=WAIT_S) == b"x"
            tell("limit")
            calls = [gate.future(b"", timeout=WAIT_S) for _ in range(64)]
            while int(tell("?")) < 1:
                pass
            assert quick(b"x", timeout=WAIT_S) == b"x"
            if kind == QUEUES:
                stream = channel.unary_stream("/t/Count")
                assert refusal(lambda: next(stream(b"1", timeout=WAIT_S))) == (
                    Code.RESOURCE_EXHAUSTED,
                    "count: no thread can be started: can't start new thread",
                )
            tell("open")
            assert [one.result() for one in calls] == [b"done"] * 64
            few = int(tell("close"))
            assert few < 64
            tell("lift")
            calls = [gate.future(b"", timeout=WAIT_S) for _ in range(64)]
            while int(tell("?")) <= few:
                pass
            tell("open")
            assert [one.result() for one in calls] == [b"done"] * 64
            assert list(channel.unary_stream("/t/Count")(b"2", timeout=WAIT_S)) == [b"0", b"1"]
        stdin.close()
        assert stdout.read() == "good\n"
