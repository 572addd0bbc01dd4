# SPDX-License-Identifier: Apache-2.0
"""After the answer of a Detach nothing from or to the workload passes.

Packets are sent without a pause between a pod, its neighbour and the node, both
ways and in both families, and carry the time at which they were sent. Pods are
detached meanwhile. Each packet that arrives was sent before the answer; the
link is deleted later.

$SILENCE_DETACHES detaches.
"""

import contextlib
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.model import AttachIntent, Attachment
from metropolis.node.core.network.workloads.testing.lab import WAIT_S, Pod

DETACHES = int(os.environ.get("SILENCE_DETACHES", "60"))
OUTPUTS = Path(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", "/tmp"))
FAMILIES = (socket.AF_INET, socket.AF_INET6)
PREFIXES = [ip_network("10.0.0.0/24"), ip_network("fd00::/120")]
NODE = {4: "169.254.77.1", 6: "fd01::1"}  # addresses of the node that pods reach
_TIME = struct.Struct("=Q")


@dataclass
class Flow:
    """Packets one way. sent, arrived: when the last such packet was sent,
    monotonic ns; 0: none.
    """

    name: str
    sender: socket.socket
    taker: socket.socket
    sent: int = 0
    arrived: int = 0


class Traffic:
    """Sends and takes packets of flows in threads, until it is closed."""

    def __init__(self, flows: list[Flow]) -> None:
        self.flows = flows
        self._ended = False
        self._taking = selectors.DefaultSelector()
        for flow in flows:
            flow.sender.setblocking(False)
            flow.taker.setblocking(False)
            self._taking.register(flow.taker, selectors.EVENT_READ, flow)
        half = len(flows) // 2
        parts = [lambda: self._send(flows[:half]), lambda: self._send(flows[half:]), self._take]
        self._threads = [threading.Thread(target=part) for part in parts]
        for thread in self._threads:
            thread.start()

    def _send(self, flows: list[Flow]) -> None:
        while not self._ended:
            for flow in flows:
                now = time.monotonic_ns()
                with contextlib.suppress(OSError):  # it is dropped, or unreachable
                    flow.sender.send(_TIME.pack(now))
                flow.sent = now

    def _take(self) -> None:
        while not self._ended:
            self._drain(0.05)
        self._drain(0)

    def _drain(self, wait_s: float) -> None:
        for key, _ in self._taking.select(wait_s):
            flow: Flow = key.data
            with contextlib.suppress(OSError):
                while data := flow.taker.recv(100):
                    flow.arrived = max(flow.arrived, *_TIME.unpack(data))

    def close(self) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()
        self._taking.close()
        for flow in self.flows:
            flow.sender.close()
            flow.taker.close()


def await_all(what: Callable[[Flow], bool], flows: list[Flow]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not all(map(what, flows)):
        assert time.monotonic() < deadline, [one.name for one in flows if not what(one)]
        time.sleep(0.001)


def await_sent(after: int, flows: list[Flow]) -> None:
    """Wait until each has sent a packet after this time."""
    await_all(lambda one: one.sent > after, flows)


def flow(name: str, family: int, start: Pod | None, end: Pod | None, address: str) -> Flow:
    """None: the node."""

    def make(where: Pod | None) -> socket.socket:
        if where is None:
            return socket.socket(family, socket.SOCK_DGRAM)
        return where.socket(family, socket.SOCK_DGRAM)

    sender, taker = make(start), make(end)
    taker.bind((address, 0))
    sender.connect((address, taker.getsockname()[1]))
    return Flow(name, sender, taker)


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    """The node forwards, and threads take turns: a full buffer would hide what
    comes late.
    """
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path(f"/proc/sys/net/{name}").write_text("1")
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    yield
    sys.setswitchinterval(before)


def flows_of(pod: Pod, made: Attachment, other: Pod, neighbour: Attachment) -> list[Flow]:
    found: list[Flow] = []
    for family, own, its in zip(FAMILIES, made.ips, neighbour.ips, strict=True):
        version = own.version
        for name, start, end, address in (
            ("pod to neighbour", pod, other, str(its)),
            ("neighbour to pod", other, pod, str(own)),
            ("pod to node", pod, None, NODE[version]),
            ("node to pod", None, pod, str(own)),
        ):
            found.append(flow(f"{name}, IPv{version}", family, start, end, address))
    return found


def test_nothing_passes_after_the_answer() -> None:
    engine = Engine(KernelDatapath())
    engine.start()
    engine.set_prefixes(PREFIXES)
    subprocess.run(["ip", "addr", "add", f"{NODE[6]}/128", "dev", "lo"], check=True)
    other = Pod()
    waits: list[float] = []
    neighbour = engine.attach(AttachIntent("neighbour", other.path, "eth0"))
    for number in range(DETACHES):
        pod = Pod()
        made = engine.attach(AttachIntent(f"w{number}", pod.path, "eth0"))
        traffic = Traffic(flows_of(pod, made, other, neighbour))
        try:
            await_all(lambda one: one.arrived > 0, traffic.flows)
            began = time.monotonic_ns()
            if number % 2:
                engine.detach(f"w{number}")
            else:
                engine.collect(lambda name, _: name == "neighbour")
            answered = time.monotonic_ns()
            # Each is sent again while the link is there, and after its end.
            await_sent(answered, traffic.flows)
            engine.settle()
            await_sent(time.monotonic_ns(), traffic.flows)
        finally:
            traffic.close()
        waits.append((answered - began) / 1e6)
        for one in traffic.flows:
            assert one.arrived <= answered, (
                f"detach {number}: {one.name}: a packet that was sent "
                f"{(one.arrived - answered) / 1e6:.3f} ms after the answer arrived"
            )
        pod.close()
    engine.detach("neighbour", until_gone=True)
    engine.close()
    other.close()
    text = (
        f"{DETACHES} detaches under load, 8 flows each: no packet that was sent after the answer "
        f"arrived; answered in {sorted(waits)[len(waits) // 2]:.2f} ms (median)\n"
    )
    print(text)
    (OUTPUTS / "silence.txt").write_text(text)
