# SPDX-License-Identifier: Apache-2.0
"""An etcd, and machines that join it: each a curator in its supervisor."""

import asyncio
import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from metropolis.node.core import config
from metropolis.node.core.curator import administration, etcd, keys, records
from metropolis.node.core.curator.credentials import Files
from metropolis.node.core.curator.curator import Curator, Timing
from metropolis.node.core.curator.directory import ClaimState, Directory
from metropolis.node.core.curator.transaction import Put, Transaction
from metropolis.node.core.network.overlay.mesh import Exchange, Identity, Peer
from metropolis.test.etcd import Credentials, Etcd
from osbase import event
from osbase.ip import IPAddress, IPNetwork
from osbase.netlink.link import set_link_up
from osbase.netlink.transport import NetlinkSocket
from osbase.supervisor import Context, Supervisor

WAIT_S: Final = 30.0
TIMING: Final = Timing(lease_s=3, retry_first_s=0.05, retry_max_s=0.3, remind_s=0.3, renew_s=0.3)
HOME, ELSEWHERE = "127.0.0.1", "127.0.0.2"
NETWORKS: Final = ("10.200.0.0/16:24", "fd00:200::/48:64")


async def eventually[T](value: event.Value[T], where: Callable[[T], bool]) -> T:
    """Return the first newest value for which `where` is true."""
    async with asyncio.timeout(WAIT_S):
        return await value.watch().get(where)


def key_of(name: str) -> bytes:
    """Return a public key, the same for the same name."""
    return hashlib.sha256(name.encode()).digest()


class Log(logging.Handler):
    """Collects log lines, which tests can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._came = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._came.set()

    def count(self, text: str) -> int:
        """Return how many lines contain it."""
        return sum(text in record.getMessage() for record in self.records)

    async def wait(self, text: str, times: int = 1) -> None:
        """Wait until so many lines contain it."""
        async with asyncio.timeout(WAIT_S):
            while self.count(text) < times:
                self._came.clear()
                await self._came.wait()

    @contextlib.contextmanager
    def of_all(self) -> Iterator[Self]:
        """Collect from every logger."""
        root = logging.getLogger()
        level = root.level
        root.addHandler(self)
        root.setLevel(logging.INFO)
        try:
            yield self
        finally:
            root.removeHandler(self)
            root.setLevel(level)


class Machine:
    """One node. `async with` runs it; leaving is a crash, without a goodbye.
    A new one of the same name is the machine after a restart.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        files: Files,
        node_id: str,
        *,
        held: tuple[IPNetwork, ...] = (),
        key: str = "",
        timing: Timing = TIMING,
        underlay: str = "",
    ) -> None:
        self.node_id = node_id
        digest = key_of(node_id)
        address = IPv4Address(underlay or bytes([192, 0, *digest[:2]]))
        exchange = Exchange()
        self.identity = exchange.identity
        self.identity.set(Identity(key_of(key or node_id)))
        self.underlay = event.Value[IPAddress | None]("underlay")
        self.underlay.set(address)
        self.curator = Curator(
            config.Cluster(node_id, tuple(endpoints), files.ca, files.cert, files.key),
            exchange,
            self.underlay,
            event.Value[config.PodPrefixes]("pod prefixes"),
            version="test",
            held=held,
            timing=timing,
        )
        self.published = self.curator.published.watch()
        self._supervisor = Supervisor(self._root)
        self._task: asyncio.Task[list[str]] | None = None

    async def _root(self, ctx: Context) -> None:
        ctx.run(self.node_id, self.curator.run)
        ctx.signal_healthy()
        await asyncio.Event().wait()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._supervisor.run(10))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._task is not None, "entered"
        self._supervisor.request_stop()
        assert await self._task == []

    async def joined(self) -> tuple[IPNetwork, ...]:
        """Wait until others read its record (again); return its prefixes."""
        async with asyncio.timeout(WAIT_S):
            await self.published.get()
        return self.curator.pod_prefixes.peek().prefixes

    async def has_prefixes(
        self, where: Callable[[tuple[IPNetwork, ...]], bool]
    ) -> tuple[IPNetwork, ...]:
        """Wait for prefixes for which `where` is true."""
        found = await eventually(self.curator.pod_prefixes, lambda pods: where(pods.prefixes))
        return found.prefixes

    async def sees(self, where: Callable[[dict[str, Peer]], bool]) -> dict[str, Peer]:
        """Wait for peers for which `where` is true."""
        table = self.curator.peers
        async with asyncio.timeout(WAIT_S):
            with table.watch() as watcher:
                while not where(table.copy()):
                    await watcher.get()
        return table.copy()


