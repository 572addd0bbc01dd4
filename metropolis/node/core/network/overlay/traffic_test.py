# SPDX-License-Identifier: Apache-2.0
"""Nodes on the real kernel, and traffic between their pods.

    pod0 -- node0 --+
    pod1 -- node1 --+-- wan     each node in a network of its own; wan routes
    pod2 -- node2 --+

A node is a namespace with an Overlay of its own. `Cluster` does the store's
work: it hands each node's identity to all others, a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import select
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest

from metropolis.node.core.network.overlay.mesh import (
    Exchange,
    Identity,
    IPAddress,
    Mesh,
    Peer,
)
from metropolis.node.core.network.overlay.overlay import Overlay
from metropolis.node.core.network.overlay.testing.contract import net
from metropolis.node.core.network.overlay.testing.lab import Space, spaces
from osbase import event
from osbase.net.links import LinkState
from osbase.supervisor import Backoff, Context, Supervisor
from osbase.test.namespaces import LIMIT_S

NETWORKS = net("10.192.0.0/12", "fd00:10:192::/64")
PORT = 51820
STORE_S = 0.03
"""From one node to another through a store, seconds: a pessimistic guess."""


def underlay(number: int, version: int, host: int = 2) -> IPAddress:
    """A node's address on its own network."""
    return ip_address(f"192.0.{number}.{host}" if version == 4 else f"2001:db8:{number}::{host}")


def pod_address(number: int, version: int) -> IPAddress:
    return ip_address(f"10.192.{number}.7" if version == 4 else f"fd00:10:192::{number}:7")


@dataclass
class Node:
    """One node, its pod, its overlay and the overlay's inputs."""

    number: int
    space: Space
    pod: Space
    directory: Path
    grace_s: float
    mesh: event.Value[Mesh] = field(default_factory=lambda: event.Value[Mesh]("mesh"))
    peers: event.Table[str, Peer] = field(default_factory=lambda: event.Table[str, Peer]("peers"))
    published: event.Value[Identity] = field(
        default_factory=lambda: event.Value[Identity]("published")
    )
    uplink: event.Value[LinkState | None] = field(
        default_factory=lambda: event.Value[LinkState | None]("uplink")
    )
    endpoint: IPAddress = field(init=False)
    overlay: Overlay = field(init=False)
    kill: asyncio.Event = field(init=False)
    killed: asyncio.Event = field(init=False)
    supervisor: Supervisor = field(init=False)
    running: asyncio.Task[list[str]] | None = None

    @property
    def name(self) -> str:
        return f"node{self.number}"

    def make(self) -> None:
        """Stand for a new process, without inputs yet."""
        self.kill, self.killed = asyncio.Event(), asyncio.Event()
        self.uplink.set(None)
        self.overlay = Overlay(
            Exchange(self.mesh, self.peers, self.published),
            self.uplink,
            state_dir=str(self.directory / self.name),
            kernel=self.space.kernel(),
            grace_s=self.grace_s,
        )

    def start(self) -> None:
        async def mortal(ctx: Context) -> None:
            living = asyncio.create_task(self.overlay.run(ctx))
            dying = asyncio.create_task(self.kill.wait())
            try:
                await asyncio.wait([living, dying], return_when=asyncio.FIRST_COMPLETED)
            finally:
                living.cancel()
                dying.cancel()
                await asyncio.gather(living, dying, return_exceptions=True)
            self.kill.clear()
            self.killed.set()
            raise RuntimeError("killed by the test")

        self.supervisor = Supervisor(mortal, make_backoff=lambda: Backoff(first_s=0.1))
        self.running = asyncio.create_task(self.supervisor.run(10.0))

    async def stop(self) -> None:
        if self.running is not None:
            self.supervisor.request_stop()
            assert await self.running == []
            self.running = None

    def record(self, identity: Identity) -> Peer:
        """Return the node as others see it."""
        number = self.number
        return Peer(
            self.name,
            identity.public_key,
            self.endpoint,
            PORT,
            net(f"10.192.{number}.0/24", f"fd00:10:192::{number}:0/112"),
            identity.next_public_key,
        )

    def own_mesh(self, wanted_key_epoch: int = 0) -> Mesh:
        number = self.number
        own = net(f"10.192.{number}.0/24", f"fd00:10:192::{number}:0/112")
        return Mesh(NETWORKS, own, wanted_key_epoch=wanted_key_epoch)


