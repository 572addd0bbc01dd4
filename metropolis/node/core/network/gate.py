# SPDX-License-Identifier: Apache-2.0
"""The gate that pod prefixes and pod networks pass before they are programmed.

    configuration or curator --> pod prefixes -+           +-> workloads
    curator --> mesh, peers -------------------+-> gate ---+-> rules
                                                    ^      +-> overlay
    kernel, uplink, etcd's and peers' addresses ----+

What overlaps something in use (see overlap) is refused: no address of it is
given to a workload, no rule and no route knows it. Why is in the log, once when
it begins and once when it ends, and in Status all the while. Workloads that run
keep their addresses. Both sides are followed: a corrected network, a new lease
and an address that is taken away are noticed as they come.

The overlay sees the cluster through the gate too, as an Exchange of its own.
After a restart, until the mesh is known, the networks are those of the kernel.

Workloads run on when their prefix is withdrawn, as by another configuration:
the rules know their addresses, one by one, or others could send as these.
What somebody else has by now is not among them.

Why not a check where prefixes are configured: what they overlap comes later,
by DHCP, by router advertisements, by people, and differs from node to node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import (
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.config import Network, PodPrefixes
from metropolis.node.core.network import overlap
from metropolis.node.core.network.overlap import Used, Verdict
from metropolis.node.core.network.overlay.kernel import withdraw
from metropolis.node.core.network.overlay.mesh import Exchange, Mesh, Peer
from metropolis.node.core.network.overlay.overlay import held_networks
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.uplink.uplink import UplinkStatus
from metropolis.node.core.network.workloads.conditions import Conditions
from osbase import event
from osbase.ip import IPAddress, IPNetwork
from osbase.net import occupied
from osbase.supervisor import Context

_CONDITION: Final = "overlap"
_OWN_GROUPS: Final = (
    allocs.LINK_GROUP_WORKLOAD,
    allocs.LINK_GROUP_OVERLAY,
    *allocs.LINK_GROUPS_REMOVAL,
)
_OWN_PROTOCOLS: Final = (allocs.ROUTE_PROTOCOL_WORKLOAD, allocs.ROUTE_PROTOCOL_OVERLAY)

_LOOKS_REST: Final = 4
"""How many times as long as a look took there is none: others may change routes
all the time."""

_RESOLVE_AGAIN_S: Final = 300.0
_RESOLVE_RETRY_S: Final = 5.0


@dataclass(frozen=True)
class Admitted:
    """What workloads get addresses of. refused: prefixes that they do not.
    lacking: why there is none of an IP version that they should have.
    """

    pods: PodPrefixes
    refused: tuple[IPNetwork, ...]
    lacking: str


@dataclass(frozen=True)
class Cluster:
    """What the gate has to know of a cluster. endpoints: etcd's, "HOST:PORT".
    address: the underlay's, as configured.
    """

    exchange: Exchange
    endpoints: tuple[str, ...] = ()
    address: IPAddress | None = None


class Gate:
    """`run` is a runnable. `running` is to be set to the addresses of workloads
    outside of what is admitted. What it tells, for anybody to watch:

    admitted    prefixes for the workloads
    exchange    of the overlay; None: the node is in no cluster
    considered  the newest status of the uplink that a verdict rests on
    """

    def __init__(
        self,
        config: Network,
        pods: event.Value[PodPrefixes],
        status: event.Value[UplinkStatus],
        cluster: Cluster | None,
        rules: RuleSet,
        conditions: Conditions,
    ) -> None:
        """Nothing happens before `prepare`."""
        self._config = config
        self._pods = pods
        self._status = status
        self._cluster = cluster
        self._rules = rules
        self._conditions = conditions
        self._log = logging.getLogger(__name__)
        self._by_hand, self._fixed, self._hosts = _of_configuration(config, cluster)
        self._held: tuple[IPNetwork, ...] = ()
        self._verdict = Verdict()
        self._due = asyncio.Event()
        self._stale = True
        self._rested_at = 0.0
        self._kernel: list[Used] = []
        self._resolved: dict[str, tuple[IPAddress, ...]] = {}
        self._peers = _Peers()
        self.running = event.Value[tuple[IPAddress, ...]]("addresses outside of pod prefixes")
        self.admitted = event.Value[Admitted]("admitted pod prefixes")
        self.considered = event.Value[UplinkStatus]("considered status of the uplink")
        self.exchange: Exchange | None = None
        if cluster is not None:
            # Keys pass as they are.
            outer = cluster.exchange
            self.exchange = Exchange(published=outer.published, identity=outer.identity)

    def prepare(self) -> tuple[IPNetwork, ...]:
        """Look for the first time; return the networks that the rules are to
        know from their beginning. Blocks. Raises NetlinkError.
        """
        if self._cluster is not None:
            self._held = held_networks()
        self._kernel = self._look()
        self._verdict = self._judge(None, self._pods.peek(None))
        withdraw(self._verdict.refusals)
        self._tell_status(self._verdict)
        return self._verdict.networks

    async def run(self, ctx: Context) -> None:
        """Until cancelled."""
        self._log = ctx.logger
        self._say_new(Verdict(), self._verdict)
        self._stale = True
        self._due.set()
        ctx.signal_healthy()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_kernel())
            group.create_task(self._follow(self._pods))
            group.create_task(self._follow(self._status))
            group.create_task(self._follow(self.running))
            group.create_task(self._resolve())
            if self._cluster is None:
                group.create_task(self._decide(None))
            else:
                outer = self._cluster.exchange
                group.create_task(self._follow(outer.mesh))
                group.create_task(self._decide(outer))

    # --- What comes -----------------------------------------------------------

    def _wake(self) -> None:
        self._stale = True
        self._due.set()

    async def _follow[T](self, value: event.Value[T]) -> None:
        async for _ in value.watch():
            self._wake()

    async def _follow_kernel(self) -> None:
        async with contextlib.aclosing(occupied.changes(_OWN_PROTOCOLS)) as changes:
            async for _ in changes:
                self._wake()

    async def _follow_peers(self, watcher: event.TableWatcher[str, Peer]) -> None:
        async for changed in watcher:
            self._peers.change(changed)
            self._due.set()

    async def _resolve(self) -> None:
        """Keep the addresses of etcd's hosts that are names. A failure keeps
        what was found last.
        """
        watcher = self._status.watch()
        while self._hosts:
            for host in self._hosts:
                found = await _addresses_of(host)
                if found and self._resolved.get(host) != found:
                    self._resolved[host] = found
                    self._wake()
            missing = len(self._resolved) < len(self._hosts)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESOLVE_RETRY_S if missing else _RESOLVE_AGAIN_S):
                    await watcher.get()

    # --- What follows ---------------------------------------------------------

    async def _decide(self, outer: Exchange | None) -> None:
        if outer is None:
            while True:
                await self._turn(None, None)
        with outer.peers.watch() as watcher:
            self._peers = _Peers()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_peers(watcher))
                while True:
                    await self._turn(outer, watcher)

    async def _turn(
        self, outer: Exchange | None, watcher: event.TableWatcher[str, Peer] | None
    ) -> None:
        """One verdict, and all that follows from it."""
        loop = asyncio.get_running_loop()
        await self._due.wait()
        if self._stale:
            await asyncio.sleep(max(0.0, self._rested_at - loop.time()))
        self._due.clear()
        mesh = None if outer is None else outer.mesh.peek(None)
        if watcher is not None:
            # The table is complete before the first mesh.
            self._peers.change(watcher.take())
        status = self._status.peek(None)
        if self._stale:
            self._stale = False
            begun = loop.time()
            self._kernel = await asyncio.to_thread(self._look)
            self._rested_at = loop.time() + _LOOKS_REST * (loop.time() - begun)
        # One set of prefixes for all that follows: others may come meanwhile.
        pods = self._pods.peek(None)
        before, verdict = self._verdict, self._judge(mesh, pods)
        self._verdict = verdict
        self._say_new(before, verdict)
        await asyncio.to_thread(
            self._rules.update,
            networks=verdict.networks,
            strays=self._strays(verdict),
            withheld=verdict.withheld,
            in_use=verdict.in_use,
        )
        if mesh is not None:
            self._pass_on(mesh, verdict)
        elif outer is not None and verdict.refusals != before.refusals:
            await asyncio.to_thread(withdraw, verdict.refusals)
        if pods is not None:
            self._admit(pods, verdict)
        self._say_over(before, verdict)
        if status is not None and self.considered.peek(None) != status:
            self.considered.set(status)

    def _judge(self, mesh: Mesh | None, pods: PodPrefixes | None) -> Verdict:
        prefixes = () if pods is None else pods.prefixes
        networks = self._held if mesh is None else mesh.networks
        in_use = [*self._kernel, *self._named(), *self._peers.inside((*networks, *prefixes))]
        return overlap.judge(prefixes, networks, in_use, self._verdict.refusals)

    def _strays(self, verdict: Verdict) -> tuple[IPNetwork, ...]:
        known = (*verdict.networks, *verdict.refusals)
        running = self.running.peek(None)
        addresses = map(ip_network, running or ())
        outside = [one for one in addresses if overlap.inside(one, known) is None]
        taken = overlap.conflicts(outside, [*self._kernel, *self._named()])
        return tuple(one for one in outside if one not in taken)

    def _look(self) -> list[Used]:
        found = occupied.look(own_groups=_OWN_GROUPS, own_protocols=_OWN_PROTOCOLS)
        return overlap.of_kernel(found, self._by_hand)

    def _named(self) -> Iterable[Used]:
        """Addresses that are known by other means than the kernel's."""
        yield from self._fixed
        status = self._status.peek(None) or UplinkStatus()
        for server in status.dns:
            yield overlap.of_address(server, "name server")
        for host, addresses in self._resolved.items():
            for address in addresses:
                yield overlap.of_address(address, f"etcd at {host},")

    def _say_new(self, before: Verdict, now: Verdict) -> None:
        """In Status all that is refused, in the log what was not before."""
        if now.causes:
            self._tell_status(now)
        for refusal in now.causes:
            if refusal not in before.causes:
                self._log.error("refused: %s", refusal)

    def _tell_status(self, now: Verdict) -> None:
        if now.causes:
            self._conditions.set(_CONDITION, "; ".join(map(str, now.causes)))
        else:
            self._conditions.clear(_CONDITION)

    def _say_over(self, before: Verdict, now: Verdict) -> None:
        self._tell_status(now)
        for refusal in before.causes:
            if refusal not in now.causes:
                self._log.info("no longer refused: %s", refusal)

    def _pass_on(self, mesh: Mesh, verdict: Verdict) -> None:
        """Let the overlay see the cluster without what is refused."""
        assert self.exchange is not None, "only of a cluster"
        inner = self.exchange
        self._peers.pass_on(inner.peers, verdict)
        allowed = replace(
            mesh,
            networks=_without(mesh.networks, verdict),
            own=_without(mesh.own, verdict),
            absent=_without(mesh.absent, verdict),
        )
        if inner.mesh.peek(None) != allowed:
            inner.mesh.set(allowed)

    def _admit(self, pods: PodPrefixes, verdict: Verdict) -> None:
        optional = (6,) if self._config.ipv6_optional else ()
        admitted = Admitted(
            PodPrefixes(verdict.prefixes, pods.reserved),
            tuple(one for one in pods.prefixes if one not in verdict.prefixes),
            overlap.lacking(pods.prefixes, verdict, optional),
        )
        if self.admitted.peek(None) != admitted:
            self.admitted.set(admitted)


