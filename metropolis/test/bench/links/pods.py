# SPDX-License-Identifier: Apache-2.0
"""Network namespaces of the guest, and timed sends into them.

The program has one thread, so it may change its namespace as it likes.
"""

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from metropolis.test.bench.links import messages
from metropolis.test.bench.links.messages import Pod
from metropolis.test.bench.links.model import Kind, LinksError
from osbase.netlink import netns
from osbase.netlink.errors import errno_name
from osbase.netlink.message import Request, decode, encode, error_of
from osbase.netlink.transport import open_raw

_RECEIVE = 32768


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace: its descriptor, that of the host, a route socket inside."""

    fd: int
    home: int
    route: socket.socket

    @classmethod
    def new(cls, home: int) -> Self:
        os.unshare(netns.CLONE_NEWNET)
        try:
            return cls(netns.open_current(), home, open_raw())
        finally:
            os.setns(home, netns.CLONE_NEWNET)

    def run(self, argv: Sequence[str]) -> str:
        """Run a program in it to its end; return its output."""
        with netns.Inside(self.fd, self.home):
            done = subprocess.run(argv, check=False, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise LinksError(f"{' '.join(argv)}: status {done.returncode}: {said}")
        return done.stdout

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Open a socket inside; the caller closes it."""
        with netns.Inside(self.fd, self.home):
            return socket.socket(family, kind, protocol)

    def close(self) -> None:
        self.route.close()
        os.close(self.fd)


class Refused(LinksError):
    """The kernel refused a request. name: of the errno; text: why, or ""."""

    def __init__(self, what: str, number: int, text: str) -> None:
        self.name = errno_name(number)
        self.text = text
        super().__init__(f"{what}: {self.name} {text}".rstrip())


def send(route: socket.socket, requests: Sequence[Request]) -> float:
    """Send a batch, read the one answer; return how long that took, in us.

    Encoding is not counted: it is Python's, and the same for every kind.
    """
    data = encode(requests, 1)
    begin = time.perf_counter_ns()
    route.send(data)
    answer = route.recv(_RECEIVE)
    elapsed = time.perf_counter_ns() - begin
    answers = [*decode(answer)]
    while answers[-1].sequence != len(requests):  # a refusal; the rest follows
        answers += decode(route.recv(_RECEIVE))
    for message in answers:
        number, text = error_of(message)
        if number:
            raise Refused(requests[message.sequence - 1].what, number, text)
    return elapsed / 1000


def attach(
    host: socket.socket, namespace: Namespace, kind: Kind, pod: Pod
) -> tuple[float, float, float]:
    """Attach; return how long the three sends took, in us."""
    return (
        send(host, messages.create(kind, pod, namespace.fd)),
        send(namespace.route, messages.inside(pod)),
        send(host, messages.commit(pod)),
    )
