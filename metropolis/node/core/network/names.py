# SPDX-License-Identifier: Apache-2.0
"""Status waits for the node's name servers, for a bounded time.

A pod keeps the name servers that it was started with (its runtime copies the
node's resolv.conf), so a pod that is started before there are any never has
one. Only Status waits: a workload that is attached meanwhile has its network.

It does not wait for name servers that cannot come: without an uplink, without
DHCP, or where DHCP's name servers are ignored. Those of the configuration are
there from the start, and so are those that a former run of this process left.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metropolis.node.core.network.uplink.uplink import UplinkStatus
from metropolis.node.core.network.uplink.wanted import render_resolv_conf
from metropolis.node.core.network.uplink.ward import replace_file

if TYPE_CHECKING:
    from metropolis.node.core.network.workloads.conditions import Conditions
    from osbase import event
    from osbase.net.config import Interface
    from osbase.supervisor import Context

_CONDITION: Final = "names"


def expected(uplink: Interface | None) -> bool:
    """Return whether name servers are still expected from DHCP. Pure."""
    return (
        uplink is not None
        and uplink.dhcp4 is not None
        and not uplink.dhcp4.ignore_dns
        and not uplink.dns
    )


def has_servers(path: str) -> bool:
    """Return whether a resolv.conf(5) exists and names any. Blocks."""
    try:
        text = Path(path).read_text("utf-8", "replace")
    except OSError:
        return False
    return any(line.split()[:1] == ["nameserver"] for line in text.splitlines())


class Names:
    """Call `prepare`, then run `wait`, which waits once at most."""

    def __init__(
        self, uplink: Interface | None, resolv_conf: str, until: float, conditions: Conditions
    ) -> None:
        """until: the latest end of the wait, monotonic seconds."""
        self._uplink = uplink
        self._resolv_conf = resolv_conf
        self._until = until
        self._conditions = conditions
        self._waiting = False

    def prepare(self) -> None:
        """Set the problem in Status at once, if it waits; write the names that
        are known already. Blocks. Raises OSError.
        """
        uplink = self._uplink
        if uplink is not None and uplink.dns and not has_servers(self._resolv_conf):
            replace_file(self._resolv_conf, render_resolv_conf(uplink.dns, uplink.search))
        self._waiting = expected(uplink) and not has_servers(self._resolv_conf)
        if self._waiting and time.monotonic() < self._until:
            self._conditions.set(_CONDITION, self._problem)

    async def wait(self, ctx: Context, status: event.Value[UplinkStatus]) -> None:
        """Return when there are name servers, or the time is over."""
        ctx.signal_healthy()
        if self._waiting:
            await self._wait(ctx, status)
        ctx.signal_done()

    async def _wait(self, ctx: Context, status: event.Value[UplinkStatus]) -> None:
        found = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._until - time.monotonic()):
                found = await status.watch().get(lambda now: bool(now.dns))
        self._waiting = False
        self._conditions.clear(_CONDITION)
        if found is None:
            ctx.logger.warning("no name servers by DHCP in time; pods may start without")
        else:
            ctx.logger.info("name servers: %s", ", ".join(map(str, found.dns)))

    def _problem(self) -> str:
        left = max(0, math.ceil(self._until - time.monotonic()))
        return f"waiting for name servers by DHCP, for at most {left} s more"
