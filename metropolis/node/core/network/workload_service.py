# SPDX-License-Identifier: Apache-2.0
"""The part of the network service that runs the workload network service.

    recovery   engine.start, if the first attempt failed
    prefixes   admitted pod prefixes -> engine, when the MTU is known
    strays     addresses of no prefix, while they are in use -> gate
    mtu        MTU of the uplink or the overlay -> engine
    policies   files of network policies
    conntrack  tracked flows -> links that are refused new ones
    grpc       workload.sock
    cni        cni.sock

It waits for no other part: Detach, Collect, List, Check and Status are served
whatever fails elsewhere. Adding waits: no prefix reaches the engine before the
rules are in place, which the gate ensures, and the MTU is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from metropolis.node.core.config import MTU_MIN, Network
from metropolis.node.core.network import conntrack, overlap
from metropolis.node.core.network.failures import Failures
from metropolis.node.core.network.gate import Admitted, Gate
from metropolis.node.core.network.host import make_runtime_directory
from metropolis.node.core.network.overlay.mesh import IPAddress, IPNetwork
from metropolis.node.core.network.paths import Paths
from metropolis.node.core.network.reconcile import wards
from metropolis.node.core.network.reconcile.ward import Ward
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.errors import Unavailable
from osbase import event
from osbase.net.links import LinkState
from osbase.supervisor import Context, Runnable, in_thread

if TYPE_CHECKING:
    from metropolis.node.core.network.cni.server import CniServer
    from metropolis.node.core.network.policy.files import Files
    from metropolis.node.core.network.policy.manager import Manager
    from metropolis.node.core.network.workloads.api.server import WorkloadServer
    from metropolis.node.core.network.workloads.engine.engine import Engine

DEFAULT_MTU: Final = 1500
"""MTU of workloads on a node without an uplink, bytes."""

STRAYS_LOOKED_AT_S: Final = 10.0
"""Interval, seconds, while workloads have addresses of withdrawn prefixes."""

CALLS_END_WITHIN_S: Final = 10.0
"""Time for calls under way to end when the service stops, seconds."""


class WorkloadService:
    """`run` is the runnable."""

    def __init__(
        self,
        config: Network,
        paths: Paths,
        conditions: Conditions,
        gate: Gate,
        *,
        uplink_link: event.Value[LinkState | None] | None,
        overlay_mtu: event.Value[int] | None,
        guard_link: Callable[[Ward], Runnable],
        guard_rules: Callable[[Ward], Runnable],
        rules_made: Callable[[], int],
    ) -> None:
        """uplink_link: None without an uplink. overlay_mtu: bytes; None without
        an overlay. guard_link, guard_rules: return the runnable for a ward of
        links, or of elements. rules_made: see policy.ward.
        """
        self._config = config
        self._paths = paths
        self._conditions = conditions
        self._failures = Failures(conditions)
        self._gate = gate
        self._uplink_link = uplink_link
        self._overlay_mtu = overlay_mtu
        self._guard_link = guard_link
        self._guard_rules = guard_rules
        self._rules_made = rules_made

    async def run(self, ctx: Context) -> None:
        """Make the engine, recover, then serve until cancelled."""
        # Imports take seconds on a slow machine; meanwhile the uplink comes up.
        policies = await in_thread(_make_policies, self._paths.policy_dir, self._conditions)
        engine = await in_thread(_make_engine, self._conditions, policies)
        try:
            engine.set_ipv6_optional(self._config.ipv6_optional)

            async def recovery(ctx: Context) -> None:
                ctx.signal_healthy()
                await self._failures.until_done("recovery", engine.start, "recover attachments")
                ctx.signal_done()

            try:
                await in_thread(engine.start)
            except Exception:
                # Whatever the error, List and Status must stay available.
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
                await self._serve_grpc(ctx, engine, policies)

            async def policy_files(ctx: Context) -> None:
                files = await in_thread(
                    _make_policy_files, self._paths.policy_files, policies, self._conditions
                )
                await files.run(ctx)

            async def cni(ctx: Context) -> None:
                await self._serve_cni(ctx, engine)

            async def strays(ctx: Context) -> None:
                await self._follow_strays(ctx, engine)

            ctx.run("prefixes", prefixes)
            ctx.run("strays", strays)
            if self._config.mtu is None:
                ctx.run("mtu", mtu)
            ctx.run("conntrack", conntrack.Guard(engine.list, self._conditions).run)
            ctx.run("grpc", grpc)
            ctx.run("policy-files", policy_files)
            ctx.run("cni", self._failures.reported("cni", cni))
            ctx.run("ward-workloads", self._guard_link(wards.Workloads(engine.repair)))
            ctx.run(
                "ward-policies",
                self._guard_rules(await in_thread(_make_ward, policies, self._rules_made)),
            )
            ctx.signal_healthy()
            await asyncio.Event().wait()
        finally:
            await in_thread(engine.close)

    async def _know_mtu(self, engine: Engine) -> None:
        """Set the MTU before the first attach."""
        if self._config.mtu is None:
            of = "the overlay" if self._overlay_mtu is not None else "the uplink"
            engine.set_prefixes((), lacking=f"the MTU of workloads is not known yet: {of}'s is not")
        engine.set_mtu(self._config.mtu or await self._first_mtu())
        engine.set_prefixes(())

    async def _first_mtu(self) -> int:
        if self._overlay_mtu is not None:
            return await self._overlay_mtu.watch().get()
        if self._uplink_link is None:
            return DEFAULT_MTU
        return pod_mtu(await self._uplink_link.watch().get())

    async def _follow_mtu(self, ctx: Context, engine: Engine) -> None:
        if self._overlay_mtu is not None:
            ctx.signal_healthy()
            async for size in self._overlay_mtu.watch():
                engine.set_mtu(size)
                ctx.logger.info("MTU of new workloads is %d", size)
        if self._uplink_link is None:
            ctx.signal_done()
            return
        ctx.signal_healthy()
        last = 0
        async for link in self._uplink_link.watch():
            # When the uplink is gone, the MTU stays.
            if link is not None and (size := pod_mtu(link)) != last:
                engine.set_mtu(size)
                ctx.logger.info("MTU of new workloads is %d", size)
                last = size

    async def _follow_prefixes(self, ctx: Context, engine: Engine) -> None:
        before: tuple[IPNetwork, ...] = ()
        async for now in self._gate.admitted.watch():
            before = await in_thread(_set_prefixes, engine, now, before)
            prefixes = now.pods.prefixes
            ctx.logger.info("pod prefixes: %s", ", ".join(map(str, prefixes)) or "none, not ready")

    async def _follow_strays(self, ctx: Context, engine: Engine) -> None:
        """Report to the gate which addresses workloads have outside of the
        present prefixes, for as long as there are any.
        """
        ctx.signal_healthy()
        watcher = self._gate.admitted.watch()
        admitted = await watcher.get()
        last: tuple[IPAddress, ...] = ()
        while True:
            prefixes = admitted.pods.prefixes
            try:
                found = await in_thread(_outside, engine, prefixes)
            except Unavailable:  # attachments are not recovered yet
                again = True
            else:
                again = bool(found)
                if found != last:
                    self._gate.running.set(found)
                    last = found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STRAYS_LOOKED_AT_S if again else None):
                    admitted = await watcher.get()

    async def _serve_grpc(self, ctx: Context, engine: Engine, policies: Manager) -> None:
        make_runtime_directory(self._paths.workload_socket)
        server = await in_thread(
            _make_server, engine, policies, self._paths.workload_socket, self._paths.rpc_server
        )
        try:
            await in_thread(server.start)
            ctx.logger.info("serving on %s", self._paths.workload_socket)
            ctx.signal_healthy()
            await asyncio.Event().wait()
        finally:
            await in_thread(server.stop, CALLS_END_WITHIN_S)

    async def _serve_cni(self, ctx: Context, engine: Engine) -> None:
        make_runtime_directory(self._paths.cni_socket)
        server = await in_thread(_make_cni_server, engine, self._paths.cni_socket)
        ctx.signal_healthy()
        await server.run()


def pod_mtu(link: LinkState | None) -> int:
    """Return the MTU of workloads' links for an uplink's. Pure."""
    return DEFAULT_MTU if link is None else max(link.mtu, MTU_MIN)


def _set_prefixes(
    engine: Engine, now: Admitted, before: tuple[IPNetwork, ...]
) -> tuple[IPNetwork, ...]:
    """Return all prefixes that the engine knows now. A prefix that is withdrawn
    while in use, or may return, is draining: its addresses are reused late.
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
    """Return the addresses of attachments that are in no prefix."""
    found = (ip for one in engine.list() for ip in one.ips)
    return tuple(ip for ip in found if overlap.inside(ip_network(ip), prefixes) is None)


