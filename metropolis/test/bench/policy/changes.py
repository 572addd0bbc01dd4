# SPDX-License-Identifier: Apache-2.0
"""How long the old policies judge, when one of many changes.

A process connects all the time, and another one has a flow whose bytes go there
and back. A policy then no longer allows both. Times are from the request until
SetPolicies answers, until the last connection began that was accepted, and
until the last byte came back.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from metropolis.node.core.network.policy import messages
from metropolis.node.core.network.policy.sources import Source
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.common.terminal import say
from metropolis.test.bench.packets.packets import Host, pod_address
from metropolis.test.bench.policy import synthetic
from metropolis.test.bench.policy.direct import Policies
from metropolis.test.bench.policy.report import Figure, figure
from metropolis.test.world.namespaces import Netns
from osbase import conntrack
from osbase.nftables import Nftables

_ECHO, _GREET = 1001, 1002  # ports of packets.traffic
_SETTLES_S: Final = 0.3
# Between two probes, so that these leave the processors to the change.
_PAUSE_S: Final = 0.001
_RESET: Final = struct.pack("ii", 1, 0)


def measure(
    host: Host, nft: Nftables, directory: Path, policies: int, addresses: int, rounds: int
) -> list[Figure]:
    """Measure `rounds` changes of one among all policies."""
    node = Policies(nft, directory)
    apps = min(policies, synthetic.APPS)
    say(f"policy: {policies:,} policies, {addresses:,} addresses, to change one")
    for number in range(addresses // 2):
        one = synthetic.record(number)
        if number < 2:  # the first two have the pods' addresses
            ips = tuple(ip_address(pod_address(number, version)) for version in (4, 6))
            one = replace(one, ips=ips)
        node.manager.admit(one, synthetic.identity(number, apps))
    all_ = synthetic.policies(policies)
    # The policy of the second pod: without its rules, nothing reaches it.
    closed = (all_[0], replace(all_[1], ingress=()), *all_[2:])
    found: dict[str, list[float]] = {"answer": [], "last connection": [], "last byte": []}
    for number in range(rounds):
        say(f"policy: change {number + 1} of {rounds}")
        node.set(messages.request(Source("api", 2 * number + 1, all_)).SerializeToString())
        conntrack.flush()
        request = messages.request(Source("api", 2 * number + 2, closed)).SerializeToString()
        with (
            _probing(host.netns["pod0"], _connect) as connects,
            _probing(host.netns["pod0"], _round_trips) as flow,
        ):
            time.sleep(_SETTLES_S)
            began = time.monotonic()
            node.set(request)
            answered = time.monotonic()
            time.sleep(_SETTLES_S)
        found["answer"].append((answered - began) * 1e3)
        for name, last in (("last connection", connects), ("last byte", flow)):
            found[name].append(max(_read(last) - began, 0.0) * 1e3)
    part = f"change, {addresses:,} addresses"
    return [figure(part, name, "ms", some) for name, some in found.items()]


@contextlib.contextmanager
def _probing(netns: Netns, probe: Callable[[], Iterator[float]]) -> Iterator[int]:
    """Run a probe in a process, for a block; yield where it writes the latest
    time that it had, when it ends.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            _run(netns, probe, writing)
        os._exit(0)
    os.close(writing)
    try:
        yield reading
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def _run(netns: Netns, probe: Callable[[], Iterator[float]], writing: int) -> None:
    last = 0.0

    def end(*_: object) -> None:
        os.write(writing, json.dumps(last).encode())
        os._exit(0)

    signal.signal(signal.SIGTERM, end)

    def work() -> None:
        nonlocal last
        for at in probe():
            last = at

    with contextlib.suppress(OSError):
        netns.inside(work)
    while True:
        signal.pause()


def _read(reading: int) -> float:
    with open(reading, "rb") as pipe:
        data = pipe.read()
    last = float(json.loads(data)) if data else 0.0
    if not last:
        raise BenchError("nothing passed before the change")
    return last


def _connect() -> Iterator[float]:
    """Yield when a connection began, of those that were accepted."""
    while True:
        with socket.socket() as sock:
            sock.settimeout(1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            began = time.monotonic()
            try:
                sock.connect((pod_address(1, 4), _GREET))
            except OSError:
                time.sleep(_PAUSE_S)
                continue
            yield began
        time.sleep(_PAUSE_S)


def _round_trips() -> Iterator[float]:
    """Yield when a byte came back. Raises OSError when the flow is cut."""
    with socket.create_connection((pod_address(1, 4), _ECHO), timeout=1) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            sock.send(b"x")
            if not sock.recv(1):
                return
            yield time.monotonic()
            time.sleep(_PAUSE_S)
