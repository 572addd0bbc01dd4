# SPDX-License-Identifier: Apache-2.0
"""The lines of calls, with an engine on the fake datapath."""

import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from metropolis.node.core.main import ConsoleFormatter
from metropolis.node.core.network.workloads.datapath.bandwidth import PART
from metropolis.node.core.network.workloads.datapath.parts import LinkPart
from metropolis.node.core.network.workloads.engine import journal
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.engine.journal import FAILURES, Journal
from metropolis.node.core.network.workloads.errors import (
    InvalidArgument,
    KernelRefused,
    WorkloadError,
)
from metropolis.node.core.network.workloads.model import AttachIntent
from metropolis.node.core.network.workloads.testing.fake import FakeDatapath

WAIT_S = 20.0


class Kept(logging.Handler):
    """The lines, as node core's console has them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(ConsoleFormatter())
        self.lines: list[str] = []
        self.writes = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.writes += 1
        self.lines += self.format(record).split("\n")

    def texts(self) -> list[str]:
        """Return level and text of each line."""
        return [re.sub(r"^\[ *\d+\.\d{6}\] (.) workloads: ", r"\1 ", line) for line in self.lines]


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler, level = Kept(), journal.log.level
    journal.log.addHandler(handler)
    journal.log.setLevel(logging.INFO)
    yield handler
    journal.log.removeHandler(handler)
    journal.log.setLevel(level)


class World:
    """An engine with a namespace `/0`."""

    def __init__(self, written: Journal, parts: Sequence[LinkPart] = ()) -> None:
        self.datapath = FakeDatapath(parts=parts)
        self.datapath.kernel.add_netns("/0")
        self.engine = Engine(self.datapath, journal=written)
        self.engine.set_prefixes([ip_network("10.0.0.0/24"), ip_network("fd00::/112")])
        self.engine.start()

    def attach(self, workload_id: str, if_name: str = "eth0", owner: str = "api") -> str:
        """Attach; return the rest of the line."""
        made = self.engine.attach(AttachIntent(workload_id, "/0", if_name, owner=owner))
        return f"{', '.join(map(str, made.ips))} on {made.host_interface}"


def without_times(texts: list[str]) -> list[str]:
    return [re.sub(r"in \d+\.\d\d ms", "in N ms", text) for text in texts]


def test_each_call_has_a_line(kept: Kept) -> None:
    world = World(Journal())
    first, second = world.attach("web-1"), world.attach("web-1", "eth1", owner="cni pods")
    world.attach("web-1")
    world.engine.detach("web-1", if_name="eth0")
    world.engine.detach("web-1")
    world.engine.detach("web-1")
    third = world.attach("b c'\x7e")
    world.engine.collect(lambda *_: False)
    with pytest.raises(InvalidArgument):
        world.engine.attach(AttachIntent("web-2", "/0", "a/b"))
    with pytest.raises(WorkloadError):
        world.engine.attach(AttachIntent("web-2", "/none", "eth0"))
    with pytest.raises(InvalidArgument):
        world.engine.detach("w\n\x1b[2J", "/0", "eth0")
    world.engine.close()
    found = without_times(kept.texts())
    assert found[:8] == [
        f"I attach web-1 eth0: attached in N ms: {first}",
        f"I ADD web-1 eth1: attached in N ms: {second}",
        "I attach web-1 eth0: nothing to do in N ms: it is attached already, by the same request",
        f"I detach web-1 eth0: detached in N ms: {first}",
        f"I detach web-1 eth1: detached in N ms: {second}",
        "I detach web-1: nothing to do in N ms: no such interface, or in another namespace",
        f"""I attach "b c'~" eth0: attached in N ms: {third}""",
        f"""I collect "b c'~" eth0: removed in N ms: {third}""",
    ]
    assert found[8].startswith("W attach web-2 a/b: INVALID_ARGUMENT in N ms: if_name 'a/b'")
    assert found[9].startswith("W attach web-2 eth0: NOT_FOUND in N ms: ")
    assert found[10].startswith(r"W detach 'w\n\x1b[2J' eth0: INVALID_ARGUMENT in N ms: ")
    assert len(found) == 11
    assert all(line.isprintable() for line in kept.lines)


def test_changes_have_a_line(kept: Kept) -> None:
    world = World(Journal(), (PART,))
    made = world.attach("web-1", owner="cni pods")
    world.attach("web-1", owner="cni pods")
    world.engine.change("web-1", "eth0", ("b", "=i1000000"))
    world.engine.change("web-1", "eth0", ("b", "=i1000000"))
    with pytest.raises(WorkloadError):
        world.engine.change("web-2", "eth0", ("b", "="))
    world.engine.close()
    link = made.rpartition(" ")[2]
    assert without_times(kept.texts()) == [
        f"I ADD web-1 eth0: attached in N ms: {made}",
        "I ADD web-1 eth0: nothing to do in N ms: it is attached already, by the same request",
        f"I change web-1 eth0: changed in N ms: bandwidth =i1000000 on {link}",
        "I change web-1 eth0: nothing to do in N ms: it is so already",
        "W change web-2 eth0: NOT_FOUND in N ms: workload 'web-2': is not attached",
    ]


def test_what_the_kernel_refused(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Journal())

    def refuse(*_: object, **__: object) -> None:
        raise KernelRefused("attach 'web-1': add route 10.0.0.1/32 dev wl0: EEXIST")

    monkeypatch.setattr(world.datapath, "create", refuse)
    with pytest.raises(KernelRefused):
        world.attach("web-1")
    world.engine.close()
    assert without_times(kept.texts()) == [
        "W attach web-1 eth0: INTERNAL in N ms: attach 'web-1': add route 10.0.0.1/32 dev wl0: "
        "EEXIST"
    ]


def test_a_client_that_repeats_itself_floods_nothing(kept: Kept) -> None:
    """Each kind has some lines, and a count; others are not pushed out."""
    world = World(Journal())
    for number in range(5 * FAILURES):
        with pytest.raises(WorkloadError):
            world.engine.attach(AttachIntent(f"web-{number}", "/none" + "x" * 3000, "eth0"))
        world.engine.detach("web-1")
    world.attach("web-1")
    world.engine.close()
    texts = without_times(kept.texts())
    assert sum("NOT_FOUND in" in text for text in texts) == FAILURES
    assert sum("nothing to do in" in text for text in texts) == FAILURES
    assert sum("attached in" in text for text in texts) == 1
    assert texts[-2:] == [
        f"W attach: NOT_FOUND: {4 * FAILURES} more within 60 s",
        f"W detach: nothing to do: {4 * FAILURES} more within 60 s",
    ]
    assert max(map(len, kept.lines)) < 1000


def test_the_count_comes_also_when_nothing_else_happens(kept: Kept) -> None:
    written = Journal(delay_s=0.01, window_s=0.1)
    world = World(written)
    for _ in range(FAILURES + 1):
        world.engine.detach("web-1")
    until = time.monotonic() + WAIT_S
    while not kept.lines or "more within" not in kept.lines[-1]:
        assert time.monotonic() < until
        time.sleep(0.01)
    world.engine.detach("web-1")
    world.engine.close()
    assert "nothing to do in" in kept.lines[-1], "a new window"


class Interface:
    """An attachment."""

    workload_id, if_name, host_interface = "web-1", "eth0", "wl0"
    ips = (ip_address("10.0.0.1"), ip_address("fd00::1"))


def test_nothing_is_lost_and_few_writes_are_made(kept: Kept) -> None:
    """Calls at once, and a clean stop, and what comes after it."""
    written = Journal()

    def call(number: int) -> None:
        for _ in range(500):
            written.done(f"t{number}", Interface(), time.perf_counter())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(8)))
    written.close()
    assert len(kept.lines) == 4000
    assert kept.writes < 40
    written.done("late", Interface(), time.perf_counter())
    assert "late web-1 eth0" in kept.lines[-1]


def test_it_is_bounded(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BACKLOG", 10)
    written = Journal(delay_s=WAIT_S)
    for _ in range(25):
        written.done("attach", Interface(), time.perf_counter())
    written.close()
    assert len(kept.lines) == 11
    assert kept.texts()[-1] == "W 15 calls at once: not listed"


def test_a_log_that_takes_nothing_delays_no_call(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard error is a pipe, and its reader has stopped."""
    monkeypatch.setattr(journal, "BACKLOG", 10)
    monkeypatch.setattr(journal, "CLOSE_S", 0.1)
    written, stuck, reads = Journal(delay_s=0.001), threading.Event(), threading.Event()

    def emit(_: logging.LogRecord) -> None:
        stuck.set()
        reads.wait(WAIT_S)

    monkeypatch.setattr(kept, "emit", emit)
    written.done("attach", Interface(), time.perf_counter())
    assert stuck.wait(WAIT_S)

    def call() -> None:
        for _ in range(25):
            written.done("attach", Interface(), time.perf_counter())
        for _ in range(25):
            written.failed("attach", "w" * 10**6, "e", "X", "y" * 10**6, time.perf_counter())
        written.close()

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(WAIT_S / 2)
    assert not caller.is_alive()
    assert len(written._queue) == 10
    assert written._left_out == 40
    reads.set()


