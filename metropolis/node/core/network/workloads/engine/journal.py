# SPDX-License-Identifier: Apache-2.0
"""A line of the log for each call that changed something, or failed.

    attach ── add ──> [bounded queue] ── a writer, a second later ──> log
    detach ── add ──>                     all that is there, in one write

A call only puts values into the queue, which takes a microsecond; a call of
logging takes as long as a twentieth of an attach. So lines are written after
the answer, with the time of the call. While there are calls, the writer looks
every second, and no call makes the system call that would wake it. `close`
writes what is left. A call never waits for the log, which may take nothing for
a while: what is added meanwhile is bounded, in number and length.

Successes are all written. Failures, and calls that had nothing to do, may come
from a client that repeats itself: of one kind there are at most FAILURES lines
within WINDOW_S, and then a count.
"""

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final, Protocol

from metropolis.node.core.network.workloads.model import OWNER_API, IPAddress
from metropolis.node.core.network.workloads.validate import show

log = logging.getLogger("workloads")

DELAY_S: Final = 1.0
FAILURES: Final = 20
WINDOW_S: Final = 60.0
BACKLOG: Final = 20_000  # calls within DELAY_S; more are counted
NOTHING: Final = "nothing to do"
"""The kind of a call that found all as it is wanted."""
_IDLE_LOOKS: Final = 10  # in vain; then the writer waits to be woken
_TEXT_MAX: Final = 600  # characters of an error
_NAME_MAX: Final = 1000  # characters of a name; a valid one has fewer
CLOSE_S: Final = 5.0  # a log that takes nothing delays a stop so long


class Interface(Protocol):
    """What a line has of an attachment, or its record."""

    @property
    def workload_id(self) -> str:
        """See Attachment; so for the others."""

    @property
    def if_name(self) -> str: ...

    @property
    def ips(self) -> tuple[IPAddress, ...]: ...

    @property
    def host_interface(self) -> str: ...


class Lines:
    """Lines of several moments that are written at once: the message of one
    record of the log. each: time as in time.time(), level, text.
    """

    def __init__(self, each: Sequence[tuple[float, int, str]]) -> None:
        self.lines = each

    def __str__(self) -> str:
        return "\n".join(text for _, _, text in self.lines)


# The arguments of `done` and `failed`, the time, and what the call took, ms.
type _Done = tuple[str, Interface, str, float, float]
type _Failed = tuple[str, str, str, str, str, float, float]


