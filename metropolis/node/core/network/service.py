# SPDX-License-Identifier: Apache-2.0
"""The network service: a runnable, the parts it runs, and what it tells.

    network           settings, loopback, first hop, rule set: then healthy
     +- uplink        if one is configured
     +- gate          pod prefixes and networks, unless something has them
     +- names         Status waits for name servers
     +- overlay       of a node in a cluster
     +- reconcile     events -> the wards, each of which puts its things back:
     +- ward-rules, ward-sysctls, ward-host, ward-foreign, ward-uplink, ...
     +- strict        default routes -> rule set
     +- resolvers     the uplink's name servers -> rule set
     +- workloads     engine; waits for nobody, serves nobody before recovery
         +- prefixes  admitted pod prefixes -> engine
         +- mtu       uplink's or overlay's MTU -> engine
         +- conntrack tracked flows -> links that are refused new ones
         +- grpc      workload.sock
         +- cni       cni.sock

Workloads have their network with or without an uplink. A restart of any part
touches no workload's traffic: what is programmed is replaced by the same, and
the engine reads from the kernel what there is.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from metropolis.node import allocs
from metropolis.node.core.config import MTU_MIN, Network, PodPrefixes
from metropolis.node.core.network import conntrack, gate, names, overlap, sysctls
from metropolis.node.core.network.gate import Admitted, Gate
from metropolis.node.core.network.overlay.mesh import Exchange, IPAddress, IPNetwork
from metropolis.node.core.network.overlay.overlay import Overlay
from metropolis.node.core.network.reconcile import wards
from metropolis.node.core.network.reconcile.reconciler import Reconciler
from metropolis.node.core.network.reconcile.ward import Ward
from metropolis.node.core.network.reconcile.watch import Kind
from metropolis.node.core.network.rules import metadata, reverse_path
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.uplink import Uplink, UplinkStatus
from metropolis.node.core.network.workloads.conditions import Conditions
from osbase import event
from osbase.net import addressing
from osbase.net.links import LinkState
from osbase.netlink.rtnl import set_link_up
from osbase.netlink.transport import NetlinkSocket
from osbase.supervisor import Context, Runnable

if TYPE_CHECKING:
    from metropolis.node.core.network.workloads.engine import Engine

DEFAULT_MTU: Final = 1500
"""Of workloads on a node without an uplink, bytes."""

LINKS_LOOKED_AT_S: Final = 20.0
"""How often settings of single links are compared, besides at events."""

CALLS_END_WITHIN_S: Final = 10.0
"""How long calls under way may take to end when the service stops."""

_LOOPBACK: Final = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Paths:
    """Where the service listens and writes; tests choose others."""

    workload_socket: str = allocs.WORKLOAD_SOCKET
    cni_socket: str = allocs.CNI_SOCKET
    resolv_conf: str = allocs.RESOLV_CONF
    state_dir: str = allocs.STATE_DIR


@dataclass(frozen=True)
class ClusterLink:
    """The node's part in a cluster. key_rotation_s None: when asked to.
    endpoints: etcd's, "HOST:PORT". address: the underlay's, as configured.
    """

    exchange: Exchange
    key_rotation_s: float | None = None
    endpoints: tuple[str, ...] = ()
    address: IPAddress | None = None


class NetworkService:
    """`run` is the runnable. The values may be watched by anybody:

    uplink_status  what the uplink has
    pod_prefixes   set by whoever knows: the configuration, or a control plane
    """

    def __init__(
        self,
        config: Network,
        pod_prefixes: event.Value[PodPrefixes],
        paths: Paths | None = None,
        cluster: ClusterLink | None = None,
        cgroup: str | None = None,
    ) -> None:
        """Nothing happens before `run`. cluster None: there is no overlay.
        cgroup: of this process, as in Settings.
        """
        self._config = config
        self._paths = paths or Paths()
        self._conditions = Conditions()
        self._reconciler = Reconciler(self._conditions)
        self._sysctls: tuple[sysctls.Sysctl, ...] = ()
        self._rules = RuleSet(
            Settings(
                routed_pods=config.routed_pods,
                node_access=config.node_access,
                forwarded=config.forwarded,
                new_flows_per_second=config.new_flows_per_second,
                overlay=cluster is not None,
                cgroup=cgroup,
            )
        )
        self.pod_prefixes = pod_prefixes
        self.uplink_status = event.Value[UplinkStatus]("status of the uplink")
        self._uplink: Uplink | None = None
        if config.uplink is not None:
            self._uplink = Uplink(
                config.uplink, self.uplink_status, resolv_conf=self._paths.resolv_conf
            )
        self._names = names.Names(
            config.uplink,
            self._paths.resolv_conf,
            time.monotonic() + config.names_wait_s,
            self._conditions,
        )
        self._gate = Gate(
            config,
            pod_prefixes,
            self.uplink_status,
            None
            if cluster is None
            else gate.Cluster(cluster.exchange, cluster.endpoints, cluster.address),
            self._rules,
            self._conditions,
        )
        self._overlay: Overlay | None = None
        if cluster is not None:
            assert self._gate.exchange is not None, "of a cluster there is one"
            link = event.Value[LinkState | None]("no uplink's link")
            link.set(None)
            self._overlay = Overlay(
                self._gate.exchange,
                link if self._uplink is None else self._uplink.link,
                state_dir=self._paths.state_dir,
                rotation_s=cluster.key_rotation_s,
            )

    async def run(self, ctx: Context) -> None:
        """Prepare the host, then run the parts."""
        await asyncio.to_thread(self._prepare_host)
        if self._uplink is None:
            self.uplink_status.set(UplinkStatus())
        else:
            ctx.run("uplink", self._uplink.run)
            ctx.run("ward-uplink", self._guard_link(self._uplink.ward()))
            ctx.run("strict", self._follow_reverse_path)
            ctx.run("resolvers", self._follow_resolvers)
        ctx.run("gate", self._gate.run)
        ctx.run("names", self._wait_for_names)
        if self._overlay is not None:
            ctx.run("overlay", self._overlay.run)
            ctx.run("ward-overlay", self._guard_link(self._overlay))
            settings = wards.Sysctls(sysctls.link(allocs.OVERLAY_LINK), "overlay-sysctls")
            ctx.run("ward-overlay-sysctls", self._guard_link(settings))
        ctx.run("workloads", self._workloads)
        self._guard_node(ctx)
        ctx.signal_healthy()
        ctx.signal_done()

    def _guard_node(self, ctx: Context) -> None:
        """Put back what others change of the node as a whole."""
        ctx.run("reconcile", self._reconciler.run)
        guarded: tuple[tuple[Ward, set[Kind], float], ...] = (
            (wards.Rules(self._rules), {Kind.RULES}, 5.0),
            (wards.Sysctls((*sysctls.NODE, *self._sysctls)), {Kind.SETTING}, 1.0),
            (conntrack.Limit(), set(), 1.0),
            (wards.Host(), {Kind.ADDRESS, Kind.LINK, Kind.POLICY}, 5.0),
            (wards.Foreign(self._conditions, ctx.logger), set(), 10.0),
        )
        for ward, kinds, every_s in guarded:
            ctx.run(f"ward-{ward.name}", self._reconciler.guard(ward, kinds=kinds, every_s=every_s))

    def _guard_link(self, ward: Ward) -> Runnable:
        """A ward of one link or of many."""
        return self._reconciler.guard(
            ward, kinds=set(Kind) - {Kind.RULES}, every_s=LINKS_LOOKED_AT_S
        )

    async def _wait_for_names(self, ctx: Context) -> None:
        await self._names.wait(ctx, self._gate.considered)

    async def _follow_reverse_path(self, ctx: Context) -> None:
        assert self._uplink is not None, "only run with an uplink"
        ctx.signal_healthy()
        await reverse_path.follow(self._uplink.link, self._rules, self._conditions.note)

    async def _follow_resolvers(self, ctx: Context) -> None:
        ctx.signal_healthy()
        async for status in self.uplink_status.watch():
            resolvers = metadata.resolvers_among(status.dns)
            await asyncio.to_thread(self._rules.update, resolvers=resolvers)

    def _prepare_host(self) -> None:
        """The rules come first: from the moment the node forwards, they hold.
        After a restart, those of the overlay as it was left hold until its
        cluster is known.
        """
        self._rules.apply(networks=self._gate.prepare())
        self._sysctls = sysctls.found_enabled()
        conntrack.prepare()
        for refused in prepare_host():
            log.warning("%s", refused)
        self._names.prepare()

    async def _workloads(self, ctx: Context) -> None:
        # Imports take seconds on a slow machine; meanwhile the uplink comes up.
        engine_module, kernel = await _imported("engine", "kernel")
        engine: Engine = engine_module.Engine(kernel.KernelDatapath(), self._conditions)
        try:
            await asyncio.to_thread(engine.start)
            # The size is known before the first attach.
            engine.set_mtu(self._config.mtu or await self._first_mtu())
            engine.set_ipv6_optional(self._config.ipv6_optional)

            async def prefixes(ctx: Context) -> None:
                await self._follow_prefixes(ctx, engine)

            async def mtu(ctx: Context) -> None:
                await self._follow_mtu(ctx, engine)

            async def grpc(ctx: Context) -> None:
                await self._serve_grpc(ctx, engine)

            async def cni(ctx: Context) -> None:
                await self._serve_cni(ctx, engine)

            ctx.run("prefixes", prefixes)
            if self._config.mtu is None:
                ctx.run("mtu", mtu)
            ctx.run("conntrack", conntrack.Guard(engine.list, self._conditions).run)
            ctx.run("grpc", grpc)
            ctx.run("cni", cni)
            ctx.run("ward-workloads", self._guard_link(wards.Workloads(engine.repair)))
            ctx.signal_healthy()
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(engine.close)

    async def _first_mtu(self) -> int:
        if self._overlay is not None:
            return await self._overlay.mtu.watch().get()
        if self._uplink is None:
            return DEFAULT_MTU
        return pod_mtu(await self._uplink.link.watch().get())

    async def _follow_mtu(self, ctx: Context, engine: Engine) -> None:
        if self._overlay is not None:
            ctx.signal_healthy()
            async for size in self._overlay.mtu.watch():
                engine.set_mtu(size)
                ctx.logger.info("MTU of new workloads is %d", size)
        if self._uplink is None:
            ctx.signal_done()
            return
        ctx.signal_healthy()
        last = 0
        async for link in self._uplink.link.watch():
            # Of an uplink that is gone, the size stays.
            if link is not None and (size := pod_mtu(link)) != last:
                engine.set_mtu(size)
                ctx.logger.info("MTU of new workloads is %d", size)
                last = size

    async def _follow_prefixes(self, ctx: Context, engine: Engine) -> None:
        ctx.signal_healthy()
        before: tuple[IPNetwork, ...] = ()
        async for now in self._gate.admitted.watch():
            before = await asyncio.to_thread(_set_prefixes, engine, now, before)
            prefixes = now.pods.prefixes
            ctx.logger.info("pod prefixes: %s", ", ".join(map(str, prefixes)) or "none, not ready")

    async def _serve_grpc(self, ctx: Context, engine: Engine) -> None:
        (module,) = await _imported("server")
        make_runtime_directory(self._paths.workload_socket)
        server = module.WorkloadServer(engine, self._paths.workload_socket)
        try:
            await asyncio.to_thread(server.start)
            ctx.logger.info("serving on %s", self._paths.workload_socket)
            ctx.signal_healthy()
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(server.stop, CALLS_END_WITHIN_S)

    async def _serve_cni(self, ctx: Context, engine: Engine) -> None:
        module = await asyncio.to_thread(
            importlib.import_module, "metropolis.node.core.network.cni.server"
        )
        make_runtime_directory(self._paths.cni_socket)
        ctx.signal_healthy()
        await module.CniServer(engine, self._paths.cni_socket).run()


def _set_prefixes(
    engine: Engine, now: Admitted, before: tuple[IPNetwork, ...]
) -> tuple[IPNetwork, ...]:
    """Returns all that the engine knows now. Prefixes that leave while they are
    in use, or may return, are draining: their addresses are reused late.
    """
    prefixes = now.pods.prefixes
    gone = [one for one in before if engine.in_use(one)]
    draining = tuple(
        one
        for one in dict.fromkeys((*now.refused, *gone))
        if not any(overlap.share(one, other) for other in prefixes)
    )
    engine.set_prefixes(prefixes, now.pods.reserved, draining, lacking=now.lacking)
    return (*prefixes, *draining)


async def _imported(*names: str) -> list[ModuleType]:
    """Import modules of the workload service on another thread."""
    package = "metropolis.node.core.network.workloads"
    return [await asyncio.to_thread(importlib.import_module, f"{package}.{name}") for name in names]


def pod_mtu(link: LinkState | None) -> int:
    """Return the MTU of workloads' links for an uplink's. Pure."""
    return DEFAULT_MTU if link is None else max(link.mtu, MTU_MIN)


def make_runtime_directory(socket_path: str) -> None:
    """Make the directory of a socket, only for root, if it is not there."""
    directory = Path(socket_path).parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def prepare_host() -> tuple[sysctls.SysctlError, ...]:
    """Settings, loopback and first hop; the same again changes nothing.

    Returns what was refused, as where /proc/sys is mounted to be read only: the
    ward of the settings says so in Status for as long as it matters, and what
    runs has its network meanwhile. Raises NetlinkError.
    """
    refused = sysctls.apply_each(sysctls.NODE)
    with NetlinkSocket() as sock:
        sock.batch(
            [
                set_link_up(_LOOPBACK, "lo"),
                addressing.add_loopback_address(allocs.FIRST_HOP_IPV4),
            ]
        )
    return refused
