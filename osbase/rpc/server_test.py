# SPDX-License-Identifier: Apache-2.0
"""Both servers, with unmodified gRPC clients and with others."""

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from osbase.rpc.choose import server_class
from osbase.rpc.testing import (
    PREFACE,
    SETTINGS,
    WAIT_S,
    Code,
    Service,
    connect,
    frame,
    headers,
    refusal,
)

OPENED = headers("/t/Echo")


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
            for step in range(20):
                sent = b"%d %d" % (number, step)
                assert channel.unary_unary("/t/Echo")(sent, timeout=WAIT_S) == sent

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(16)))


def test_quick_methods_at_once(service: Service) -> None:
    """A call of one arrives while another's is read."""
    for _ in range(8):
        calls = [
            service.call(method).future(b"x", timeout=WAIT_S)
            for method in ("Quick", "Fast", "Echo") * 20
        ]
        assert [call.result() for call in calls] == [b"x"] * 60


def test_a_stream_and_its_end(service: Service) -> None:
    assert list(service.stream("Count", b"0")) == []
    assert list(service.stream("Count", b"500")) == [b"%d" % n for n in range(500)]
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
    """Return the code with which a call on a new connection fails."""
    with connect(service.path) as channel:
        try:
            channel.unary_unary("/t/Echo")(b"", timeout=WAIT_S)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return None


def test_after_the_grace_calls_are_cancelled_and_handlers_waited_for(
    tmp_path: Path, kind: str
) -> None:
    service = Service(tmp_path, kind)
    # The second returns when it is cancelled, the first later.
    calls = [service.call("Gate").future(b""), service.call("Linger").future(b"")]
    stream = service.stream("Wait", b"")
    assert next(stream) == b"begun"
    for _ in range(3):
        assert service.arrived.acquire(timeout=WAIT_S)
    with ThreadPoolExecutor() as pool:
        stop = pool.submit(service.server.stop, 0.1)
        for call in calls:
            assert refusal(call.result)[0] in (Code.CANCELLED, Code.UNAVAILABLE)
        assert service.ended.wait(WAIT_S)
        assert not stop.done()
        service.opened.set()
        stop.result(WAIT_S)
    service.channel.close()


def test_a_server_that_never_started_stops(kind: str) -> None:
    server = server_class(kind)(blocking={}, quick={}, streams={}, workers=1)
    with pytest.raises(OSError, match="cannot listen at unix:/nowhere/s"):
        server.listen("unix:/nowhere/s")
    server.stop(0)


@pytest.mark.parametrize("workers", [1, 2, 96])
def test_servers_come_and_go(tmp_path: Path, kind: str, workers: int) -> None:
    threads = threading.active_count()
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        service = Service(directory, kind, workers)
        assert service.call("Echo")(b"x", timeout=WAIT_S) == b"x"
        service.close()
    assert threading.active_count() <= threads + 1  # gRPC's own, of the client


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE + b"\xff" * 100,
        PREFACE + SETTINGS + OPENED,
        PREFACE + SETTINGS + OPENED + frame(0, 1, 1),  # an end, no message
        PREFACE + SETTINGS + OPENED + frame(0, 1, 1, b"\1\0\0\0\0"),  # compressed how?
        PREFACE + SETTINGS + OPENED + frame(0, 1, 1, bytes(3)),  # half a message
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
