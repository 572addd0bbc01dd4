# SPDX-License-Identifier: Apache-2.0
"""A running uplink in a test, without the rest of node core."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import ip_interface
from pathlib import Path

from metropolis.node.core.network.reconcile.ward import Repair
from metropolis.node.core.network.uplink.uplink import Uplink, UplinkStatus
from osbase import event
from osbase.net.config import Interface
from osbase.supervisor import Supervisor
from osbase.test.namespaces import LIMIT_S


class Node:
    """A running uplink.

    The reconciler is not here: its looks are called by hand, as often as a test
    needs, so what is put back is put back by exactly one of them.
    """

    def __init__(self, config: Interface, resolv_conf: Path) -> None:
        self.resolv_conf = resolv_conf
        self.status = event.Value[UplinkStatus]("status")
        self.uplink = Uplink(config, self.status, resolv_conf=str(resolv_conf))

    async def when(self, holds: Callable[[UplinkStatus], bool]) -> UplinkStatus:
        """Return the first status from now on of which that holds."""
        return await self.status.watch().get(holds)

    async def has(self, address: str) -> UplinkStatus:
        wanted = ip_interface(address)
        return await self.when(lambda now: wanted in now.addresses)

    async def look(self, *refused: str) -> Sequence[Repair]:
        """One look, in which those keys are left alone."""
        ward = self.uplink.ward()
        return await asyncio.to_thread(ward.look, lambda key: key not in refused)

    async def keys(self) -> set[str]:
        """What one look puts back; nothing is refused."""
        repairs = await self.look()
        assert not any(one.error or one.left for one in repairs), repairs
        return {one.key for one in repairs}


@contextlib.asynccontextmanager
async def running(config: Interface, tmp_path: Path) -> AsyncIterator[Node]:
    """The uplink, supervised, stopped at the end, which must be clean."""
    node = Node(config, tmp_path / "resolv.conf")
    supervisor = Supervisor(node.uplink.run)
    task = asyncio.create_task(supervisor.run(10))
    try:
        async with asyncio.timeout(LIMIT_S):
            yield node
    finally:
        supervisor.request_stop()
        assert await task == []


async def until(holds: Callable[[], bool]) -> None:
    """Look again and again."""
    async with asyncio.timeout(LIMIT_S):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