class Cluster:
    """The server, a client of it, and machines."""

    def __init__(self, server: Etcd, log: Log) -> None:
        self.server = server
        self.log = log
        self.files = files_of(server.client)

    def machine(
        self,
        node_id: str,
        *,
        held: tuple[IPNetwork, ...] = (),
        key: str = "",
        timing: Timing = TIMING,
        underlay: str = "",
    ) -> Machine:
        """Make a machine that does not run yet."""
        return Machine(
            self.server.endpoints, self.files, node_id,
            held=held, key=key, timing=timing, underlay=underlay,
        )  # fmt: skip

    async def connect(self) -> etcd.Etcd:
        """Connect a client; the caller closes it."""
        return await etcd.dial(self.server.endpoints, self.files)

    async def init(self, *networks: str, mtu: int | None = None) -> None:
        """Do as `metroctl cluster init`."""
        config = records.ClusterConfig(_pod_networks(networks), mtu)
        async with await self.connect() as client:
            await administration.init(client, config)

    async def set_networks(self, *networks: str) -> None:
        """Do as `metroctl cluster set-networks`."""
        async with await self.connect() as client:
            await administration.set_networks(client, _pod_networks(networks))

    async def remove(self, node_id: str) -> None:
        """Do as `metroctl node remove`."""
        async with await self.connect() as client:
            await administration.remove(client, node_id)

    async def forget(self, node_id: str) -> None:
        """Do as `metroctl node forget`."""
        async with await self.connect() as client:
            await administration.forget(client, node_id)

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        """Write a key as a rogue does."""
        async with await self.connect() as client:
            await client.commit(Transaction({}, (Put(key, value, lease),)))

    async def delete(self, *gone: bytes) -> None:
        """Delete keys as a rogue does."""
        async with await self.connect() as client:
            await client.commit(Transaction({}, (), gone))

    async def holders(self) -> dict[IPNetwork, str]:
        """Return the holder of each prefix, also in former networks."""
        async with await self.connect() as client:
            return _holders(await client.list(keys.ROOT))

    async def claims(self) -> dict[IPNetwork, str]:
        """Return the holder of each prefix now."""
        async with await self.connect() as client:
            return claims(await client.list(keys.ROOT))


def _pod_networks(texts: Sequence[str]) -> tuple[records.PodNetwork, ...]:
    parts = [text.rpartition(":") for text in texts]
    return tuple(records.pod_network(prefix, int(length)) for prefix, _, length in parts)


def claims(listing: etcd.Listing) -> dict[IPNetwork, str]:
    """Return holders; check that no node has two prefixes of a family."""
    held = _holders(listing)
    number = Counter((prefix.version, node_id) for prefix, node_id in held.items())
    assert all(count == 1 for count in number.values()), number
    return held


def _holders(listing: etcd.Listing) -> dict[IPNetwork, str]:
    directory = Directory("")
    directory.replace(listing.entries)
    return {
        prefix: claim.node_id
        for prefix, claim in directory.claims.items()
        if claim.state is ClaimState.HELD
    }


def files_of(credentials: Credentials) -> Files:
    """Return the files as the curator takes them."""
    return Files(*map(str, (credentials.ca, credentials.cert, credentials.key)))


@contextlib.asynccontextmanager
async def start(
    directory: Path, *networks: str, options: Sequence[str] = (), mtu: int | None = None
) -> AsyncIterator[Cluster]:
    """Start a cluster on loopback; without networks it is not initialised.

    Its server may move to ELSEWHERE.
    """
    with NetlinkSocket() as sock:
        sock.batch([set_link_up(1, "lo")])
    with Log().of_all() as log:
        async with Etcd(directory, [HOME], options, [ELSEWHERE]) as server:
            cluster = Cluster(server, log)
            if networks:
                await cluster.init(*networks, mtu=mtu)
            yield cluster


__all__ = [
    "ELSEWHERE",
    "HOME",
    "NETWORKS",
    "TIMING",
    "WAIT_S",
    "Cluster",
    "Machine",
    "claims",
    "eventually",
    "start",
]