class _Peers:
    """The other nodes, as the curator has them, and as the overlay may."""

    def __init__(self) -> None:
        """Nobody yet."""
        self._all: dict[str, Peer] = {}
        self._changed: dict[str, Peer | None] = {}
        self._networks: tuple[IPNetwork, ...] = ()
        self._inside: dict[str, Used] = {}
        self._refused: frozenset[IPNetwork] | None = None  # of what was passed on

    def change(self, changed: dict[str, Peer | None]) -> None:
        """Take those that changed; None: gone."""
        for node_id, peer in changed.items():
            if peer is None:
                self._all.pop(node_id, None)
            else:
                self._all[node_id] = peer
            self._note(node_id, peer)
        self._changed |= changed

    def inside(self, networks: tuple[IPNetwork, ...]) -> Iterable[Used]:
        """Return the underlay addresses that are inside these networks."""
        if networks != self._networks:
            self._networks = networks
            self._inside.clear()
            for node_id, peer in self._all.items():
                self._note(node_id, peer)
        return self._inside.values()

    def _note(self, node_id: str, peer: Peer | None) -> None:
        self._inside.pop(node_id, None)
        if peer is not None and any(peer.endpoint in network for network in self._networks):
            what = f'underlay address of node "{node_id}",'
            self._inside[node_id] = overlap.of_address(peer.endpoint, what)

    def pass_on(self, table: event.Table[str, Peer], verdict: Verdict) -> None:
        """Make the table what the overlay may see. Costs what changed, unless
        what is refused did.
        """
        refused = frozenset(verdict.refusals)
        if refused == self._refused:
            passed = {node_id: _allowed(peer, verdict) for node_id, peer in self._changed.items()}
            gone = [node_id for node_id, peer in passed.items() if peer is None]
            table.update({key: peer for key, peer in passed.items() if peer is not None}, gone)
        else:
            passed = {node_id: _allowed(peer, verdict) for node_id, peer in self._all.items()}
            table.replace({key: peer for key, peer in passed.items() if peer is not None})
        self._refused = refused
        self._changed = {}


