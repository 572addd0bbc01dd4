# SPDX-License-Identifier: Apache-2.0
"""The network service: a runnable, the parts it runs, and what it tells.

    network           rule set, settings, loopback, first hop: then healthy
     +- workloads     the first to start: engine, then sockets
     |   +- recovery  only if the engine could not start: until it does
     |   +- prefixes  admitted pod prefixes -> engine, when the MTU is known
     |   +- strays    addresses of no prefix, while they are in use -> gate
     |   +- mtu       uplink's or overlay's MTU -> engine
     |   +- conntrack tracked flows -> links that are refused new ones
     |   +- grpc      workload.sock
     |   +- cni       cni.sock
     +- uplink        if one is configured
     +- gate          pod prefixes and networks, unless something has them
     +- names         Status waits for name servers
     +- time          time servers -> chronyd
     +- overlay       of a node in a cluster
     +- reconcile     events -> the wards, each of which puts its things back:
     +- ward-rules, ward-sysctls, ward-host, ward-foreign, ward-uplink, ...
     +- strict        default routes -> rule set
     +- resolvers     the uplink's name servers -> rule set
     +- uplink-note   what the uplink lacks -> Status

Taking away depends on the kernel alone: `workloads` waits for no other part, so
Detach, Collect, List, Check and Status are served while the rule set is
refused, the overlay cannot be made, or there is no uplink. What gives waits: no
prefix reaches the engine before the rules hold and the size of packets is
known, and until then Attach is refused with the reason. A part that fails says
why in Status at once (see `_told`), and is tried again.

Workloads have their network with or without an uplink. A restart of any part
touches no workload's traffic: what is programmed is replaced by the same, and
the engine reads from the kernel what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metropolis.node import allocs
from metropolis.node.core.config import MTU_MIN, Network, PodPrefixes
from metropolis.node.core.network import conntrack, gate, names, overlap, sysctls
from metropolis.node.core.network.gate import Admitted, Gate
from metropolis.node.core.network.overlay.kernel import leave
from metropolis.node.core.network.overlay.mesh import Exchange, IPAddress, IPNetwork
from metropolis.node.core.network.overlay.overlay import Overlay
from metropolis.node.core.network.reconcile import wards
from metropolis.node.core.network.reconcile.reconciler import Reconciler
from metropolis.node.core.network.reconcile.ward import Ward
from metropolis.node.core.network.reconcile.watch import Kind
from metropolis.node.core.network.rules import metadata, reverse_path
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.time_servers import TimeServers
from metropolis.node.core.network.uplink.uplink import LinkGoneError, Uplink, UplinkStatus
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.errors import Unavailable, WorkloadError
from osbase import event
from osbase.net import addressing
from osbase.net.links import LinkState
from osbase.netlink.errors import NetlinkError
from osbase.netlink.rtnl import set_link_up
from osbase.netlink.transport import NetlinkSocket
from osbase.nftables import NftablesError
from osbase.supervisor import Backoff, Context, Runnable, in_thread

if TYPE_CHECKING:
    from metropolis.node.core.network.cni.server import CniServer
    from metropolis.node.core.network.workloads.api.server import WorkloadServer
    from metropolis.node.core.network.workloads.engine.engine import Engine

DEFAULT_MTU: Final = 1500
"""Of workloads on a node without an uplink, bytes."""

LINKS_LOOKED_AT_S: Final = 20.0
"""How often settings of single links are compared, besides at events."""

STRAYS_LOOKED_AT_S: Final = 10.0
"""How often, while workloads have addresses of prefixes that were withdrawn."""

CALLS_END_WITHIN_S: Final = 10.0
"""How long calls under way may take to end when the service stops."""

LIVES_AFTER_S: Final = 5.0
"""A part that failed, and has run again for so long, is no problem any more."""

_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 5.0

_LOOPBACK: Final = 1

# Whose texts say enough.
_EXPECTED: Final = (NetlinkError, NftablesError, OSError, WorkloadError)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Paths:
    """Where the service listens and writes, and what serves gRPC there, see
    osbase.rpc.choose; tests choose others.
    """

    workload_socket: str = allocs.WORKLOAD_SOCKET
    cni_socket: str = allocs.CNI_SOCKET
    resolv_conf: str = allocs.RESOLV_CONF
    state_dir: str = allocs.STATE_DIR
    time_dir: str = allocs.TIME_DIR
    rpc_server: str = "auto"


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

    conditions: what Status says; for parts outside that fail, too.
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
        self.conditions = Conditions()
        self._reconciler = Reconciler(self.conditions)
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
                config.uplink,
                self.uplink_status,
                resolv_conf=self._paths.resolv_conf,
                told=self._told,
            )
        self._names = names.Names(
            config.uplink,
            self._paths.resolv_conf,
            time.monotonic() + config.names_wait_s,
            self.conditions,
        )
        self._time = TimeServers(
            config.ntp_servers, self.uplink_status, self._paths.time_dir, self.conditions
        )
        self._gate = Gate(
            config,
            pod_prefixes,
            self.uplink_status,
            None
            if cluster is None
            else gate.Cluster(cluster.exchange, cluster.endpoints, cluster.address),
            self._rules,
            self.conditions,
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
        """Serve the workloads; prepare the host, then run the other parts."""
        ctx.run("workloads", self._workloads)
        await self._until_done("host", self._prepare_host, "prepare the node's network")
        if self._uplink is None:
            self.uplink_status.set(UplinkStatus())
        else:
            ctx.run("uplink", self._uplink.run)
            ctx.run("ward-uplink", self._guard_link(self._uplink.ward()))
            ctx.run("strict", self._follow_reverse_path)
            ctx.run("resolvers", self._follow_resolvers)
            ctx.run("uplink-note", self._note_uplink)
        ctx.run("gate", self._told("gate", self._gate.run))
        ctx.run("names", self._wait_for_names)
        ctx.run("time", self._time.run)
        if self._overlay is not None:
            ctx.run("overlay", self._told("overlay", self._overlay.run))
            ctx.run("ward-overlay", self._guard_link(self._overlay))
            settings = wards.Sysctls(sysctls.link(allocs.OVERLAY_LINK), "overlay-sysctls")
            ctx.run("ward-overlay-sysctls", self._guard_link(settings))
        self._guard_node(ctx)
        ctx.signal_healthy()
        ctx.signal_done()

    async def _until_done(self, key: str, step: Callable[[], None], what: str) -> None:
        """Take a step, in a thread, again and again until it does not fail; why
        it does is in Status meanwhile. Not by dying: that would take the parts
        with it that do not need the step.
        """
        backoff = Backoff(_RETRY_FIRST_S, _RETRY_MAX_S, _RETRY_MAX_S)
        while True:
            try:
                await in_thread(step)
            except Exception as error:
                expected = isinstance(error, _EXPECTED)
                if self.conditions.set(key, f"{what}: {_cause(error)}"):
                    log.error("%s: %s", what, _cause(error), exc_info=not expected)
                await asyncio.sleep(backoff.died(0.0))
            else:
                self.conditions.clear(key)
                return

    def _told(self, name: str, runnable: Runnable) -> Runnable:
        """Return the runnable such that its death is a problem of the node,
        until it has lived on for a while. A link that is gone is none.
        """

        async def run(ctx: Context) -> None:
            loop = asyncio.get_running_loop()
            later = loop.call_later(LIVES_AFTER_S, self.conditions.clear, name)
            try:
                await runnable(ctx)
            except LinkGoneError:
                self.conditions.clear(name)
                raise
            except Exception as error:
                self.conditions.set(name, f"{name}: {_cause(error)}")
                raise
            else:
                self.conditions.clear(name)
            finally:
                later.cancel()

        return run

    def _guard_node(self, ctx: Context) -> None:
        """Put back what others change of the node as a whole."""
        ctx.run("reconcile", self._reconciler.run)
        guarded: tuple[tuple[Ward, set[Kind], float], ...] = (
            (wards.Rules(self._rules), {Kind.RULES}, 5.0),
            (wards.Sysctls((*sysctls.NODE, *self._sysctls)), {Kind.SETTING}, 1.0),
            (conntrack.Limit(), set(), 1.0),
            (wards.Host(), {Kind.ADDRESS, Kind.LINK, Kind.POLICY}, 5.0),
            (wards.Foreign(self.conditions, ctx.logger), set(), 10.0),
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
        await reverse_path.follow(self._uplink.link, self._rules, self.conditions.note)

    async def _follow_resolvers(self, ctx: Context) -> None:
        ctx.signal_healthy()
        async for status in self.uplink_status.watch():
            resolvers = metadata.resolvers_among(status.dns)
            await asyncio.to_thread(self._rules.update, resolvers=resolvers)

    async def _note_uplink(self, ctx: Context) -> None:
        assert self._config.uplink is not None, "only run with an uplink"
        ctx.signal_healthy()
        async for status in self.uplink_status.watch():
            text = ""
            if status.link is None:
                text = f"waiting for {self._config.uplink.described} to appear"
            elif not status.addresses and not status.external:
                text = f"{status.link.name} has no address yet"
            self.conditions.note("uplink", text)

    def _prepare_host(self) -> None:
        """The rules come first: from the moment the node forwards, they hold.
        After a restart, those of the overlay as it was left hold until its
        cluster is known; a node that is in none any more has none.
        """
        self._rules.apply(networks=self._gate.prepare())
        if self._overlay is None:
            leave()
        self._sysctls = sysctls.found_enabled()
        conntrack.prepare()
        for refused in prepare_host():
            log.warning("%s", refused)
        try:
            self._names.prepare()
        except OSError as error:
            log.warning("name servers of the configuration: %s", error)

    async def _workloads(self, ctx: Context) -> None:
        # Imports take seconds on a slow machine; meanwhile the uplink comes up.
        engine = await asyncio.to_thread(_make_engine, self.conditions)
        try:
            engine.set_ipv6_optional(self._config.ipv6_optional)

            async def recovery(ctx: Context) -> None:
                ctx.signal_healthy()
                await self._until_done("recovery", engine.start, "recover attachments")
                ctx.signal_done()

            try:
                await in_thread(engine.start)
            except Exception:
                # Whatever it is, it must not be what nobody can be asked about.
                ctx.run("recovery", recovery)

            sized = asyncio.Event()

            async def prefixes(ctx: Context) -> None:
                ctx.signal_healthy()
                if not sized.is_set():
                    await self._know_mtu(engine)
                    sized.set()
                await self._follow_prefixes(ctx, engine)

            async def mtu(ctx: Context) -> None:
                await self._follow_mtu(ctx, engine)

            async def grpc(ctx: Context) -> None:
                await self._serve_grpc(ctx, engine)

            async def cni(ctx: Context) -> None:
                await self._serve_cni(ctx, engine)

            async def strays(ctx: Context) -> None:
                await self._follow_strays(ctx, engine)

            ctx.run("prefixes", prefixes)
            ctx.run("strays", strays)
            if self._config.mtu is None:
                ctx.run("mtu", mtu)
            ctx.run("conntrack", conntrack.Guard(engine.list, self.conditions).run)
            ctx.run("grpc", grpc)
            ctx.run("cni", self._told("cni", cni))
            ctx.run("ward-workloads", self._guard_link(wards.Workloads(engine.repair)))
            ctx.signal_healthy()
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(engine.close)

    async def _know_mtu(self, engine: Engine) -> None:
        """The size of packets is known before the first attach."""
        if self._config.mtu is None:
            of = "the overlay" if self._overlay is not None else "the uplink"
            engine.set_prefixes((), lacking=f"the MTU of workloads is not known yet: {of}'s is not")
        engine.set_mtu(self._config.mtu or await self._first_mtu())
        engine.set_prefixes(())

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
        before: tuple[IPNetwork, ...] = ()
        async for now in self._gate.admitted.watch():
            before = await asyncio.to_thread(_set_prefixes, engine, now, before)
            prefixes = now.pods.prefixes
            ctx.logger.info("pod prefixes: %s", ", ".join(map(str, prefixes)) or "none, not ready")

    async def _follow_strays(self, ctx: Context, engine: Engine) -> None:
        """Tell the gate which addresses workloads have outside of the prefixes
        by now, for as long as there are any.
        """
        ctx.signal_healthy()
        watcher = self._gate.admitted.watch()
        admitted = await watcher.get()
        last: tuple[IPAddress, ...] = ()
        while True:
            prefixes = admitted.pods.prefixes
            try:
                found = await asyncio.to_thread(_outside, engine, prefixes)
            except Unavailable:  # they are not recovered yet
                again = True
            else:
                again = bool(found)
                if found != last:
                    self._gate.running.set(found)
                    last = found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STRAYS_LOOKED_AT_S if again else None):
                    admitted = await watcher.get()

    async def _serve_grpc(self, ctx: Context, engine: Engine) -> None:
        make_runtime_directory(self._paths.workload_socket)
        server = await asyncio.to_thread(
            _make_server, engine, self._paths.workload_socket, self._paths.rpc_server
        )
        try:
            await asyncio.to_thread(server.start)
            ctx.logger.info("serving on %s", self._paths.workload_socket)
            ctx.signal_healthy()
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(server.stop, CALLS_END_WITHIN_S)

    async def _serve_cni(self, ctx: Context, engine: Engine) -> None:
        make_runtime_directory(self._paths.cni_socket)
        server = await asyncio.to_thread(_make_cni_server, engine, self._paths.cni_socket)
        ctx.signal_healthy()
        await server.run()


def _cause(error: BaseException) -> str:
    """Return the words of the first error of a group, or the error's own; of
    many lines the first, since nft(8) adds all that it was to program.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error).partition("\n")[0] or type(error).__name__


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


def _outside(engine: Engine, prefixes: Sequence[IPNetwork]) -> tuple[IPAddress, ...]:
    """Return the addresses of attachments that are of none of the prefixes."""
    found = (ip for one in engine.list() for ip in one.ips)
    return tuple(ip for ip in found if overlap.inside(ip_network(ip), prefixes) is None)


def _make_engine(conditions: Conditions) -> Engine:
    """Import and make the engine. Imports take seconds on a slow machine, so
    this is run on another thread.
    """
    from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
    from metropolis.node.core.network.workloads.engine.engine import Engine

    return Engine(KernelDatapath(), conditions)


def _make_server(engine: Engine, path: str, implementation: str) -> WorkloadServer:
    """Likewise, of gRPC."""
    from metropolis.node.core.network.workloads.api.server import WorkloadServer

    return WorkloadServer(engine, path, implementation=implementation)


def _make_cni_server(engine: Engine, path: str) -> CniServer:
    """Likewise, of the shim's protocol."""
    from metropolis.node.core.network.cni.server import CniServer

    return CniServer(engine, path)


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
