# SPDX-License-Identifier: Apache-2.0
"""A node's membership in its cluster: the curator client and its inputs.

    uplink_status -> underlay -+
    overlay: identity ---------+-> curator <-> etcd
                               +-> mesh, peers -> overlay
                               +-> pod prefixes -> workloads

Only this module knows both the curator and the network service.
"""

from __future__ import annotations

import asyncio
import importlib
import platform
from typing import TYPE_CHECKING, Any, Final

from metropolis.node.core.config import PodPrefixes
from metropolis.node.core.network.overlay.mesh import Exchange, IPAddress
from metropolis.node.core.network.overlay.overlay import held_prefixes
from metropolis.node.core.network.service import ClusterLink
from osbase import event, imports
from osbase.supervisor import in_thread

if TYPE_CHECKING:
    from metropolis.node.core.config import Cluster
    from metropolis.node.core.curator.curator import Curator
    from metropolis.node.core.network.uplink.uplink import UplinkStatus
    from metropolis.node.core.network.workloads.conditions import Conditions
    from osbase.supervisor import Context

CURATOR: Final = "metropolis.node.core.curator.curator"
_CONDITION: Final = "cluster"


def load(name: str) -> Any:
    """Import a module that only a node in a cluster has. The curator looks at
    certificates with ssl, which node core refuses to all others (see start).
    """
    imports.allow("ssl")
    return importlib.import_module(name)


class Membership:
    """`link` is for the network service; `start` runs the rest."""

    def __init__(self, config: Cluster, pod_prefixes: event.Value[PodPrefixes]) -> None:
        """pod_prefixes: the curator sets it to the node's prefixes."""
        self._config = config
        self._pod_prefixes = pod_prefixes
        self._exchange = Exchange()
        self._underlay = event.Value[IPAddress | None]("underlay address")
        self.link = ClusterLink(
            self._exchange,
            config.key_rotation_s,
            config.etcd_endpoints,
            config.underlay_address,
        )

    def start(
        self, ctx: Context, status: event.Value[UplinkStatus], conditions: Conditions
    ) -> None:
        """Run the parts as children. conditions: gets why it has no prefix."""

        async def underlay(ctx: Context) -> None:
            ctx.signal_healthy()
            async for now in status.watch():
                # When the uplink lost its address, others keep the last one.
                if now.external:
                    self._underlay.set(now.external[0])

        async def curator(ctx: Context) -> None:
            await self._curator(ctx, conditions)

        ctx.run("underlay", underlay)
        ctx.run("curator", curator)

    async def _curator(self, ctx: Context, conditions: Conditions) -> None:
        # The import takes seconds on a slow machine; meanwhile others start.
        module = await in_thread(load, CURATOR)
        held = await in_thread(held_prefixes)
        client = module.Curator(
            self._config,
            self._exchange,
            self._underlay,
            self._pod_prefixes,
            version=await in_thread(software_version),
            held=held,
        )

        async def trouble(ctx: Context) -> None:
            ctx.signal_healthy()
            await self._tell_trouble(client, conditions)

        async def credentials(ctx: Context) -> None:
            ctx.signal_healthy()
            async for note in client.credentials.watch():
                conditions.note("credentials", note)

        ctx.run("trouble", trouble)
        ctx.run("credentials", credentials)
        await client.run(ctx)

    async def _tell_trouble(self, client: Curator, conditions: Conditions) -> None:
        """Report why the node has no prefix, for as long as it has none. A node
        that has prefixes keeps them, with etcd or without: no problem then.
        """
        changed = asyncio.Event()

        async def follow(watcher: event.Watcher[Any]) -> None:
            async for _ in watcher:
                changed.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(follow(client.trouble.watch()))
            group.create_task(follow(self._pod_prefixes.watch()))
            while True:
                await changed.wait()
                changed.clear()
                pods = self._pod_prefixes.peek(PodPrefixes())
                if (why := client.trouble.peek()) and not pods.prefixes:
                    conditions.set(_CONDITION, why)
                else:
                    conditions.clear(_CONDITION)


def software_version() -> str:
    """Return the version of the node's image (os-release(5))."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "unknown"
    return " ".join(filter(None, [release.get("ID"), release.get("VERSION_ID")]))