class Cluster:
    """The store: it passes a node's identity to all others."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.delay_s = STORE_S  # until others hear
        self.echo_s = 0.0  # from then until the node itself hears
        self.closed: set[tuple[str, str]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        for node in self.nodes:
            self._tasks.append(asyncio.create_task(self._follow(node)))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _follow(self, node: Node) -> None:
        async for identity in node.overlay.identity.watch():
            await asyncio.sleep(self.delay_s)
            steps: list[Callable[[Identity], None]]
            steps = [functools.partial(self.tell, node), node.published.set]
            if self.echo_s < 0:
                steps.reverse()
            steps[0](identity)
            await asyncio.sleep(abs(self.echo_s))
            steps[1](identity)

    def tell(self, node: Node, identity: Identity) -> None:
        for other in self.nodes:
            if other is not node:
                other.peers.set(node.name, node.record(identity))


def forward() -> None:
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", path).write_text("1")


def wire(nodes: list[Node], wan: Space, version: int) -> None:
    """Connect them: each to wan, and its pod to it."""
    for space in (wan, *(node.space for node in nodes)):
        space.inside(forward)
    for node in nodes:
        n, here = node.number, node.space
        here.sh(f"ip link add up0 type veth peer name w{n} netns wan")
        wan.sh(f"ip link set w{n} up")
        here.sh("ip link set up0 up")
        for family in (4, 6):
            bits = 24 if family == 4 else 64
            nodad = "" if family == 4 else "nodad"
            wan.sh(f"ip address add {underlay(n, family, 1)}/{bits} dev w{n} {nodad}")
            here.sh(f"ip address add {underlay(n, family)}/{bits} dev up0 {nodad}")
            here.sh(f"ip -{family} route add default via {underlay(n, family, 1)}")
        node.endpoint = underlay(n, version)
        here.sh(f"ip link add pod type veth peer name eth0 netns {node.pod.name}")
        here.sh("ip link set pod up group 8")
        node.pod.sh("ip link set eth0 up")
        here.sh("ip address add 169.254.77.1/32 dev lo")
        here.sh("ip address add fe80::1/64 dev pod nodad")
        node.pod.sh(f"ip address add {pod_address(n, 4)}/32 dev eth0")
        node.pod.sh(f"ip address add {pod_address(n, 6)}/128 dev eth0 nodad")
        node.pod.sh("ip route add 169.254.77.1 dev eth0")
        node.pod.sh("ip route add default via 169.254.77.1")
        node.pod.sh("ip -6 route add default via fe80::1 dev eth0")
        here.sh(f"ip route add {pod_address(n, 4)} dev pod")
        here.sh(f"ip -6 route add {pod_address(n, 6)} dev pod")


@contextlib.asynccontextmanager
async def world(
    directory: Path, count: int = 2, version: int = 4, grace_s: float = 0.5
) -> AsyncIterator[Cluster]:
    """Nodes, connected, running, and known to each other."""
    names = ["wan", *(f"node{n}" for n in range(count)), *(f"pod{n}" for n in range(count))]
    with spaces(*names) as (wan, *rest):
        nodes = [Node(n, rest[n], rest[count + n], directory, grace_s) for n in range(count)]
        wire(nodes, wan, version)
        cluster = Cluster(nodes)
        for node in nodes:
            node.make()
        cluster.start()
        try:
            for node in nodes:
                node.start()
                node.mesh.set(node.own_mesh())
            for node in nodes:
                await node.published.watch().get()
            yield cluster
        finally:
            for node in nodes:
                await node.stop()
            await cluster.stop()


INTERVAL_S = 0.01
ONE_SECOND = 100
"""Datagrams. WireGuard's own wait for a lost handshake is five."""

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def udp(space: Space, version: int, port: int = 0) -> socket.socket:
    def make() -> socket.socket:
        sock = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        sock.bind(("", port))
        return sock

    return space.inside(make)


def reach(a: Space, b: Space, to: IPAddress, limit_s: float = LIMIT_S) -> IPAddress | None:
    """Send from a until b receives; return the source, None: it does not."""
    with udp(a, to.version) as sender, udp(b, to.version) as receiver:
        port = receiver.getsockname()[1]
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            # No route yet, or nobody has its prefix (WireGuard: ENOKEY).
            with contextlib.suppress(OSError):
                sender.sendto(b"hello", (str(to), port))
            if select.select([receiver], [], [], 0.1)[0]:
                return ip_address(receiver.recvfrom(100)[1][0])
    return None


