# SPDX-License-Identifier: Apache-2.0
"""Five hundred peers: what it takes to program them, and to change one.

Figures are printed; what is asserted is counted in messages and system calls.
"""

from __future__ import annotations

import base64
import gc
import importlib
import socket
import sys
import time
import tracemalloc
import types
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from metropolis.node.core.network.overlay.device import PeerChange
from metropolis.node.core.network.overlay.kernel import LinuxKernel
from metropolis.node.core.network.overlay.mesh import Peer
from metropolis.node.core.network.overlay.peers import Index, difference
from metropolis.node.core.network.overlay.testing.contract import KEY, PORT, key, net
from metropolis.node.core.network.overlay.testing.lab import Space, spaces

MANY = 500


class Counted(socket.socket):
    """A netlink socket that counts what is sent and received."""

    sends: int
    receives: int

    def send(self, data: bytes, flags: int = 0, /) -> int:  # type: ignore[override]
        self.sends += 1
        return super().send(data, flags)

    def recvfrom(self, size: int, flags: int = 0, /) -> tuple[bytes, tuple[int, int]]:
        answer = super().recvfrom(size, flags)
        self.receives += 1
        return answer


class Counting:
    """Opens sockets of a namespace, and counts over all of them."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self.sockets: list[Counted] = []

    def __call__(self, protocol: int) -> socket.socket:
        raw = self._space.open_socket(protocol)
        counted = Counted(fileno=raw.detach())
        counted.sends = counted.receives = 0
        self.sockets.append(counted)
        return counted

    def measure(self, call: Callable[[], object]) -> tuple[int, int, float]:
        """Sends, receives, milliseconds."""
        before = [(one.sends, one.receives) for one in self.sockets]
        begun = time.perf_counter()
        call()
        took = (time.perf_counter() - begun) * 1000
        sends = sum(one.sends for one in self.sockets) - sum(one[0] for one in before)
        receives = sum(one.receives for one in self.sockets) - sum(one[1] for one in before)
        return sends, receives, took


def peer(number: int) -> Peer:
    high, low = number >> 8, number & 255
    return Peer(
        f"n{number}",
        key(number),
        ip_address(f"192.0.{high}.{low}"),
        PORT,
        net(f"10.{192 + high}.{low}.0/24", f"fd00:10:192::{number:x}:0/112"),
    )


@pytest.mark.parametrize("others", [10, MANY])
def test_cold_start_and_one_change(others: int) -> None:
    """A dual-stack prefix each. The change is one message of one send."""
    with spaces("scale") as (space,):
        counting = Counting(space)
        kernel = LinuxKernel(counting)
        kernel.ensure_link(1420, KEY, PORT)
        index = Index()
        nodes = {f"n{n}": peer(n) for n in range(1, others + 1)}
        index.change(nodes)
        kernel.device()
        tracemalloc.start()
        changes = difference({}, index.entries)
        sends, receives, took = counting.measure(lambda: kernel.apply(changes))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(
            f"\n{others} peers, cold: {sends} messages, a send each, {took:.0f} ms, "
            f"{peak / 1024:.0f} KiB of Python at most"
        )
        sends, receives, took = counting.measure(kernel.device)
        print(f"{others} peers, list them: {sends} send, {receives} datagrams, {took:.0f} ms")
        assert difference(kernel.device().peers, index.entries) == []
        times = []
        gc.collect()
        for n in range(1, 31):
            number = n % others + 1
            moved = replace(peer(number), endpoint=ip_address(f"198.51.100.{n}"))
            sends, receives, took = counting.measure(
                lambda moved=moved: kernel.apply(index.change({moved.node_id: moved}))  # type: ignore[misc]
            )
            assert (sends, receives) == (1, 1)
            times.append(took)
        print(
            f"{others} peers, one change: 1 message, 1 send, 1 receive, "
            f"{sorted(times)[15]:.2f} ms median"
        )
        kernel.close()


def test_pyroute2_beside_it() -> None:
    """Why it is not used: it sends a message per peer."""
    # Images have no sqlite3, which pyroute2 imports whatever it is used for.
    sys.modules.setdefault("sqlite3", types.ModuleType("sqlite3"))
    begun = time.perf_counter()
    WireGuard = importlib.import_module("pyroute2").WireGuard  # noqa: N806
    print(f"\npyroute2 is imported in {(time.perf_counter() - begun) * 1000:.0f} ms")
    few = 200
    with spaces("scale") as (space,):
        kernel = space.kernel()
        kernel.ensure_link(1420, KEY, PORT)

        def program() -> float:
            with WireGuard() as other:
                begun = time.perf_counter()
                for n in range(1, few + 1):
                    one = peer(n)
                    other.set(
                        "overlay",
                        peer={
                            "public_key": base64.b64encode(one.public_key),
                            "endpoint_addr": str(one.endpoint),
                            "endpoint_port": one.port,
                            "allowed_ips": [str(prefix) for prefix in one.prefixes],
                        },
                    )
                return time.perf_counter() - begun

        theirs = space.inside(program)
        present = kernel.device().peers
        kernel.apply([PeerChange(public, remove=True) for public in present])
        index = Index()
        index.change({f"n{n}": peer(n) for n in range(1, few + 1)})
        changes = [replace(change, prompt=False) for change in difference({}, index.entries)]
        begun = time.perf_counter()
        ours = kernel.apply(changes)
        print(
            f"\n{few} peers: pyroute2 {few} messages, {theirs * 1000:.0f} ms; "
            f"here {ours} messages, {(time.perf_counter() - begun) * 1000:.0f} ms"
        )
        assert kernel.device().peers == present
        kernel.close()
