# SPDX-License-Identifier: Apache-2.0
"""The floor: an attach's kernel work as encoded messages, and nothing else.

    floor dual|ipv4     two sends: messages.host_batch, messages.inner_batch
    floor same          the bytes that our own datapath sends, except the file
                        of the namespace; recorded from real attaches

Messages are encoded, and the namespace's file is opened, before the clock
starts; opening the socket inside the namespace counts. `same` is the cost of
the service's messages without the service, so it changes with the datapath; the
other two do not.
"""

import errno
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from metropolis.node.core.network.host import prepare_host
from metropolis.test.bench.attach import messages, recording
from metropolis.test.bench.attach.commands import answer_commands
from metropolis.test.bench.attach.model import Op, Pod
from metropolis.test.bench.attach.timing import Call
from metropolis.test.bench.common.errors import BenchError

_VERSIONS = {"dual": (4, 6), "same": (4, 6), "ipv4": (4,)}
_RECORDED = 128  # attaches; at most so many of `same` exist at once


@dataclass(frozen=True, slots=True)
class _Work:
    """One attach: sends on the host, then in the namespace, then on the host
    again, any of which may be missing.
    """

    steps: tuple[tuple[bool, bytes, int], ...]  # inside, datagram, last sequence

    @classmethod
    def of(cls, datagrams: Sequence[tuple[bool, bytes]]) -> _Work:
        return cls(
            tuple((inside, data, messages.last_sequence(data)) for inside, data in datagrams)
        )


class Floor:
    """commands.Work."""

    def __init__(self, kind: str) -> None:
        self._versions = _VERSIONS[kind]
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._idle: list[socket.socket] = []
        self._files: list[int] = []
        self._templates: list[recording.Recorded] = []
        self._same = kind == "same"
        if self._same:
            self._templates = recording.record(_RECORDED)
        self._links: dict[int, tuple[int, recording.Recorded | None]] = {}

    def prepare(self, op: Op, pods: Sequence[Pod], extra: dict[str, Any]) -> list[Call]:
        """See Work. extra "plain": not `same`, so that there may be many."""
        if op is Op.ADD:
            plain = bool(extra.get("plain")) or not self._same
            return [self._adding(pod, plain) for pod in pods]
        calls: list[Call] = []
        for pod in pods:
            index, template = self._links.pop(pod.number)
            if template is not None:
                self._templates.append(template)
            data = messages.delete_batch(index)
            calls.append(partial(self._on_host, data, messages.last_sequence(data)))
        return calls

    def _adding(self, pod: Pod, plain: bool) -> Call:
        there = os.open(pod.path, os.O_RDONLY | os.O_CLOEXEC)
        self._files.append(there)
        if plain:
            self._links[pod.number] = (messages.host_index(pod.number), None)
            host = messages.host_batch(pod.number, there, self._versions)
            inner = messages.inner_batch(pod.number, self._versions)
            work = _Work.of([(False, host), (True, inner)])
        else:
            if not self._templates:
                raise BenchError(f"floor same: more than {_RECORDED} at once")
            template = self._templates.pop()
            self._links[pod.number] = (template.index, template)
            work = _Work.of(template.for_netns(there))
        return partial(self._attach, there, work)

    def done(self, op: Op, pods: Sequence[Pod]) -> None:
        """See Work."""
        for file in self._files:
            os.close(file)
        self._files.clear()

    def _attach(self, there: int, work: _Work) -> None:
        inner: socket.socket | None = None
        for inside, data, last in work.steps:
            if not inside:
                self._on_host(data, last)
                continue
            if inner is None:
                os.setns(there, os.CLONE_NEWNET)
                inner = _open()
                os.setns(self._home, os.CLONE_NEWNET)
            _exchange(inner, data, last)
        if inner is not None:
            inner.close()

    def _on_host(self, data: bytes, last: int) -> None:
        try:
            host = self._idle.pop()
        except IndexError:
            host = _open()
        _exchange(host, data, last)
        self._idle.append(host)


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def _exchange(sock: socket.socket, data: bytes, last: int) -> None:
    """Send; return at the acknowledgement of the last message. That of a commit
    is the route of multicast, which the kernel may have added.
    """
    sock.send(data)
    while True:
        sequence, number = messages.acknowledgement(sock.recv(65536))
        if number and (sequence, number) != (last, errno.EEXIST):
            raise BenchError(f"message {sequence} of {last}: {os.strerror(number)}")
        if sequence == last:
            return


def main(arguments: list[str]) -> int:
    """floor KIND, in the namespace that is the host."""
    prepare_host()
    return answer_commands(Floor(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
