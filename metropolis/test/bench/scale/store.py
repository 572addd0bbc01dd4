# SPDX-License-Identifier: Apache-2.0
"""Simulated nodes in etcd: joins, changes, leases that are kept alive.

    async with Fleet(endpoint, files) as fleet:
        await fleet.grow(2000)
        await fleet.move("sim-7")

Each node has its own lease, with the curator's TTL, kept alive as often as a
node does. One stream carries all of them, where real nodes have one each: the
cost of streams for etcd is not measured here.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio

from metropolis.node.core.curator import administration, credentials, keys, records
from metropolis.node.core.curator.credentials import Files
from metropolis.node.core.curator.curator import Timing
from metropolis.node.core.curator.directory import Entry
from metropolis.node.core.curator.etcd import Etcd, dial
from metropolis.node.core.curator.records import Member
from metropolis.node.core.curator.transaction import Put, Transaction
from metropolis.test.bench.common.errors import BenchError
from metropolis.test.bench.scale import simulated
from metropolis.test.bench.scale.simulated import Sim
from third_party.etcd import rpc_pb2, rpc_pb2_grpc

_TTL_S: Final = Timing().lease_s
_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Write:
    """A completed change: its revision, and the host's monotonic clock before
    the request and after its answer, seconds.
    """

    revision: int
    asked_s: float
    answered_s: float


class Fleet:
    """All simulated nodes of one cluster."""

    def __init__(self, endpoint: str, files: Files) -> None:
        self.sims: dict[str, Sim] = {}
        self._endpoint = endpoint
        self._files = files
        self._unrelated = itertools.count()
        self._numbers: Iterator[int] = iter(())
        self._leased: dict[int, None] = {}
        self._keeping: asyncio.Task[None] | None = None

    _etcd: Etcd
    _lease: Any
    _channel: Any

    async def __aenter__(self) -> Self:
        read = await asyncio.to_thread(credentials.read, self._files)
        self._channel = grpc.aio.secure_channel(
            self._endpoint,
            grpc.ssl_channel_credentials(read.ca, read.key, read.cert),
            (("grpc.use_local_subchannel_pool", 1),),
        )
        self._lease = rpc_pb2_grpc.LeaseStub(self._channel)
        try:
            self._etcd = await dial([self._endpoint], self._files, deadline_s=60.0)
        except BaseException:
            await self._channel.close()
            raise
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._keeping is not None, "entered"
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        await self._etcd.close()
        await self._channel.close()

    @property
    def keepalives(self) -> float:
        """Return keepalives per second, of all leases."""
        return 3 * len(self._leased) / _TTL_S

    async def init(self) -> None:
        """Make the cluster."""
        await administration.init(self._etcd, simulated.CONFIG)

    async def entries(self) -> tuple[Entry, ...]:
        """Return all entries. Raises BenchError when a lease has ended."""
        if self._keeping is not None and self._keeping.done():
            self._keeping.result()
        return (await self._etcd.list(keys.ROOT)).entries

    async def grow(self, count: int) -> Write:
        """Grow to `count` simulated nodes; return the last write."""
        parsed = (keys.parse(entry.key) for entry in await self.entries())
        taken = {key.prefix for key in parsed if key is not None and key.prefix is not None}
        self._numbers = simulated.numbers(taken)
        new = list(itertools.islice(self._numbers, count - len(self.sims)))
        leases = await self._grant(len(new))
        sims = [Sim(number, lease) for number, lease in zip(new, leases, strict=True)]
        asked, revision = time.monotonic(), 0
        for some, transaction in simulated.batches(sims):
            revision = await self._commit(transaction)
            for sim in some:
                self.sims[sim.node_id] = replace(sim, record_revision=revision)
        return Write(revision, asked, time.monotonic())

    # Changes of one node.

    async def join(self) -> Write:
        """Add a new node, as a real one joins: two transactions."""
        (lease,) = await self._grant(1)
        sim = Sim(next(self._numbers), lease)
        asked = time.monotonic()
        await self._commit(sim.claim())
        return replace(await self._publish(sim), asked_s=asked)

    async def move(self, node_id: str) -> Write:
        """Change a node's address."""
        return await self._publish(self.sims[node_id].moved())

    async def rotate(self, node_id: str) -> Write:
        """Change a node's key: announce it, then exchange it."""
        first = await self._publish(self.sims[node_id].rotated())
        return replace(await self._publish(self.sims[node_id].rotated()), asked_s=first.asked_s)

    async def leave(self, node_id: str) -> Write:
        """Remove a node, as an operator does."""
        sim = self.sims.pop(node_id)
        self._leased.pop(sim.lease, None)
        return await self._timed(sim.remove())

    async def publish_again(self, node_id: str) -> Write:
        """Write a node's record, unchanged."""
        return await self._publish(self.sims[node_id])

    async def ask_for_key(self, node_id: str) -> Write:
        """Ask a node for a new key, as an operator does; it does not react."""
        sim = self.sims[node_id]
        epoch = sim.epoch + 1
        value = records.encode_member(Member(False, epoch, sim.prefixes))
        return await self._timed(Transaction({}, (Put(keys.member(node_id), value),)))

    async def free_unrelated(self) -> Write:
        """Free the claim of a node that never had a record."""
        number = simulated.MAX_NODES + next(self._unrelated)
        prefix = simulated.CONFIG.networks[1].nth(number)
        free = Put(keys.claim(prefix), records.encode_claim(""))
        return await self._timed(Transaction({}, (free,)))

    async def _publish(self, sim: Sim) -> Write:
        done = await self._timed(sim.publish())
        self.sims[sim.node_id] = replace(sim, record_revision=done.revision)
        return done

    async def _timed(self, transaction: Transaction) -> Write:
        asked = time.monotonic()
        revision = await self._commit(transaction)
        return Write(revision, asked, time.monotonic())

    async def _commit(self, transaction: Transaction) -> int:
        revision = await self._etcd.commit(transaction)
        if revision is None:
            raise BenchError(f"etcd has changed under {next(iter(transaction.compare))!r}")
        return revision

    # Leases.

    async def _grant(self, count: int) -> list[int]:
        limit = asyncio.Semaphore(_AT_ONCE)

        async def grant() -> int:
            async with limit:
                response = await self._lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=_TTL_S))
            lease = int(response.ID)
            self._leased[lease] = None
            return lease

        return await _all(grant() for _ in range(count))

    async def _keep(self) -> None:
        """Keep all leases, each every third of its life."""
        call = self._lease.LeaseKeepAlive()
        reading = asyncio.create_task(self._heed(call))
        try:
            while not reading.done():
                due = time.monotonic() + _TTL_S / 3
                for lease in list(self._leased):
                    await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
                await asyncio.wait([reading], timeout=max(0.0, due - time.monotonic()))
            reading.result()
        finally:
            reading.cancel()
            call.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _heed(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            if response.TTL <= 0 and response.ID in self._leased:
                raise BenchError(f"lease {response.ID:x} of a simulated node has ended")
        raise BenchError("etcd ended the stream of keepalives")


async def _all[T](work: Iterable[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*work))