def _make_policies(directory: str, conditions: Conditions) -> Manager:
    """Import and make what keeps policies in force, also in another thread."""
    from metropolis.node.core.network.policy.live import LiveKernel
    from metropolis.node.core.network.policy.manager import Manager
    from metropolis.node.core.network.policy.store import Store

    return Manager(LiveKernel(), Store(directory), conditions)


def _make_ward(policies: Manager, rules_made: Callable[[], int]) -> Ward:
    """Import and make what guards the elements of policies, too."""
    from metropolis.node.core.network.policy.ward import Policies

    return Policies(policies, rules_made)


def _make_policy_files(directory: str, policies: Manager, conditions: Conditions) -> Files:
    """Import and make what follows the files of policies, too."""
    from metropolis.node.core.network.policy.files import Files

    return Files(directory, policies, conditions)


def _make_engine(conditions: Conditions, policies: Manager) -> Engine:
    """Import and make the engine. Imports take seconds on a slow machine, so
    this runs in another thread.
    """
    from metropolis.node.core.network.workloads.datapath.registry import PARTS
    from metropolis.node.core.network.workloads.datapath.veth import KernelDatapath
    from metropolis.node.core.network.workloads.engine.engine import Engine
    from metropolis.node.core.network.workloads.engine.journal import Journal

    return Engine(KernelDatapath(PARTS), conditions, Journal(), policies)


def _make_server(
    engine: Engine, policies: Manager, path: str, implementation: str
) -> WorkloadServer:
    """Import and make the gRPC server, also in another thread."""
    from metropolis.node.core.network.policy.api import Methods
    from metropolis.node.core.network.workloads.api.server import WorkloadServer

    more = Methods(policies).more()
    return WorkloadServer(engine, path, implementation=implementation, more=more)


def _make_cni_server(engine: Engine, path: str) -> CniServer:
    """Import and make the server of the shim's protocol, too."""
    from metropolis.node.core.network.cni.server import CniServer

    return CniServer(engine, path)
