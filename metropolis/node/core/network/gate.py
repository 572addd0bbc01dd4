# SPDX-License-Identifier: Apache-2.0
"""The gate: only pod prefixes and networks that it admits are programmed.

    configuration or curator --> pod prefixes -+           +-> workloads
    curator --> mesh, peers -------------------+-> gate ---+-> rules
                                                    ^      +-> overlay
    kernel, uplink, etcd's and peers' addresses ----+

A prefix or network that overlaps one in use (see overlap) is refused: no
workload gets an address in it, and no rule or route has it. The log reports
when a refusal begins and ends; Status reports it meanwhile. Running workloads
keep their addresses. The gate judges again when the prefixes, the networks or
the addresses in use change.

The overlay does not see the curator's Exchange, but one of the gate's, without
refused prefixes. After a restart, until the mesh is known, the networks are
those in the kernel.

Workloads keep running when their prefix is withdrawn, e.g. by another
configuration. Then their addresses are strays: the rules get them one by one,
or others could send from them. Strays that are in use elsewhere are left out.

Why not a check where prefixes are configured: the addresses that they overlap
come later, by DHCP, router advertisements or people, and differ by node.
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
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.uplink.uplink import UplinkStatus
from metropolis.node.core.network.workloads.conditions import Conditions
from osbase import event
from osbase.ip import IPAddress, IPNetwork
from osbase.net import occupied
from osbase.supervisor import Context, in_thread

_CONDITION: Final = "overlap"
_OWN_GROUPS: Final = (
    allocs.LINK_GROUP_COMPANION,
    allocs.LINK_GROUP_WORKLOAD,
    allocs.LINK_GROUP_OVERLAY,
    allocs.LINK_GROUP_REMOVAL,
)
_OWN_PROTOCOLS: Final = (allocs.ROUTE_PROTOCOL_WORKLOAD, allocs.ROUTE_PROTOCOL_OVERLAY)

_LOOKS_REST: Final = 4
"""The pause after a look, as a multiple of its duration: others may change
routes all the time."""

_RESOLVE_AGAIN_S: Final = 300.0
_RESOLVE_RETRY_S: Final = 5.0


@dataclass(frozen=True)
class Admitted:
    """Prefixes for workloads' addresses. refused: those that were refused.
    lacking: why a wanted IP version has no prefix, or "".
    """

    pods: PodPrefixes
    refused: tuple[IPNetwork, ...]
    lacking: str


@dataclass(frozen=True)
class Cluster:
    """The inputs of the gate in a cluster. exchange: the curator's. endpoints:
    etcd's, "HOST:PORT". address: the node's underlay address, if configured.
    """

    exchange: Exchange
    endpoints: tuple[str, ...] = ()
    address: IPAddress | None = None


class Gate:
    """`run` is a runnable. The caller sets `running` to the addresses of
    workloads outside of the admitted prefixes. The gate sets:

    admitted    prefixes for the workloads
    exchange    the overlay's; None: the node is in no cluster
    considered  the newest status of the uplink that a verdict is based on
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
        configured = _of_configuration(config, cluster)
        self._uplink_networks, self._configured, self._etcd_names = configured
        # The networks of the overlay in the kernel, from before a restart.
        self._kernel_networks: tuple[IPNetwork, ...] = ()
        self._verdict = Verdict()
        self._due = asyncio.Event()  # a verdict is needed
        self._stale = True  # a look is needed for it
        self._rested_at = 0.0
        self._kernel: list[Used] = []
        self._resolved: dict[str, tuple[IPAddress, ...]] = {}
        self._peers = _Peers()
        self.running = event.Value[tuple[IPAddress, ...]]("addresses outside of pod prefixes")
        self.admitted = event.Value[Admitted]("admitted pod prefixes")
        self.considered = event.Value[UplinkStatus]("considered status of the uplink")
        self.exchange: Exchange | None = None
        if cluster is not None:
            # Keys pass unchanged.
            outer = cluster.exchange
            self.exchange = Exchange(published=outer.published, identity=outer.identity)

    def prepare(self) -> tuple[IPNetwork, ...]:
        """Make the first verdict; return the networks that the first rules
        have. Blocks. Raises NetlinkError.
        """
        if self._cluster is not None:
            # Here: a node without a cluster starts without these modules.
            from metropolis.node.core.network.overlay.overlay import held_networks

            self._kernel_networks = held_networks()
        self._kernel = self._look()
        self._verdict = self._judge(None, self._pods.peek(None))
        withdraw(self._verdict.refusals)
        self._set_status(self._verdict)
        return self._verdict.networks

    async def run(self, ctx: Context) -> None:
        """Run until cancelled."""
        self._log = ctx.logger
        self._report_new(Verdict(), self._verdict)
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

    # --- Inputs ---------------------------------------------------------------

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
        """Resolve the names of etcd's hosts again and again. On a failure the
        last addresses stay.
        """
        watcher = self._status.watch()
        while self._etcd_names:
            for host in self._etcd_names:
                found = await _addresses_of(host)
                if found and self._resolved.get(host) != found:
                    self._resolved[host] = found
                    self._wake()
            missing = len(self._resolved) < len(self._etcd_names)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESOLVE_RETRY_S if missing else _RESOLVE_AGAIN_S):
                    await watcher.get()

    # --- Effects --------------------------------------------------------------

    async def _decide(self, outer: Exchange | None) -> None:
        if outer is None:
            while True:
                await self._decide_once(None, None)
        with outer.peers.watch() as watcher:
            self._peers = _Peers()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_peers(watcher))
                while True:
                    await self._decide_once(outer, watcher)

    async def _decide_once(
        self, outer: Exchange | None, watcher: event.TableWatcher[str, Peer] | None
    ) -> None:
        """Make one verdict, and apply it."""
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
            self._kernel = await in_thread(self._look)
            self._rested_at = loop.time() + _LOOKS_REST * (loop.time() - begun)
        # Read once, since the prefixes may change meanwhile.
        pods = self._pods.peek(None)
        before, verdict = self._verdict, self._judge(mesh, pods)
        self._verdict = verdict
        self._report_new(before, verdict)
        await in_thread(
            self._rules.update,
            networks=verdict.networks,
            strays=self._strays(verdict),
            withheld=verdict.withheld,
            in_use=verdict.in_use,
        )
        if mesh is not None:
            self._pass_on(mesh, verdict)
        elif outer is not None and verdict.refusals != before.refusals:
            await in_thread(withdraw, verdict.refusals)
        if pods is not None:
            self._admit(pods, verdict)
        self._report_ended(before, verdict)
        if status is not None and self.considered.peek(None) != status:
            self.considered.set(status)

    def _judge(self, mesh: Mesh | None, pods: PodPrefixes | None) -> Verdict:
        prefixes = () if pods is None else pods.prefixes
        networks = self._kernel_networks if mesh is None else mesh.networks
        in_use = [
            *self._kernel,
            *self._not_in_kernel(),
            *self._peers.inside((*networks, *prefixes)),
        ]
        return overlap.judge(prefixes, networks, in_use, self._verdict.refusals)

    def _strays(self, verdict: Verdict) -> tuple[IPNetwork, ...]:
        known = (*verdict.networks, *verdict.refusals)
        running = self.running.peek(None)
        addresses = map(ip_network, running or ())
        outside = [one for one in addresses if overlap.inside(one, known) is None]
        taken = overlap.conflicts(outside, [*self._kernel, *self._not_in_kernel()])
        return tuple(one for one in outside if one not in taken)

    def _look(self) -> list[Used]:
        found = occupied.look(own_groups=_OWN_GROUPS, own_protocols=_OWN_PROTOCOLS)
        return overlap.of_kernel(found, self._uplink_networks)

    def _not_in_kernel(self) -> Iterable[Used]:
        """Yield the addresses in use that the kernel does not know."""
        yield from self._configured
        status = self._status.peek(None) or UplinkStatus()
        for server in status.dns:
            yield overlap.of_address(server, "name server")
        for host, addresses in self._resolved.items():
            for address in addresses:
                yield overlap.of_address(address, f"etcd at {host},")

    def _report_new(self, before: Verdict, now: Verdict) -> None:
        """Put all refusals into Status, and the new ones into the log."""
        if now.causes:
            self._set_status(now)
        for refusal in now.causes:
            if refusal not in before.causes:
                self._log.error("refused: %s", refusal)

    def _set_status(self, now: Verdict) -> None:
        if now.causes:
            self._conditions.set(_CONDITION, "; ".join(map(str, now.causes)))
        else:
            self._conditions.clear(_CONDITION)

    def _report_ended(self, before: Verdict, now: Verdict) -> None:
        self._set_status(now)
        for refusal in before.causes:
            if refusal not in now.causes:
                self._log.info("no longer refused: %s", refusal)

    def _pass_on(self, mesh: Mesh, verdict: Verdict) -> None:
        """Give the overlay the cluster without refused prefixes."""
        assert self.exchange is not None, "there is a mesh"
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
    """The other nodes, as the curator has them and as the overlay sees them."""

    def __init__(self) -> None:
        """Begin without nodes. _inside: underlay addresses in the networks."""
        self._all: dict[str, Peer] = {}
        self._changed: dict[str, Peer | None] = {}
        self._networks: tuple[IPNetwork, ...] = ()
        self._inside: dict[str, Used] = {}
        self._refused: frozenset[IPNetwork] | None = None  # when last passed on

    def change(self, changed: dict[str, Peer | None]) -> None:
        """Apply changes; None: the node is gone."""
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
        """Update the overlay's table. The cost grows with the changed nodes
        only, unless the refusals changed.
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
    """Return the peer without refused prefixes; None if none are left."""
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
    """Return the uplink's networks, the addresses in use, and those hosts of
    etcd that are names, all as configured. Pure.
    """
    networks: set[IPNetwork] = set()
    used: list[Used] = []
    names: list[str] = []
    if config.uplink is not None:
        networks |= {address.network for address in config.uplink.addresses}
        networks |= {ip_interface(address.ip).network for address in config.uplink.addresses}
        networks |= {ip_interface(gateway).network for gateway in config.uplink.gateways}
        networks |= {route.destination for route in config.uplink.routes}
        # They count before a link has them.
        used += [
            Used(address.network, f"{address.network} of the uplink (as configured)")
            for address in config.uplink.addresses
        ]
        used += [overlap.of_address(one, "gateway") for one in config.uplink.gateways]
        used += [overlap.of_address(one, "name server") for one in config.uplink.dns]
    if cluster is not None and cluster.address is not None:
        used.append(overlap.of_address(cluster.address, "this node's underlay address"))
    for endpoint in () if cluster is None else cluster.endpoints:
        host = endpoint.rpartition(":")[0].strip("[]")
        try:
            used.append(overlap.of_address(ip_address(host), "etcd at"))
        except ValueError:
            names.append(host)
    return frozenset(networks), tuple(used), tuple(dict.fromkeys(names))


async def _addresses_of(host: str) -> tuple[IPAddress, ...]:
    """Resolve a name; return () if that fails. It may take half a minute: so a
    daemon thread does it, for which the end of the process does not wait.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[IPAddress, ...]] = loop.create_future()

    def finish(found: tuple[IPAddress, ...]) -> None:
        if not answer.done():
            answer.set_result(found)

    def ask() -> None:
        found: set[IPAddress] = set()
        with contextlib.suppress(OSError, UnicodeError):
            for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
                found.add(ip_address(address[0]))
        ordered = sorted(found, key=lambda one: (one.version, int(one)))
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish, tuple(ordered))

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    return await answer
