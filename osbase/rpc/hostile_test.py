# SPDX-License-Identifier: Apache-2.0
"""Clients that misbehave; honest ones still get answers."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from osbase.rpc import limits, stock
from osbase.rpc.choose import QUEUES, STOCK
from osbase.rpc.testing import (
    PREFACE,
    SETTINGS,
    WAIT_S,
    Code,
    Raw,
    Service,
    connect,
    frame,
    headers,
    message,
    refusal,
)
from osbase.rpc.unread import PRESSED_S

STREAMS_MAX = 32 + 8  # threads of streams, those of the other server included


def threads(of: str) -> int:
    return sum(one.name.startswith(of) for one in threading.enumerate())


def assert_answers(service: Service, wait_s: float = WAIT_S) -> None:
    """Assert that each kind of method answers a new client."""
    with connect(service.path) as channel:
        for method in ("Quick", "Fast", "Echo"):
            assert channel.unary_unary(f"/t/{method}")(b"x", timeout=wait_s) == b"x"
        stream = channel.unary_stream("/t/Count")(b"2", timeout=wait_s)
        assert list(stream) == [b"0", b"1"]


def test_calls_without_a_message(service: Service, kind: str) -> None:
    """There are more calls of each kind of method than threads, on one
    connection and on others, and the clients stay.
    """
    with ExitStack() as stack:
        for method in ("Quick", "Echo", "Wait", "Nothing"):
            for count in (24, 1, 1) if kind == QUEUES else (4, 1):
                raw = Raw(service.path)
                stack.callback(raw.close)
                raw.open(f"/t/{method}", count)
        assert_answers(service)


def test_many_calls_without_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With grpc.server, where each takes a thread for a while, a later call
    does not wait for all of them.
    """
    # Long enough for the honest one's message on a busy machine, where the one
    # thread of grpc.server has the hostile calls to take before.
    monkeypatch.setattr(stock, "_WANTED_S", 10.0)
    with ExitStack() as stack:
        service = stack.enter_context(closing(Service(tmp_path, STOCK)))
        for method in ("Quick", "Echo", "Wait"):
            raw = stack.enter_context(closing(Raw(service.path)))
            raw.open(f"/t/{method}", 200)
        # One behind the other they would take 200 / 16 x 10 s.
        assert_answers(service, 4 * WAIT_S)


def test_streams_without_a_message_have_no_thread(tmp_path: Path) -> None:
    with closing(Service(tmp_path, QUEUES)) as service, closing(Raw(service.path)) as raw:
        raw.open("/t/Wait", 300)
        assert_answers(service)
        assert threads("rpc-stream") <= 1  # that of the honest one may be ending


