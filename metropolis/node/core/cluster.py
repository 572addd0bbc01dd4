# SPDX-License-Identifier: Apache-2.0
"""A node's membership in its cluster: the curator client, and what it needs.

    uplink_status -> underlay -+
    overlay: identity ---------+-> curator <-> etcd
                               +-> mesh, peers -> overlay
                               +-> pod prefixes -> workloads

The only place that knows both the curator and the network service.
"""

from __future__ import annotations

import asyncio
import importlib
import platform
from typing import TYPE_CHECKING

from metropolis.node.core.network.overlay.mesh import Exchange, IPAddress
from metropolis.node.core.network.overlay.overlay import held_prefixes
from metropolis.node.core.network.service import ClusterLink
from osbase import event

if TYPE_CHECKING:
    from metropolis.node.core.config import Cluster, PodPrefixes
    from metropolis.node.core.network.uplink import UplinkStatus
    from osbase.supervisor import Context


class Membership:
    """`link` is for the network service; `start` runs the rest."""

    def __init__(self, config: Cluster, pod_prefixes: event.Value[PodPrefixes]) -> None:
        """pod_prefixes: set to what the node holds, by the curator."""
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

    def start(self, ctx: Context, status: event.Value[UplinkStatus]) -> None:
        """Run the parts as children."""

        async def underlay(ctx: Context) -> None:
            ctx.signal_healthy()
            async for now in status.watch():
                # Of an uplink that lost its address, others keep the last.
                if now.external:
                    self._underlay.set(now.external[0])

        ctx.run("underlay", underlay)
        ctx.run("curator", self._curator)

    async def _curator(self, ctx: Context) -> None:
        # It takes seconds to import on a slow machine; meanwhile others start.
        module = await asyncio.to_thread(
            importlib.import_module, "metropolis.node.core.curator.curator"
        )
        held = await asyncio.to_thread(held_prefixes)
        client = module.Curator(
            self._config,
            self._exchange,
            self._underlay,
            self._pod_prefixes,
            version=await asyncio.to_thread(software_version),
            held=held,
        )
        await client.run(ctx)


def software_version() -> str:
    """Return what the node runs, as its image says (os-release(5))."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "unknown"
    return " ".join(filter(None, [release.get("ID"), release.get("VERSION_ID")]))
