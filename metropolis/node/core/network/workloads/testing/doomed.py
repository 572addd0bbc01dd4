# SPDX-License-Identifier: Apache-2.0
"""`serve`, ended by SIGKILL at a chosen system call: run as a program.

Counted are the system calls by which this service acts: entering a network
namespace, opening a netlink socket, sending on one. The calls are the real
ones; only at the chosen one a SIGKILL to ourselves comes first or follows:

    before N, after N   the N-th call
    cut N M             the N-th call, a send, only sends its first M messages:
                        as if the kernel had stopped there
    spoil N M           message M of that send is one that the kernel refuses

A plan is a line on standard input, or $DOOM for the time before `ready`; its
answer is `armed`. From then on calls are counted, from 1. `report` is answered
with a line of JSON: what each counted call was, with its messages.

Why not strace's injection: it knows no messages, and it stops every thread at
every call. It is used to show that this counts all there is; see kill_test.
"""

import json
import os
import signal
import socket
import sys
import threading
from typing import Any, NamedTuple, NoReturn

from metropolis.node.core.network.workloads import serve
from metropolis.node.core.network.workloads.testing.trace import split
from osbase.netlink.message import HEADER

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
}


class Plan(NamedTuple):
    """See the module; call 0 is never reached."""

    when: str = "before"
    call: int = 0
    message: int = 0


class Doom:
    """Counts, and ends the process when the plan says so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plan = Plan()
        self._calls: list[list[str]] = []

    def arm(self, plan: Plan) -> None:
        """Count from 1 again."""
        with self._lock:
            self._plan, self._calls = plan, []

    def report(self) -> list[list[str]]:
        """Of each call: its name, and of a send the kinds of its messages."""
        with self._lock:
            return list(self._calls)

    def begin(self, name: str, messages: list[bytes]) -> Plan | None:
        """A call is about to be made; return the plan if it is the one."""
        with self._lock:
            kinds = [HEADER.unpack_from(message)[1] for message in messages]
            self._calls.append([name, *(_KINDS.get(kind, str(kind)) for kind in kinds)])
            hit = self._plan.call == len(self._calls)
        if hit and self._plan.when == "before":
            die()
        return self._plan if hit else None


def die() -> NoReturn:
    """SIGKILL; nothing runs after it."""
    while True:
        os.kill(os.getpid(), signal.SIGKILL)


def _spoilt(message: bytes) -> bytes:
    """The same header with a body too short for anything."""
    _, kind, flags, sequence, port = HEADER.unpack_from(message)
    return HEADER.pack(20, kind, flags, sequence, port) + message[16:20]


def install(doom: Doom) -> None:
    """Put the counting before the real calls."""
    real_setns = os.setns

    class Counted(socket.socket):
        """A socket whose life begins with being counted."""

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


def parse(line: str) -> Plan:
    """A plan as it is written: `cut 3 2`, `before 1`."""
    when, call, *message = line.split()
    return Plan(when, int(call), int(message[0]) if message else 0)


def _listen(doom: Doom) -> None:
    for line in sys.stdin:
        if line == "report\n":
            print(json.dumps(doom.report()), flush=True)
        else:
            doom.arm(parse(line))
            print("armed", flush=True)


def main() -> int:
    """`serve` with its own arguments."""
    doom = Doom()
    install(doom)
    doom.arm(parse(os.environ.get("DOOM", "before 0")))
    threading.Thread(target=_listen, args=(doom,), daemon=True).start()
    return serve.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
