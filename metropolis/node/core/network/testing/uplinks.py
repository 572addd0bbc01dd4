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

    There is no reconciler: the test calls its looks, as often as it needs, so
    each repair is by exactly one of them.
    """

    def __init__(self, config: Interface, resolv_conf: Path) -> None:
        self.resolv_conf = resolv_conf
        self.status = event.Value[UplinkStatus]("status")
        self.uplink = Uplink(config, self.status, resolv_conf=str(resolv_conf))

    async def when(self, holds: Callable[[UplinkStatus], bool]) -> UplinkStatus:
        """Return the first status from now on for which `holds` is true."""
        return await self.status.watch().get(holds)

    async def has(self, address: str) -> UplinkStatus:
        wanted = ip_interface(address)
        return await self.when(lambda now: wanted in now.addresses)

    async def look(self, *refused: str) -> Sequence[Repair]:
        """Look once; the ward may not repair the refused keys."""
        ward = self.uplink.ward()
        return await asyncio.to_thread(ward.look, lambda key: key not in refused)

    async def keys(self) -> set[str]:
        """Return the keys that one look repairs; nothing is refused."""
        repairs = await self.look()
        assert not any(one.error or one.left for one in repairs), repairs
        return {one.key for one in repairs}


@contextlib.asynccontextmanager
async def running(config: Interface, tmp_path: Path) -> AsyncIterator[Node]:
    """Run the uplink, supervised; the stop at the end must be clean."""
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
    """Check repeatedly until it holds."""
    async with asyncio.timeout(LIMIT_S):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