def _allowed(peer: Peer | None, verdict: Verdict) -> Peer | None:
    """Return the peer without prefixes that are refused; None: it has none."""
    if peer is None or not verdict.refusals:
        return peer
    prefixes = _without(peer.prefixes, verdict)
    return replace(peer, prefixes=prefixes) if prefixes else None


def _without(prefixes: tuple[IPNetwork, ...], verdict: Verdict) -> tuple[IPNetwork, ...]:
    refused = verdict.refusals
    return tuple(one for one in prefixes if overlap.inside(one, refused) is None)


def _of_configuration(
    config: Network, cluster: Cluster | None
) -> tuple[frozenset[IPNetwork], tuple[Used, ...], tuple[str, ...]]:
    """Return the uplink's networks, the addresses in use, and hosts of etcd
    that are names, as configured. Pure.
    """
    by_hand: set[IPNetwork] = set()
    fixed: list[Used] = []
    hosts: list[str] = []
    if config.uplink is not None:
        by_hand |= {address.network for address in config.uplink.addresses}
        by_hand |= {ip_interface(address.ip).network for address in config.uplink.addresses}
        by_hand |= {ip_interface(gateway).network for gateway in config.uplink.gateways}
        by_hand |= {route.destination for route in config.uplink.routes}
        # Before there is a link that has them.
        fixed += [
            Used(address.network, f"{address.network} of the uplink (as configured)")
            for address in config.uplink.addresses
        ]
        fixed += [overlap.of_address(one, "gateway") for one in config.uplink.gateways]
        fixed += [overlap.of_address(one, "name server") for one in config.uplink.dns]
    if cluster is not None and cluster.address is not None:
        fixed.append(overlap.of_address(cluster.address, "this node's underlay address"))
    for endpoint in () if cluster is None else cluster.endpoints:
        host = endpoint.rpartition(":")[0].strip("[]")
        try:
            fixed.append(overlap.of_address(ip_address(host), "etcd at"))
        except ValueError:
            hosts.append(host)
    return frozenset(by_hand), tuple(fixed), tuple(dict.fromkeys(hosts))


async def _addresses_of(host: str) -> tuple[IPAddress, ...]:
    """Resolve a name; nothing when that fails. In a thread of its own, which
    the end of the process does not wait for: it may take half a minute.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[IPAddress, ...]] = loop.create_future()

    def tell(found: tuple[IPAddress, ...]) -> None:
        if not answer.done():
            answer.set_result(found)

    def ask() -> None:
        found: set[IPAddress] = set()
        with contextlib.suppress(OSError, UnicodeError):
            for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
                found.add(ip_address(address[0]))
        ordered = sorted(found, key=lambda one: (one.version, int(one)))
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, tuple(ordered))

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    return await answer
