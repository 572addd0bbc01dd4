# SPDX-License-Identifier: Apache-2.0
"""The network service: a runnable, the parts it runs, and its values.

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

Removing depends on the kernel alone: `workloads` waits for no other part, so
Detach, Collect, List, Check and Status are served while the rule set is
refused, the overlay cannot be made, or there is no uplink. Adding waits: no
prefix reaches the engine before the rules are in place and the MTU is known,
and until then Attach is refused with the reason. A failing part is a problem
in Status at once (see `failures`), and is restarted.

Workloads have their network with or without an uplink. A restart of any part
disturbs no workload's traffic: the kernel's state is replaced by an equal one,
and the engine reads its own from the kernel.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from metropolis.node import allocs
from metropolis.node.core.config import Network, PodPrefixes
from metropolis.node.core.network import conntrack, gate, names, sysctls
from metropolis.node.core.network.failures import Failures
from metropolis.node.core.network.gate import Gate
from metropolis.node.core.network.host import prepare_host
from metropolis.node.core.network.overlay.kernel import leave
from metropolis.node.core.network.overlay.mesh import Exchange, IPAddress
from metropolis.node.core.network.paths import Paths
from metropolis.node.core.network.reconcile import wards
from metropolis.node.core.network.reconcile.reconciler import Reconciler
from metropolis.node.core.network.reconcile.ward import Ward
from metropolis.node.core.network.reconcile.watch import Kind
from metropolis.node.core.network.rules import metadata, reverse_path
from metropolis.node.core.network.rules.ruleset import RuleSet
from metropolis.node.core.network.rules.settings import Settings
from metropolis.node.core.network.time_servers import TimeServers
from metropolis.node.core.network.uplink.uplink import Uplink, UplinkStatus
from metropolis.node.core.network.workload_service import WorkloadService
from metropolis.node.core.network.workloads.conditions import Conditions
from osbase import event
from osbase.net.links import LinkState
from osbase.supervisor import Context, Runnable, in_thread

if TYPE_CHECKING:
    from metropolis.node.core.network.overlay.overlay import Overlay

LINKS_LOOKED_AT_S: Final = 20.0
RULES_LOOKED_AT_S: Final = 5.0
"""Interval at which settings of single links are compared, besides events."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterLink:
    """The node's part in a cluster. key_rotation_s None: on request only.
    endpoints: etcd's, "HOST:PORT". address: the underlay's, as configured.
    """

    exchange: Exchange
    key_rotation_s: float | None = None
    endpoints: tuple[str, ...] = ()
    address: IPAddress | None = None


class NetworkService:
    """`run` is the runnable. Its values may be watched by anybody:

    uplink_status  addresses, routes and name servers of the uplink
    pod_prefixes   set by the configuration's reader, or a control plane

    conditions: the content of Status; parts outside may add to it.
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
        cgroup: this process's, as in Settings.
        """
        self._config = config
        self._paths = paths or Paths()
        self.conditions = Conditions()
        self._failures = Failures(self.conditions)
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
                reported=self._failures.reported,
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
            # Here: a node without a cluster starts without these modules.
            from metropolis.node.core.network.overlay.overlay import Overlay

            assert self._gate.exchange is not None, "of a cluster there is one"
            link = event.Value[LinkState | None]("no uplink's link")
            link.set(None)
            self._overlay = Overlay(
                self._gate.exchange,
                link if self._uplink is None else self._uplink.link,
                state_dir=self._paths.state_dir,
                rotation_s=cluster.key_rotation_s,
            )

        self._workloads = WorkloadService(
            config,
            self._paths,
            self.conditions,
            self._gate,
            uplink_link=None if self._uplink is None else self._uplink.link,
            overlay_mtu=None if self._overlay is None else self._overlay.mtu,
            guard_link=self._guard_link,
            guard_rules=self._guard_rules,
            rules_made=lambda: self._rules.made,
        )

    async def run(self, ctx: Context) -> None:
        """Serve the workloads; prepare the host, then run the other parts."""
        ctx.run("workloads", self._workloads.run)
        await self._failures.until_done("host", self._prepare_host, "prepare the node's network")
        if self._uplink is None:
            self.uplink_status.set(UplinkStatus())
        else:
            ctx.run("uplink", self._uplink.run)
            ctx.run("ward-uplink", self._guard_link(self._uplink.ward()))
            ctx.run("strict", self._follow_reverse_path)
            ctx.run("resolvers", self._follow_resolvers)
            ctx.run("uplink-note", self._note_uplink)
        ctx.run("gate", self._failures.reported("gate", self._gate.run))
        ctx.run("names", self._wait_for_names)
        ctx.run("time", self._time.run)
        if self._overlay is not None:
            ctx.run("overlay", self._failures.reported("overlay", self._overlay.run))
            ctx.run("ward-overlay", self._guard_link(self._overlay))
            settings = wards.Sysctls(sysctls.link(allocs.OVERLAY_LINK), "overlay-sysctls")
            ctx.run("ward-overlay-sysctls", self._guard_link(settings))
        self._guard_node(ctx)
        ctx.signal_healthy()
        ctx.signal_done()

    def _guard_node(self, ctx: Context) -> None:
        """Restore what others change on the node as a whole."""
        ctx.run("reconcile", self._reconciler.run)
        guarded: tuple[tuple[Ward, set[Kind], float], ...] = (
            (wards.Rules(self._rules), {Kind.RULES}, RULES_LOOKED_AT_S),
            (wards.Sysctls((*sysctls.NODE, *self._sysctls)), {Kind.SETTING}, 1.0),
            (conntrack.Limit(), set(), 1.0),
            (wards.Host(), {Kind.ADDRESS, Kind.LINK, Kind.POLICY}, 5.0),
            (wards.Foreign(self.conditions, ctx.logger), set(), 10.0),
        )
        for ward, kinds, every_s in guarded:
            ctx.run(f"ward-{ward.name}", self._reconciler.guard(ward, kinds=kinds, every_s=every_s))

    def _guard_rules(self, ward: Ward) -> Runnable:
        return self._reconciler.guard(ward, kinds={Kind.RULES}, every_s=RULES_LOOKED_AT_S)

    def _guard_link(self, ward: Ward) -> Runnable:
        """Return the runnable for a ward of links."""
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
            await in_thread(self._rules.update, resolvers=resolvers)

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
        """The rules come first: they must be in place before the node forwards.
        After a restart, those for the former overlay stay until the cluster is
        known; a node that is in no cluster any more has none.
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