class Stream:
    """Numbered datagrams from one pod to another and back, all the time, on
    threads. It counts losses and the longest gap, each way.
    """

    def __init__(self, a: Node, b: Node, version: int) -> None:
        self._near = udp(a.pod, version)
        self._far = udp(b.pod, version)
        self._to = (str(pod_address(b.number, version)), self._far.getsockname()[1])
        self._stop = threading.Event()
        self._quiet = threading.Event()
        self.there: list[tuple[int, float]] = []
        self.back: list[tuple[int, float]] = []
        self.sent_at: list[float] = []
        self._first = 0
        self._threads = [
            threading.Thread(target=run) for run in (self._send, self._echo, self._receive)
        ]

    def _send(self) -> None:
        while not self._quiet.wait(INTERVAL_S):
            self.sent_at.append(time.monotonic())
            with contextlib.suppress(OSError):
                self._near.sendto(b"%d" % (self.sent - 1), self._to)

    def _echo(self) -> None:
        while not self._stop.is_set():
            if select.select([self._far], [], [], 0.2)[0]:
                data, sender = self._far.recvfrom(100)
                self.there.append((int(data), time.monotonic()))
                with contextlib.suppress(OSError):
                    self._far.sendto(data, sender)

    def _receive(self) -> None:
        while not self._stop.is_set():
            if select.select([self._near], [], [], 0.2)[0]:
                self.back.append((int(self._near.recvfrom(100)[0]), time.monotonic()))

    @property
    def sent(self) -> int:
        return len(self.sent_at)

    async def __aenter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        await until(lambda: len(self.back) > 20)
        self._first = self.sent
        return self

    async def settle(self, seconds: float = 1.5) -> None:
        """Continue for a while, so that losses show."""
        before = len(self.back)
        await asyncio.sleep(seconds)
        await until(lambda: len(self.back) > before + 20)

    async def __aexit__(self, *_: object) -> None:
        self._quiet.set()
        with contextlib.suppress(TimeoutError):
            await until(lambda: bool(self.back) and self.back[-1][0] == self.sent - 1, 2.0)
        self._stop.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._near.close()
        self._far.close()

    def lost(self) -> int:
        """Return the losses since all was well."""
        return sum(self._runs())

    def _runs(self) -> list[int]:
        """Return the length of each run of losses."""
        heard = {number for number, _ in self.back}
        lost = [number not in heard for number in range(self._first, self.sent)]
        return [len(list(run)) for missing, run in itertools.groupby(lost) if missing]

    def report(self, what: str) -> int:
        """Print it; returns the most datagrams lost in a row.

        What waits for a handshake is late, but not lost. Times include what an
        emulated machine takes to run threads at all.
        """
        late = []
        for heard in (self.there, self.back):
            waits = [when - self.sent_at[number] for number, when in heard if number >= self._first]
            late.append(max(waits, default=99.0) * 1000)
        run = max(self._runs(), default=0)
        span = (self.sent_at[-1] - self.sent_at[self._first]) / (self.sent - self._first)
        print(
            f"\n{what}: {self.sent - self._first} datagrams, one in {span * 1000:.0f} ms;"
            f" {self.lost()} round trips lost, {run} in a row at most;"
            f" latest there {late[0]:.0f} ms, and back {late[1]:.0f} ms"
        )
        return run