def test_an_error_does_not_end_the_writer(kept: Kept) -> None:
    wrong: Any = Interface()
    wrong.ips = (None,)
    written = Journal(delay_s=0.001)
    written.done("attach", wrong, time.perf_counter())
    until = time.monotonic() + WAIT_S
    while not any("lines of calls are lost" in line for line in kept.lines):
        assert time.monotonic() < until
        time.sleep(0.001)
    written.done("late", Interface(), time.perf_counter())
    while not any("late web-1" in line for line in kept.lines):
        assert time.monotonic() < until
        time.sleep(0.001)
    written.close()


def test_what_waits_is_short() -> None:
    written = Journal(delay_s=WAIT_S)
    written.failed("attach", "w" * 10**6, "e" * 10**6, "X", "y" * 10**6, time.perf_counter())
    (one,) = written._queue
    assert sum(len(part) for part in one if isinstance(part, str)) < 4000
    written.close()


def test_lines_have_the_time_of_the_call(kept: Kept) -> None:
    written = Journal()
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    written.done("attach", Interface(), time.perf_counter())
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    time.sleep(0.05)
    written.close()
    (line,) = kept.lines
    assert before - 0.01 <= float(line[1:13]) <= after + 0.01


def test_a_level_above_writes_less(kept: Kept) -> None:
    journal.log.setLevel(logging.WARNING)
    written = Journal()
    written.done("attach", Interface(), time.perf_counter())
    written.failed("attach", "web-1", "eth0", "NOT_FOUND", "no such", time.perf_counter())
    written.close()
    assert without_times(kept.texts()) == ["W attach web-1 eth0: NOT_FOUND in N ms: no such"]


