# SPDX-License-Identifier: Apache-2.0
"""The server, as unmodified gRPC clients meet it, and as others do."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from osbase.rpc.call import Call, RpcError
from osbase.rpc.server import Server
from osbase.rpc.stream import Stream

WAIT_S = 20.0
Code = grpc.StatusCode


def connect(path: Path) -> Any:
    """A client with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"unix:{path}", options=options)


class Service:
    """Handlers that do what a test wants, and their server."""

    def __init__(self, directory: Path, workers: int = 4) -> None:
        self.path = directory / "s"
        self.arrived, self.opened = threading.Semaphore(0), threading.Event()
        self.left: list[float] = []
        self.ended = threading.Event()
        self.most, self._inside, self._mutex = 0, 0, threading.Lock()
        self.server = Server(
            blocking={
                "/t/Echo": self.echo,
                "/t/Fail": self.fail,
                "/t/Gate": self.gate,
                "/t/Linger": self.linger,
            },
            quick={"/t/Quick": self.echo, "/t/Fast": self.echo},
            streams={"/t/Count": self.count, "/t/Wait": self.wait},
            workers=workers,
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1000)],
        )
        self.server.listen(f"unix:{self.path}")
        self.server.start()
        self.channel = connect(self.path)

    def echo(self, request: bytes, _: Call) -> bytes:
        return request

    def fail(self, request: bytes, _: Call) -> bytes:
        if request == b"own":
            raise RpcError(Code.NOT_FOUND, "there is no ü")
        raise ZeroDivisionError

    def gate(self, _: bytes, call: Call) -> bytes:
        with self._mutex:
            self._inside += 1
            self.most = max(self.most, self._inside)
        self.arrived.release()
        assert self.opened.wait(WAIT_S)
        self.left.append(call.left_s())
        with self._mutex:
            self._inside -= 1
        return b"done"

    def linger(self, _: bytes, call: Call) -> bytes:
        self.arrived.release()
        until = time.monotonic() + WAIT_S
        while call.left_s() > 0:
            assert time.monotonic() < until
        self.ended.set()
        return b""

    def count(self, request: bytes, _: Stream) -> Generator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number
        if request == b"3":
            raise RpcError(Code.ABORTED, "three is enough")
        if request == b"4":
            raise ZeroDivisionError

    def wait(self, _: bytes, stream: Stream) -> Generator[bytes]:
        gone = threading.Event()
        assert stream.on_end(gone.set)
        yield b"begun"
        self.arrived.release()
        assert gone.wait(WAIT_S)
        assert not stream.on_end(gone.set)
        self.ended.set()

    def call(self, method: str) -> Any:
        return self.channel.unary_unary(f"/t/{method}")

    def stream(self, method: str, request: bytes) -> Any:
        return self.channel.unary_stream(f"/t/{method}")(request, timeout=WAIT_S)

    def close(self) -> None:
        self.opened.set()
        self.channel.close()
        self.server.stop(WAIT_S)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.close()


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


@pytest.mark.parametrize("method", ["Echo", "Quick"])
@pytest.mark.parametrize("request_", [b"", b"x", bytes(1000)])
def test_an_answer(service: Service, method: str, request_: bytes) -> None:
    for _ in range(3):
        assert service.call(method)(request_, timeout=WAIT_S) == request_


def test_errors_have_a_status_and_no_traceback(service: Service) -> None:
    fail = service.call("Fail")
    assert refusal(lambda: fail(b"own")) == (Code.NOT_FOUND, "there is no ü")
    code, details = refusal(lambda: fail(b"other"))
    assert code is Code.INTERNAL
    assert details == "fail: unexpected ZeroDivisionError; see the service's log"
    assert refusal(lambda: service.call("Nothing")(b""))[0] is Code.UNIMPLEMENTED
    assert refusal(lambda: service.call("Echo")(bytes(1001)))[0] is Code.RESOURCE_EXHAUSTED
    assert service.call("Echo")(b"still there", timeout=WAIT_S) == b"still there"


def test_a_handler_knows_how_long_the_caller_waits(service: Service) -> None:
    service.opened.set()
    assert service.call("Gate")(b"", timeout=10) == b"done"
    assert service.call("Gate")(b"") == b"done"
    assert 5 < service.left[0] < 11  # gRPC rounds up
    assert service.left[1] > 1e9


@pytest.mark.parametrize("how", ["cancel", "deadline", "end of the client"])
def test_a_handler_learns_that_the_caller_has_gone(service: Service, how: str) -> None:
    channel = connect(service.path)
    timeout = 0.2 if how == "deadline" else None
    call = channel.unary_unary("/t/Linger").future(b"", timeout=timeout)
    assert service.arrived.acquire(timeout=WAIT_S)
    if how == "cancel":
        call.cancel()
    if how != "deadline":
        channel.close()
    assert service.ended.wait(WAIT_S)
    channel.close()


def test_quick_methods_and_streams_answer_when_all_workers_are_stuck(service: Service) -> None:
    calls = [service.call("Gate").future(b"", timeout=WAIT_S) for _ in range(8)]
    for _ in range(4):
        assert service.arrived.acquire(timeout=WAIT_S)
    assert service.call("Quick")(b"x", timeout=WAIT_S) == b"x"
    assert list(service.stream("Count", b"2")) == [b"0", b"1"]
    service.opened.set()
    assert [call.result(WAIT_S) for call in calls] == [b"done"] * 8
    assert service.most == 4