class Journal:
    """See the module. Thread-safe. began: time.perf_counter() at its begin."""

    def __init__(self, delay_s: float = DELAY_S, window_s: float = WINDOW_S) -> None:
        self._delay_s = delay_s
        self._window_s = window_s
        self._queue: deque[_Done | _Failed] = deque()
        self._looking = False  # the writer looks, so nothing need wake it
        self._news = threading.Event()
        self._closing = threading.Event()
        self._closed = False
        self._mutex = threading.Lock()  # for what is below
        self._writer: threading.Thread | None = None
        self._left_out = 0
        self._left_out_mutex = threading.Lock()  # never held while something is written
        self._failures: Counter[tuple[str, str]] = Counter()
        self._window_ends = 0.0

    def done(self, what: str, interface: Interface, began: float, detail: str = "") -> None:
        """Add an interface that was attached, changed or removed. what: the
        call. detail: instead of its addresses.
        """
        self._add((what, interface, detail, time.time(), (time.perf_counter() - began) * 1000))

    def failed(
        self, what: str, workload_id: str, if_name: str, kind: str, why: str, began: float
    ) -> None:
        """Add a call that failed, or had nothing to do.

        kind: lines of it are bounded. why: for people.
        """
        took_ms = (time.perf_counter() - began) * 1000
        # They may be long, of a client that sends garbage.
        workload_id, if_name = workload_id[:_NAME_MAX], if_name[:_NAME_MAX]
        why = why[: _TEXT_MAX + 1]
        self._add((what, workload_id, if_name, kind, why, time.time(), took_ms))

    def close(self) -> None:
        """Write what is left, unless the log takes nothing for CLOSE_S. What
        comes later is written at once.
        """
        self._closing.set()
        self._news.set()
        writer = self._writer
        if writer is not None:
            writer.join(CLOSE_S)
            if writer.is_alive():
                return
        self._closed = True
        self._write(last=True)

    def _add(self, one: _Done | _Failed) -> None:
        if len(self._queue) >= BACKLOG:
            with self._left_out_mutex:
                self._left_out += 1
            return
        self._queue.append(one)
        if not self._looking:
            self._looking = True
            if self._writer is None:
                self._start()
            self._news.set()
        if self._closed:
            self._write(last=True)

    def _start(self) -> None:
        with self._mutex:
            if self._writer is not None or self._closing.is_set():
                return
            writer = threading.Thread(target=self._run, name="journal", daemon=True)
            try:
                writer.start()
            except RuntimeError:  # no thread can be started: the next call tries again
                self._looking = False
                return
            self._writer = writer

    def _run(self) -> None:
        while not self._closing.is_set():
            self._news.wait()
            self._news.clear()
            idle = 0
            while idle < _IDLE_LOOKS and not self._closing.wait(self._delay_s):
                idle = 0 if self._try_to_write() else idle + 1
            # In this order: a call after the first line wakes this thread, and
            # what was added before it is written here.
            self._looking = False
            self._try_to_write()

    def _try_to_write(self) -> bool:
        """Write what there is; an error must not end the writer."""
        try:
            return self._write()
        except Exception:
            with contextlib.suppress(Exception):
                log.exception("lines of calls are lost")
            return True

    def _write(self, *, last: bool = False) -> bool:
        """Write what there is. Return whether there was something, or will be
        without a further call.
        """
        with self._mutex:
            lines = [line for line in self._lines(last=last) if log.isEnabledFor(line[1])]
            if lines:
                log.log(max(level for _, level, _ in lines), Lines(lines))
            return bool(lines or self._failures)

    def _lines(self, *, last: bool) -> Iterator[tuple[float, int, str]]:
        while self._queue:
            one = self._queue.popleft()
            if len(one) == 5:
                what, interface, detail, when, took_ms = one
                yield when, logging.INFO, _text(what, interface, detail, took_ms)
            else:
                yield from self._failure(one)
        with self._left_out_mutex:
            left_out, self._left_out = self._left_out, 0
        if left_out:
            yield time.time(), logging.WARNING, f"{left_out} calls at once: not listed"
        if last or (self._failures and time.monotonic() >= self._window_ends):
            yield from self._end_window()

    def _failure(self, one: _Failed) -> Iterator[tuple[float, int, str]]:
        what, workload_id, if_name, kind, why, when, took_ms = one
        if not self._failures:
            self._window_ends = time.monotonic() + self._window_s
        self._failures[what, kind] += 1
        if self._failures[what, kind] <= FAILURES:
            named = " ".join([what, *map(_name, filter(None, (workload_id, if_name)))])
            text = f"{named}: {kind} in {took_ms:.2f} ms: {_short(why)}"
            yield when, logging.INFO if kind == NOTHING else logging.WARNING, text

    def _end_window(self) -> Iterator[tuple[float, int, str]]:
        for (what, kind), count in self._failures.items():
            if count > FAILURES:
                text = f"{what}: {kind}: {count - FAILURES} more within {self._window_s:g} s"
                yield time.time(), logging.WARNING, text
        self._failures.clear()


_PAST: Final = {
    "attach": "attached", "ADD": "attached", "change": "changed", "detach": "detached",
}  # fmt: skip


def verb(owner: str) -> str:
    """Return what an attach is called by its caller. Pure."""
    return "attach" if owner == OWNER_API else "ADD"


def _text(what: str, one: Interface, detail: str, took_ms: float) -> str:
    detail = detail or ", ".join(_address(ip) for ip in one.ips)
    return (
        f"{what} {_name(one.workload_id)} {_name(one.if_name)}: {_PAST.get(what, 'removed')} "
        f"in {took_ms:.2f} ms: {detail} on {one.host_interface}"
    )


def _address(ip: IPAddress) -> str:
    """Return str(ip), in a tenth of the time."""
    return inet_ntop(AF_INET if ip.version == 4 else AF_INET6, ip.packed)


def _name(text: str) -> str:
    """Return it without quotes if it is one word of ASCII."""
    one_word = text.isascii() and text.isprintable() and " " not in text and len(text) <= 255
    return text if one_word else show(text)


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "..."