async def until(what: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not what():  # noqa: ASYNC110 - the kernel, or a thread
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("version", [4, 6])
async def test_pods_and_nodes_reach_pods(tmp_path: Path, version: int) -> None:
    """Both families over an underlay of either; the pod's own source; and from
    the node its address in the overlay, to which the pod's answer returns.
    """
    async with world(tmp_path, 3, version) as cluster:
        for a in cluster.nodes:
            for b in cluster.nodes:
                for family in (4, 6):
                    if a is b:
                        continue
                    to = pod_address(b.number, family)
                    assert await asyncio.to_thread(reach, a.pod, b.pod, to) == pod_address(
                        a.number, family
                    )
                    own = net(f"10.192.{a.number}.0/24", f"fd00:10:192::{a.number}:0/112")
                    source = own[family == 6].network_address
                    assert await asyncio.to_thread(reach, a.space, b.pod, to) == source
                    assert await asyncio.to_thread(reach, b.pod, a.space, source) is not None
        # A missing pod is not looked for on other nodes.
        absent = ip_address("10.192.0.99")
        with udp(cluster.nodes[0].space, 4) as sender, pytest.raises(OSError, match="No route"):
            sender.sendto(b"x", (str(absent), 9))


async def test_a_removed_peer_is_a_stranger(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as cluster:
        a, b, c = cluster.nodes
        for other in (b, c):
            to = pod_address(other.number, 4)
            assert await asyncio.to_thread(reach, a.pod, other.pod, to)
        b.peers.delete(a.name)
        await until(lambda: b.space.sh("wg show overlay peers").count("\n") == 1)
        assert await asyncio.to_thread(reach, a.pod, b.pod, pod_address(1, 4), 2.0) is None
        assert await asyncio.to_thread(reach, a.pod, c.pod, pod_address(2, 4))


async def test_an_endpoint_that_moves(tmp_path: Path) -> None:
    """Peers send to the new address at once, not when they hear from it."""
    async with world(tmp_path) as cluster:
        a, b = cluster.nodes
        assert await asyncio.to_thread(reach, a.pod, b.pod, pod_address(1, 4))
        b.space.sh(f"ip address del {underlay(1, 4)}/24 dev up0")
        b.space.sh(f"ip address add {underlay(1, 4, 3)}/24 dev up0")
        b.space.sh(f"ip route add default via {underlay(1, 4, 1)}")
        b.endpoint = underlay(1, 4, 3)
        cluster.tell(b, b.overlay.identity.peek())
        begun = time.monotonic()
        assert await asyncio.to_thread(reach, a.pod, b.pod, pod_address(1, 4))
        print(f"an endpoint that moved: reached again after {time.monotonic() - begun:.2f} s")
        assert "192.0.1.3:51820" in a.space.sh("wg show overlay endpoints")


async def test_a_restart_loses_no_packet(tmp_path: Path) -> None:
    """The runnable restarts, and the process while the store is away."""
    async with world(tmp_path) as cluster:
        a, b = cluster.nodes
        async with Stream(a, b, 4) as stream:
            for _ in range(3):
                a.killed.clear()
                a.kill.set()
                await a.killed.wait()
            await stream.settle()
            await a.stop()
            a.mesh, a.peers = event.Value[Mesh]("mesh"), event.Table[str, Peer]("peers")
            a.make()
            a.start()
            await a.overlay.identity.watch().get()
            await stream.settle()
            # It gets its peers again, and nothing has to change.
            a.peers.set(b.name, b.record(b.overlay.identity.peek()))
            a.mesh.set(a.own_mesh())
            await stream.settle()
        stream.report("restarts")
        assert stream.lost() == 0


async def rotated(nodes: list[Node], epoch: int) -> None:
    for node in nodes:
        node.mesh.set(node.own_mesh(wanted_key_epoch=epoch))
    for node in nodes:
        async with asyncio.timeout(LIMIT_S):
            await node.published.watch().get(lambda said: said.epoch == epoch)


@pytest.mark.parametrize("version", [4, 6])
async def test_a_rotation_loses_no_connection(tmp_path: Path, version: int) -> None:
    """One end changes its key, then the other, then both at once."""
    async with world(tmp_path, version=version) as cluster:
        a, b = cluster.nodes
        keys = {a.overlay.identity.peek().public_key, b.overlay.identity.peek().public_key}
        for epoch, (what, which) in enumerate(
            {"the sender": [a], "the receiver": [b], "both": [a, b]}.items(), 1
        ):
            async with Stream(a, b, version) as stream:
                await rotated(which, epoch)
                await stream.settle()
            assert stream.report(f"rotation of {what}, IPv{version}") <= ONE_SECOND
            for node in which:
                identity = node.overlay.identity.peek()
                assert identity.public_key not in keys
                assert identity.next_public_key is None
                keys.add(identity.public_key)
        for node in cluster.nodes:
            assert node.space.sh("wg show overlay peers").count("\n") == 1


@pytest.mark.parametrize("delay_ms", [0, 20])
async def test_a_rotation_of_both_whoever_hears_first(tmp_path: Path, delay_ms: int) -> None:
    """Others learn it before the node, after it, or at once, where handshakes
    cross if the way takes longer than the difference. None costs the five
    seconds that WireGuard would wait.
    """
    async with world(tmp_path) as cluster:
        a, b = cluster.nodes
        for node in cluster.nodes:
            node.space.sh(f"tc qdisc add dev up0 root netem delay {delay_ms}ms")
        for epoch, echo_s in enumerate((0.0, 0.0, 0.0, 0.25, -0.25), 1):
            cluster.echo_s = echo_s
            async with Stream(a, b, 4) as stream:
                await rotated([a, b], epoch)
                await stream.settle()
            what = f"rotation of both, {delay_ms} ms away, echo {echo_s} s"
            assert stream.report(what) <= ONE_SECOND