def test_many_calls_at_once_from_many_connections(service: Service) -> None:
    def use(number: int) -> None:
        with connect(service.path) as channel:
            for step in range(50):
                sent = b"%d %d" % (number, step)
                assert channel.unary_unary("/t/Echo")(sent, timeout=WAIT_S) == sent

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(16)))


def test_quick_methods_at_once(service: Service) -> None:
    """A call of one arrives while that of another is read."""
    for _ in range(20):
        calls = [
            service.call(method).future(b"x", timeout=WAIT_S)
            for method in ("Quick", "Fast", "Echo") * 20
        ]
        assert [call.result() for call in calls] == [b"x"] * 60


def test_a_stream_and_its_end(service: Service) -> None:
    assert list(service.stream("Count", b"0")) == []
    assert list(service.stream("Count", b"2000")) == [b"%d" % n for n in range(2000)]
    for request, code, details in (
        (b"3", Code.ABORTED, "three is enough"),
        (b"4", Code.INTERNAL, "count: unexpected ZeroDivisionError; see the service's log"),
    ):
        call = service.stream("Count", request)
        assert [next(call) for _ in range(int(request))] == [b"%d" % n for n in range(int(request))]
        assert refusal(lambda: next(call)) == (code, details)  # noqa: B023
    assert refusal(lambda: next(service.stream("Count", b"x")))[0] is Code.INTERNAL


def test_a_stream_learns_that_the_caller_has_gone(service: Service) -> None:
    call = service.stream("Wait", b"")
    assert next(call) == b"begun"
    assert service.arrived.acquire(timeout=WAIT_S)
    call.cancel()
    assert service.ended.wait(WAIT_S)


def test_stop_lets_calls_end(service: Service) -> None:
    call = service.call("Gate").future(b"", timeout=WAIT_S)
    assert service.arrived.acquire(timeout=WAIT_S)
    with ThreadPoolExecutor() as pool:
        stop = pool.submit(service.server.stop, WAIT_S)
        while refusal_or_none(service) is None:
            pass
        assert not stop.done()
        service.opened.set()
        assert call.result(WAIT_S) == b"done"
        stop.result(WAIT_S)


def refusal_or_none(service: Service) -> grpc.StatusCode | None:
    """What a new connection's call fails with."""
    with connect(service.path) as channel:
        try:
            channel.unary_unary("/t/Echo")(b"", timeout=WAIT_S)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return None


def test_after_the_grace_calls_are_cancelled_and_handlers_waited_for(tmp_path: Path) -> None:
    service = Service(tmp_path)
    calls = [service.call("Gate").future(b""), service.stream("Wait", b"")]
    assert next(calls[1]) == b"begun"
    for _ in range(2):
        assert service.arrived.acquire(timeout=WAIT_S)
    with ThreadPoolExecutor() as pool:
        stop = pool.submit(service.server.stop, 0.1)
        assert refusal(calls[0].result)[0] in (Code.CANCELLED, Code.UNAVAILABLE)
        assert service.ended.wait(WAIT_S)
        assert not stop.done()
        service.opened.set()
        stop.result(WAIT_S)
    assert service.left == [0.0]
    service.channel.close()


def test_a_server_that_never_started_stops(tmp_path: Path) -> None:
    server = Server(blocking={}, quick={}, streams={}, workers=1)
    with pytest.raises(OSError, match="cannot listen at unix:/nowhere/s"):
        server.listen("unix:/nowhere/s")
    server.stop(0)


@pytest.mark.parametrize("workers", [1, 2, 96])
def test_servers_come_and_go(tmp_path: Path, workers: int) -> None:
    threads = threading.active_count()
    for number in range(3):
        directory = tmp_path / str(number)
        directory.mkdir()
        service = Service(directory, workers)
        assert service.call("Echo")(b"x", timeout=WAIT_S) == b"x"
        service.close()
    assert threading.active_count() <= threads + 1  # gRPC's own, of the client


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
# HEADERS of stream 1, END_HEADERS: POST /t/Echo, and no message after it.
FIELDS = b"".join(
    b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/t/Echo"),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
)
OPENED = len(FIELDS).to_bytes(3) + b"\1\4\0\0\0\1" + FIELDS


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE + b"\xff" * 100,
        PREFACE + SETTINGS + OPENED,
        PREFACE + SETTINGS + OPENED + b"\0\0\0\0\1\0\0\0\1",  # an end, no message
        PREFACE + SETTINGS + OPENED + b"\0\0\5\0\1\0\0\0\1\1\0\0\0\0",  # compressed how?
        PREFACE + SETTINGS + OPENED + b"\0\0\3\0\1\0\0\0\1\0\0\0",  # half a message
    ],
    ids=["HTTP/1", "garbage", "no message", "empty", "bad compression", "cut"],
)
def test_other_peers_harm_nobody(service: Service, sent: bytes) -> None:
    for _ in range(6):  # more than there are workers
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(service.path))
            with contextlib.suppress(BrokenPipeError):
                raw.sendall(sent)
        assert service.call("Echo")(b"x", timeout=WAIT_S) == b"x"


def test_a_call_without_a_message_does_not_keep_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osbase.rpc.call._MESSAGE_S", 0.2)
    service = Service(tmp_path, workers=1)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(service.path))
        raw.sendall(PREFACE + SETTINGS + OPENED)
        assert service.call("Echo")(b"x", timeout=WAIT_S) == b"x"
    service.close()
