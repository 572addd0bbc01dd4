# SPDX-License-Identifier: Apache-2.0
"""`serve`, killed at a chosen system call, in a process of its own.

It counts the system calls by which the service acts: entering a network
namespace, opening a netlink socket, sending on one. The calls are real; only
the chosen one has a SIGKILL of the own process before or after it:

    before N     the N-th call of its kind
    after N
    cut N M      the N-th, a send, only sends its first M messages: as if
                 the kernel had stopped there
    spoil N M    the kernel refuses message M of that send

A plan must mean the same in each process. So links have the same indexes in
each, by which the kernel sorts its lists; a dump that is repeated because
something changed meanwhile is one call; and a plan has its call's kind, and its
number among these: calls of other threads, e.g. for a link's event, do not
count.

The first plan is an argument, later ones come by `orders`: calls are counted
from 1 again, and the answer is None. The answer to the order None is the list
of counted calls.

Why not strace's injection: it does not know messages, and it stops every thread
at every call. kill_test uses it to show that no call is missed here.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, NoReturn

from metropolis.node.core.network.workloads.api import serve
from metropolis.node.core.network.workloads.engine import numbers
from metropolis.node.core.network.workloads.testing.trace import split
from osbase.netlink.message import HEADER, NLM_F_DUMP

_KINDS = {
    16: "NEWLINK",
    17: "DELLINK",
    18: "GETLINK",
    20: "NEWADDR",
    21: "DELADDR",
    22: "GETADDR",
    24: "NEWROUTE",
    25: "DELROUTE",
    26: "GETROUTE",
    108: "NEWLINKPROP",
    110: "GETLINKPROP",
    36: "NEWQDISC",
    38: "GETQDISC",
    44: "NEWTFILTER",
}


# For the first link of each service: a unique number in a listing.
_FIRST_INDEX = 0x1A5A5A5


class Call(NamedTuple):
    """A call that acts. messages: the kinds of a send's."""

    name: str
    messages: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {'+'.join(self.messages)}".strip()


class Plan(NamedTuple):
    """See the module. what: the call; None: it is never reached. nth: from 1.
    message: in a send, from 1.
    """

    when: str = "before"
    what: Call | None = None
    nth: int = 0
    message: int = 0


class Doom:
    """Counts, and ends the process when the plan says so."""

    def __init__(self, plan: Plan) -> None:
        self._lock = threading.Lock()
        self._plan = plan
        self._calls: list[Call] = []

    def arm(self, plan: Plan) -> None:
        """Count from 1 again."""
        with self._lock:
            self._plan, self._calls = plan, []

    def report(self) -> list[Call]:
        """The calls that were counted."""
        with self._lock:
            return list(self._calls)

    def begin(self, name: str, messages: list[bytes]) -> Plan | None:
        """A call is about to be made; return the plan if it is the one."""
        kinds = [HEADER.unpack_from(message)[1] for message in messages]
        call = Call(name, tuple(_KINDS.get(kind, str(kind)) for kind in kinds))
        with self._lock:
            self._calls.append(call)
            plan = self._plan
            if plan.what != call or plan.nth != self._calls.count(call):
                return None
        if plan.when == "before":
            die()
        return plan


def die() -> NoReturn:
    """SIGKILL; nothing runs after it."""
    while True:
        os.kill(os.getpid(), signal.SIGKILL)


def _spoilt(message: bytes) -> bytes:
    """The same header with a body too short for anything."""
    _, kind, flags, sequence, port = HEADER.unpack_from(message)
    return HEADER.pack(20, kind, flags, sequence, port) + message[16:20]


def _dump(messages: list[bytes]) -> bytes:
    """A dump without its sequence number; b"": it is none."""
    _, kind, flags, _, _ = HEADER.unpack_from(messages[0])
    dumps = flags & NLM_F_DUMP == NLM_F_DUMP
    return HEADER.pack(0, kind, flags, 0, 0) + messages[0][16:] if dumps else b""


def install(doom: Doom) -> None:
    """Put the counting before the real calls."""
    real_setns = os.setns

    class Counted(socket.socket):
        """A socket whose life begins with being counted. dump: what it sent
        last, if that was a dump.
        """

        dump = b""

        def __init__(self, family: int = -1, *rest: Any, **more: Any) -> None:
            plan = None
            if family == socket.AF_NETLINK:
                plan = doom.begin("socket", [])
            super().__init__(family, *rest, **more)
            if plan is not None:
                die()

        def send(self, data: bytes, flags: int = 0, /) -> int:  # type: ignore[override]
            if self.family != socket.AF_NETLINK:
                return super().send(data, flags)
            messages = split(data)
            dump = _dump(messages)
            if dump and dump == self.dump:
                return super().send(data, flags)
            self.dump = dump
            plan = doom.begin("send", messages)
            if plan is None:
                return super().send(data, flags)
            if plan.when == "cut":
                messages = messages[: plan.message]
            elif plan.when == "spoil":
                messages[plan.message - 1] = _spoilt(messages[plan.message - 1])
            super().send(b"".join(messages), flags)
            die()

    def setns(fd: int, kind: int = 0) -> None:
        plan = doom.begin("setns", [])
        real_setns(fd, kind)
        if plan is not None:
            die()

    socket.socket = Counted  # type: ignore[misc]
    os.setns = setns  # type: ignore[assignment]


def run(
    orders: Connection[list[Call] | None, Plan | None],
    output: Connection[None, None],
    log: str,
    plan: Plan,
    arguments: list[str],
) -> NoReturn:
    """`serve` with its own arguments, its output and log to these."""
    os.dup2(output.fileno(), 1)
    output.close()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC), 2)
    doom = Doom(plan)
    install(doom)
    numbers.random_index = lambda: _FIRST_INDEX

    def listen() -> None:
        with contextlib.suppress(EOFError):
            while True:
                order = orders.recv()
                if order is not None:
                    doom.arm(order)
                orders.send(doom.report() if order is None else None)

    threading.Thread(target=listen, daemon=True).start()
    sys.exit(serve.main(arguments))