def test_no_thread_can_be_started(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    written = Journal()
    written.done("attach", Interface(), time.perf_counter())
    written.close()
    assert len(kept.lines) == 1


def test_calls_after_a_while_are_written_too(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer has stopped to look, and is woken."""
    monkeypatch.setattr(journal, "_IDLE_LOOKS", 1)
    written = Journal(delay_s=0.001)
    for number in range(200):
        written.done("attach", Interface(), time.perf_counter())
        until = time.monotonic() + WAIT_S
        while len(kept.lines) <= number:
            assert time.monotonic() < until
            time.sleep(0.0005)
        time.sleep(0.001 * (number % 4))
    written.close()
    assert len(kept.lines) == 200


@given(some.ip_addresses())
def test_addresses_are_as_python_writes_them(ip: object) -> None:
    text = journal._address(ip)  # type: ignore[arg-type]
    assert ip_address(text) == ip


@given(some.text(max_size=400), some.text(max_size=900))
def test_any_text_is_one_line(name: str, why: str) -> None:
    written = Journal()
    lines = list(written._failure(("attach", name, name, "INTERNAL", why, 0.0, 1.0)))
    record = logging.LogRecord("workloads", 30, "", 0, journal.Lines(lines), (), None)
    assert ConsoleFormatter().format(record).isprintable()