def test_a_message_that_does_not_come_is_not_waited_for(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets an error with the reason."""
    monkeypatch.setattr(stock, "_WANTED_S", 1.0)
    service = Service(tmp_path, kind)

    def never() -> Iterator[bytes]:
        ended.wait(WAIT_S)
        yield from ()

    ended = threading.Event()
    call = service.channel.stream_unary("/t/Quick").future(never())
    code, details = refusal(call.result)
    ended.set()
    if kind == QUEUES:
        assert (code, details) == (
            Code.DEADLINE_EXCEEDED,
            "quick: no message came within 2 s",
        )
    else:
        assert code is Code.CANCELLED
    service.close()


def test_a_message_that_comes_late_is_answered(service: Service) -> None:
    """It is answered if no other call waits for the thread."""

    def late() -> Iterator[bytes]:
        come.wait(WAIT_S)
        yield b"x"

    for method in ("Echo", "Quick"):
        come = threading.Event()
        call = service.channel.stream_unary(f"/t/{method}").future(late(), timeout=WAIT_S)
        assert_answers(service)
        come.set()
        assert call.result() == b"x"


def test_a_message_that_is_late_for_the_only_thread(tmp_path: Path) -> None:
    """On a busy machine it is some tenths of a second behind the call."""

    def late() -> Iterator[bytes]:
        time.sleep(PRESSED_S / 2)
        yield b"x"

    with closing(Service(tmp_path, QUEUES, workers=1)) as service:
        assert service.channel.stream_unary("/t/Echo")(late(), timeout=WAIT_S) == b"x"


def test_streams_are_limited_and_a_place_is_free_again(service: Service) -> None:
    for _ in range(2):
        streams: list[Any] = []
        while len(streams) < 32:
            stream = service.stream("Wait", b"")
            try:
                assert next(stream) == b"begun"
            except Exception:
                assert stream.code() is Code.RESOURCE_EXHAUSTED  # one is ending
            else:
                streams.append(stream)
        code, details = refusal(lambda: next(service.stream("Wait", b"")))
        assert (code, details) == (
            Code.RESOURCE_EXHAUSTED,
            "wait: there are 32 already; end one",
        )
        assert threads("rpc-stream") <= STREAMS_MAX
        assert service.call("Quick")(b"x", timeout=WAIT_S) == b"x"
        for stream in streams:
            stream.cancel()


def test_a_reader_that_does_not_read(service: Service) -> None:
    """The streams' messages stay; others are answered."""
    with ExitStack() as stack:
        for _ in range(4):
            raw = Raw(service.path, PREFACE, SETTINGS)
            stack.callback(raw.close)
            for number in range(1, 12, 2):
                raw.send(headers("/t/Count", number), message(b"100000", number))
        assert_answers(service)


def flood(kind: str) -> bytes:
    """Return the bytes that follow a valid beginning."""
    call = headers("/t/Echo")
    many = range(1, 1000, 2)
    return {
        "pings": frame(6, 0, 0, bytes(8)) * 2000,
        "settings": SETTINGS * 2000,
        "resets": b"".join(headers("/t/Echo", n) + frame(3, 0, n, bytes(4)) for n in many),
        "quick resets": b"".join(headers("/t/Quick", n) + frame(3, 0, n, bytes(4)) for n in many),
        "continuations": headers("/t/Echo", flags=0) + frame(9, 0, 1, bytes(100)) * 2000,
        "headers": headers("/t/Echo", flags=0) + frame(9, 0, 1, b"\x10\1a\1b" * 4000) * 20,
        "empty data": call + frame(0, 0, 1) * 2000,
        "window": call + frame(8, 0, 1, b"\x7f\xff\xff\xff") * 2,
        "priorities": b"".join(frame(2, 0, n, bytes(5)) for n in many),
        "unknown frames": frame(99, 255, 77, bytes(100)) * 1000,
        "a length that does not come": b"\xff\xff\xff\0\0\0\0\0\1",
        "even stream": headers("/t/Echo", 2),
        "push": frame(5, 4, 1, bytes(10)),
        "a huge message": call + frame(0, 0, 1, b"\0\xff\xff\xff\xff" + bytes(1000)),
        "two messages": call + frame(0, 0, 1, b"\0\0\0\0\1x") + message(b"y"),
        "streams": b"".join(headers("/t/Echo", n) + message(b"x", n) for n in range(1, 1000, 2)),
    }[kind]


FLOODS = [
    *("pings", "settings", "resets", "quick resets", "continuations", "headers", "empty data"),
    *("window", "priorities", "unknown frames", "a length that does not come", "even stream"),
    *("push", "a huge message", "two messages", "streams"),
]


def test_floods(service: Service) -> None:
    """All of them, from clients that stay and do not read."""
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        raws = []
        for _ in FLOODS:
            raw = Raw(service.path, PREFACE, SETTINGS)
            stack.callback(raw.close)
            raws.append(raw)
        for raw in (Raw(service.path), Raw(service.path, PREFACE[:10])):
            stack.callback(raw.close)
        sending = [
            pool.submit(raw.send, flood(kind)) for raw, kind in zip(raws, FLOODS, strict=True)
        ]
        for _ in range(2):
            assert_answers(service)
        for raw in raws:
            raw.shut()
        for one in sending:
            one.result()
        assert_answers(service)


def test_a_server_says_how_many_calls_a_connection_may_have(service: Service) -> None:
    raw = Raw(service.path, PREFACE, SETTINGS)
    kind, _, _, data = next(raw.frames())
    assert kind == 4
    settings = {
        data[n : n + 2]: int.from_bytes(data[n + 2 : n + 6]) for n in range(0, len(data), 6)
    }
    assert settings[b"\0\3"] == 1000  # MAX_CONCURRENT_STREAMS, RFC 9113 section 6.5.2
    raw.close()


def test_connections_without_calls_make_room(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("max_allowed_incoming_connections", 4), ("max_connection_idle_ms", 200)):
        assert limits._OPTIONS[f"grpc.{name}"] > value
        monkeypatch.setitem(limits._OPTIONS, f"grpc.{name}", value)
    service = Service(tmp_path, kind)
    raws = [Raw(service.path, PREFACE, SETTINGS) for _ in range(4)]
    for raw in raws:
        next(raw.frames())  # it is a connection
    assert service.call("Echo")(b"x", timeout=2 * WAIT_S, wait_for_ready=True) == b"x"
    service.close()
    for raw in raws:
        raw.close()


def test_stop_ends_whatever_clients_do(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(tmp_path, kind)
    raws = [Raw(service.path) for _ in range(4)]
    for raw, method in zip(raws, ("Quick", "Echo", "Wait", "Count"), strict=True):
        raw.open(f"/t/{method}", 6)
    assert_answers(service)
    service.channel.close()
    # No message arrives any more.
    monkeypatch.setattr(stock, "_WANTED_S", 0.5)
    service.server.stop(0.5)
    for raw in raws:
        raw.close()


def test_stop_ends_although_clients_do_not_read(tmp_path: Path, kind: str) -> None:
    """Nor does it matter if they close the flow control window."""
    service = Service(tmp_path, kind)
    closed_window = frame(4, 0, 0, b"\0\4\0\0\0\0")
    raws = [Raw(service.path, PREFACE, window) for window in (SETTINGS, closed_window)]
    sending = threading.Thread(target=raws[0].send, args=(frame(6, 0, 0, bytes(8)) * 20_000,))
    sending.start()
    raws[1].send(*(headers("/t/Quick", n) + message(b"x", n) for n in range(1, 600, 2)))
    for _ in range(10):
        assert_answers(service)
    service.channel.close()
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(service.server.stop, 0.1)
        try:
            stop.result(WAIT_S)
        finally:
            for raw in raws:
                raw.shut()
    sending.join()
    for raw in raws:
        raw.close()
