# SPDX-License-Identifier: Apache-2.0
"""The curator: keeps a node's place in its cluster, and its view of the others.

    identity, underlay --> +---------+ --> mesh, peers       the overlay's
                           | Curator |
             published <-- +---------+ --> pod_prefixes      the workloads'
                              |   ^
     claims, member, record   v   |  list once, then watch
                         etcd: /metropolis/v1/

    AWAY -> LISTING <-> WATCHING        each life of a connection;
     ^---------+------------+           any failure ends it

`place` has what follows from what is read, and decides; this module has the
connection. Tasks share one: one lists and watches, and is the only one that
takes news into the directory; one commits what the place decides; one keeps the
lease alive; one waits for others. The first failure of any ends all, and after
a while (Backoff) the next endpoint is tried. What was read stays: while etcd is
away, peers, prefixes and traffic stay as they are.

After a disconnection the watch continues where it ended, if it is the same
cluster, its revision is not behind, and the keys of this node are unchanged.
Otherwise, and when the revision was compacted, everything is listed and
compared with the known state; only differences are published. This may miss an
etcd that was restored from a snapshot: its cluster id may be the same, its
revision ahead again, and only another node's keys differ. Therefore everything
is also listed from time to time.

Nodes that lost etcd together come back one after the other. A node that is not
back yet does not know a new key, so a node that is back writes a key that it
does not use yet only when all had time to return (Timing.return_s).

If two machines have one node_id (see membership), the refused one logs it once
a minute, and has no prefixes.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from metropolis.node.core.config import Cluster, PodPrefixes
from metropolis.node.core.curator import etcd, keys
from metropolis.node.core.curator.credentials import Credentials, CredentialsError, Files
from metropolis.node.core.curator.directory import Changes
from metropolis.node.core.curator.etcd import Compacted, Etcd, EtcdError, LeaseGone
from metropolis.node.core.curator.place import Place
from metropolis.node.core.curator.renewal import Renewal
from metropolis.node.core.network.overlay.mesh import Exchange
from osbase import event
from osbase.ip import IPAddress, IPNetwork
from osbase.supervisor import Backoff, Context


@dataclass(frozen=True)
class Timing:
    """Seconds. lease_s: how long other nodes see a dead node as alive.
    list_every_s: interval of complete lists, see list_interval. renew_s:
    interval at which new credentials that etcd refuses are tried again.
    """

    lease_s: int = 30
    list_every_s: float = 600.0
    deadline_s: float = 5.0
    retry_first_s: float = 0.5
    retry_max_s: float = 10.0
    remind_s: float = 60.0
    renew_s: float = 60.0

    def return_s(self, endpoints: int) -> float:
        """Return for how long another node may still be away once etcd answers
        this one: it has just begun an attempt that fails, and then tries each.
        """
        # Backoff adds up to a quarter.
        return self.deadline_s + endpoints * (1.25 * self.retry_max_s + self.deadline_s)


_LISTED_OFTEN: Final = 1000
"""Nodes. With a list every 600 s, 300 bytes a node and this many nodes, etcd
sends 0.5 MB of lists a second."""


def list_interval(every_s: float, nodes: int, chance: float) -> float:
    """Return the interval between complete lists of one node, seconds.

    There are as many lists as nodes, and each has all nodes: so in a large
    cluster the interval grows by the square, and all lists cost no more than
    in one of _LISTED_OFTEN nodes. chance: 0 to 1; up to a quarter sooner or
    later, so that nodes do not list at the same time.
    """
    rarer = max(1.0, nodes / _LISTED_OFTEN)
    return every_s * rarer * rarer * (0.75 + chance / 2)


_CURE: Final = "correct the file: it is read again at once"


class Phase(enum.Enum):
    """The state of the connection to etcd."""

    AWAY = "away"
    LISTING = "listing"
    WATCHING = "watching"


_TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.AWAY: frozenset({Phase.AWAY, Phase.LISTING, Phase.WATCHING}),
    Phase.LISTING: frozenset({Phase.AWAY, Phase.LISTING, Phase.WATCHING}),
    Phase.WATCHING: frozenset({Phase.AWAY, Phase.LISTING}),
}


class _Renewed(Exception):
    """Etcd accepts other credentials; reconnect with them."""


class Curator:
    """`run` is the runnable. Its values may be watched by anybody:

    mesh          set once the first complete state was read, then at changes
    peers         the other nodes; complete before the first mesh
    pod_prefixes  this node's own. `held` until etcd has answered; empty while
                  it has no place in the cluster
    published     the identity that other nodes read in etcd, once written
    trouble       why the node may have no prefix: no credentials, etcd is away,
                  or the node has no place in the cluster; "": no problem
    credentials   a note about them for operators; "": none
    """

    def __init__(
        self,
        config: Cluster,
        exchange: Exchange,
        underlay: event.Value[IPAddress | None],
        pod_prefixes: event.Value[PodPrefixes],
        *,
        version: str,
        held: tuple[IPNetwork, ...] = (),
        timing: Timing | None = None,
    ) -> None:
        """exchange: shared with the overlay. held: prefixes that the kernel has
        from before a restart. underlay: used where the configuration has none.
        Nothing happens before `run`.
        """
        self._config = config
        self._timing = timing or Timing()
        self._renewal = Renewal(Files(config.ca_file, config.cert_file, config.key_file))
        self.credentials = self._renewal.note
        self._endpoints = list(config.etcd_endpoints)
        random.shuffle(self._endpoints)
        self._log = logging.getLogger(__name__)
        self._phase = Phase.AWAY
        self._cluster_id = 0
        self._revision = 0  # the directory has all changes up to it
        self._next_list = 0.0
        self._news = event.Value[int]("revision of what was read")
        self._leased = asyncio.Event()
        self.place = Place(config, exchange, underlay, pod_prefixes, version=version, held=held)
        self.mesh = exchange.mesh
        self.peers = exchange.peers
        self.pod_prefixes = pod_prefixes
        self.published = exchange.published
        self.trouble = self.place.trouble

    async def run(self, ctx: Context) -> None:
        """Run until cancelled. Healthy at once: etcd may come much later."""
        self._log = ctx.logger
        self._phase = Phase.AWAY
        ctx.signal_healthy()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.place.run(ctx.logger, self._timing.remind_s))
            group.create_task(self._renewal.follow())
            group.create_task(self._stay_connected())

    # --- The connection -------------------------------------------------------

    async def _stay_connected(self) -> None:
        timing, loop = self._timing, asyncio.get_running_loop()
        backoff = Backoff(timing.retry_first_s, timing.retry_max_s, timing.retry_max_s)
        while True:
            began, latest, renewed = loop.time(), self._renewal.latest.watch(), False
            try:
                async with await self._connect(latest) as connection:
                    await self._live(connection, latest)
            except* _Renewed:
                renewed = True
            except* CredentialsError as errors:
                self._lost(f"no credentials for etcd: {_first(errors)}; {_CURE}")
            except* EtcdError as errors:
                self._lost(f"etcd is away: {_first(errors)}")
            if renewed and self._phase is not Phase.AWAY:
                self._to(Phase.AWAY)
                continue
            self._endpoints.append(self._endpoints.pop(0))
            # All nodes lose etcd at once, and should not come back at once;
            # but a node that has just got credentials has waited for them.
            pause = backoff.died(loop.time() - began) * random.uniform(0.5, 1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await latest.get()

    async def _connect(self, latest: event.Watcher[Credentials]) -> Etcd:
        """latest: its present value, or one tried here, counts as seen."""
        if latest.changed():
            await latest.get()
        candidates = await self._renewal.candidates()
        if latest.changed() and self._renewal.latest.peek() == candidates[0]:
            await latest.get()
        failures: list[EtcdError] = []
        for one in candidates:
            try:
                found = await etcd.connect(self._endpoints, one, deadline_s=self._timing.deadline_s)
            except EtcdError as error:
                failures.append(error)
            else:
                await self._renewal.proved(one)
                if failures:
                    # Etcd may have come back between the two attempts.
                    self._renewal.again()
                return found
        raise failures[0]

    async def _renew(self, latest: event.Watcher[Credentials]) -> None:
        """Try new credentials beside the connection, which ends only if etcd
        accepts them. Etcd may accept them later: when a certificate becomes
        valid, or an authority becomes known to it. Raises _Renewed.
        """
        fresh: Credentials | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if fresh is None else self._timing.renew_s):
                    fresh = await latest.get()
            assert fresh is not None, "there is no time limit before"
            if self._renewal.in_use(fresh):  # put back
                fresh = None
                continue
            try:
                found = await etcd.connect(
                    self._endpoints, fresh, deadline_s=self._timing.deadline_s
                )
            except EtcdError as error:
                self._renewal.refused(fresh, str(error))
                continue
            await found.close()
            await self._renewal.proved(fresh)
            self._log.info("credentials for etcd were renewed")
            raise _Renewed

    def _lost(self, trouble: str) -> None:
        if self._phase is not Phase.AWAY or trouble != self.place.away:
            self._log.warning("%s", trouble)
        self.place.set_away(trouble)
        self._to(Phase.AWAY)

    def _to(self, new: Phase) -> None:
        assert new in _TRANSITIONS[self._phase], f"{self._phase} to {new}"
        self._phase = new

    async def _live(self, connection: Etcd, latest: event.Watcher[Credentials]) -> None:
        status = connection.greeting
        if self._revision and status.cluster_id != self._cluster_id:
            self._log.warning("etcd is another cluster now; reading everything anew")
            self._revision = 0
        elif self._revision > status.revision:
            self._log.warning(
                "etcd is at revision %d, behind %d: it was restored from a snapshot; "
                "reading everything anew", status.revision, self._revision,
            )  # fmt: skip
            self._revision = 0
        elif self._revision and not await connection.commit(self.place.relied_on()):
            self._log.info("what this node holds has changed; reading everything anew")
            self._revision = 0
        in_step = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(connection, in_step))
            group.create_task(self._settle(connection, in_step))
            group.create_task(self._keep_lease(connection))
            group.create_task(self._await_others(in_step))
            group.create_task(self._renew(latest))

    async def _await_others(self, in_step: asyncio.Event) -> None:
        await in_step.wait()
        await asyncio.sleep(self._timing.return_s(len(self._endpoints)))
        self.place.others_are_back = True
        self.place.due.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.place.others_are_back = False

    # --- The state of the store -----------------------------------------------

    async def _follow(self, connection: Etcd, in_step: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                if not self._revision or loop.time() >= self._next_list:
                    self._to(Phase.LISTING)
                    listing = await connection.list(keys.ROOT)
                    self._cluster_id = listing.cluster_id
                    changes = self.place.directory.replace(listing.entries)
                    self._next_list = loop.time() + list_interval(
                        self._timing.list_every_s, len(self.place.directory.nodes), random.random()
                    )
                    self._take(changes, listing.revision)
                if not in_step.is_set():
                    self._log.info("etcd at %s, revision %d", connection.endpoint, self._revision)
                    self.place.set_away("")
                    in_step.set()
                self._to(Phase.WATCHING)
                async with asyncio.timeout_at(self._next_list):
                    async with contextlib.aclosing(
                        connection.watch(keys.ROOT, self._revision + 1)
                    ) as batches:
                        async for batch in batches:
                            self._take(self.place.directory.apply(batch.events), batch.revision)
            except TimeoutError:
                self._to(Phase.LISTING)
            except Compacted as error:
                self._log.info("reading everything anew: %s", error)
                self._revision = 0

    def _take(self, changes: Changes, revision: int) -> None:
        self.place.take(changes)
        self._revision = revision
        self._news.set(revision)

    # --- What to do about it --------------------------------------------------

    async def _settle(self, connection: Etcd, in_step: asyncio.Event) -> None:
        # A decision on the former store may be wrong for this one.
        await in_step.wait()
        while True:
            decision = self.place.decision
            self.place.due.clear()
            if decision is None or decision.commit is None or self.place.is_early(decision):
                await self.place.due.wait()
                continue
            seen = self._revision
            if decision.record and not self.place.lease:
                self.place.set_lease(await connection.grant(self._timing.lease_s))
                self._leased.set()
                continue
            try:
                revision = await connection.commit(decision.commit)
            except LeaseGone:
                self.place.set_lease(0)
                continue
            try:
                # If it failed, something that it compares has changed; the
                # watch reports that, or has reported it meanwhile.
                await self._news_beyond(seen if revision is None else revision - 1)
            except TimeoutError as error:
                # After a hidden restoration it never will.
                self._revision = 0
                raise EtcdError(
                    f"{connection.endpoint}: watch: is behind revision {revision or seen + 1}"
                ) from error

    async def _news_beyond(self, revision: int) -> None:
        async with asyncio.timeout(self._timing.deadline_s):
            await self._news.watch().get(lambda newest: newest > revision)

    async def _keep_lease(self, connection: Etcd) -> None:
        while True:
            lease = self.place.lease
            if not lease:
                self._leased.clear()
                await self._leased.wait()
                continue
            try:
                await connection.keep_alive(lease, self._timing.lease_s / 3)
            except LeaseGone as error:
                self._log.warning("%s; publishing anew", error)
                if self.place.lease == lease:
                    self.place.set_lease(0)


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else str(error)
