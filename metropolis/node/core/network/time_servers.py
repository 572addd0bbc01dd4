# SPDX-License-Identifier: Apache-2.0
"""Passes the node's time servers to chronyd.

    configuration, else DHCP -> node.sources -> chronyd, at once

chronyd is a service of its own (metropolis/node/image): time is synchronised
whatever happens to this process. An image without it has no directory for the
file, and then there is nothing to do.

Servers stay until others replace them: a lease that ends, or a restart of this
process before its first answer, is no reason to lose the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metropolis.node.core.network.uplink.ward import replace_file
from osbase.supervisor import in_thread

if TYPE_CHECKING:
    from metropolis.node.core.network.uplink.uplink import UplinkStatus
    from metropolis.node.core.network.workloads.conditions import Conditions
    from osbase import event
    from osbase.supervisor import Context

_FILE: Final = "node.sources"
_CONDITION: Final = "time"
_RELOAD: Final = ("chronyc", "-n", "reload", "sources")


class TimeError(Exception):
    """chronyd could not be reached."""


def render(servers: Iterable[str]) -> str:
    """Return chrony's *.sources. iburst: the clock is right seconds after the
    start, not minutes. Pure.
    """
    lines = ["# Written by the network service; changes are overwritten."]
    lines.extend(f"server {server} iburst" for server in servers)
    return "\n".join(lines) + "\n"


class TimeServers:
    """`run` is a runnable. servers: from the configuration."""

    def __init__(
        self,
        servers: tuple[str, ...],
        status: event.Value[UplinkStatus],
        directory: str,
        conditions: Conditions,
    ) -> None:
        self._servers = servers
        self._status = status
        self._path = Path(directory, _FILE)
        self._conditions = conditions

    async def run(self, ctx: Context) -> None:
        """Pass each change to chronyd, and repeat until chronyd has it."""
        ctx.signal_healthy()
        if not await in_thread(self._path.parent.is_dir):
            ctx.signal_done()
            return
        passed: tuple[str, ...] | None = None
        async for status in self._status.watch():
            servers = self._servers or tuple(map(str, status.ntp))
            # Most changes of the uplink's status do not matter here.
            if servers != passed:
                await self._use(ctx, servers)
                passed = servers

    async def _use(self, ctx: Context, servers: tuple[str, ...]) -> None:
        before = await in_thread(self._read)
        wanted = render(servers)
        if servers and wanted != before:
            await in_thread(replace_file, str(self._path), wanted)
            ctx.logger.info("time servers: %s", ", ".join(servers))
        elif not servers:
            known = "server " in before
            self._conditions.note(
                _CONDITION,
                "" if known else "no time servers (NTP), by configuration or DHCP",
            )
            return
        self._conditions.note(_CONDITION, "")
        await self._reload()

    def _read(self) -> str:
        try:
            return self._path.read_text("utf-8", "replace")
        except OSError:
            return ""

    async def _reload(self) -> None:
        """One that starts meanwhile may have read the file, or not yet: until
        it answers it is asked, which is what the supervisor is for.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *_RELOAD,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise TimeError(f"{_RELOAD[0]}: {error.strerror}") from error
        said, _ = await process.communicate()
        if process.returncode != 0:
            text = said.decode("utf-8", "replace").strip()
            raise TimeError(f"{' '.join(_RELOAD)}: {text or process.returncode}")
