# SPDX-License-Identifier: Apache-2.0
"""The uplink: the node's link to other networks.

    uplink
     +- links      makes bond and VLAN, if configured, and removes former ones
     +- link       follows the topmost link: present, gone, carrier, MTU
     +- addresses  one life of that link: settings, up, addresses, announcements
         +- dhcp4  the client, if configured

The link may appear late, vanish, come back, get another name or MAC:
`addresses` waits for it, and fails when it is gone or another, to wait for the
next. What others remove from it meanwhile is restored by `ward`, which the
reconciler calls. A restart finds bond and VLAN as it left them, and changes
nothing that is right. An address by DHCP ends in the kernel at the end of its
lease, whether this service runs or not; a restart finds it there, keeps it,
and requests it again.

IPv6 by router advertisements is the kernel's work; its result is in the status.
Name servers in them (RDNSS) are not read. On a kernel without IPv6
(ipv6.disable=1) static addresses of that family are left out, with a warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from metropolis.node.core.network.sysctls import Sysctl
from metropolis.node.core.network.uplink import program
from metropolis.node.core.network.uplink.wanted import (
    render_resolv_conf,
    wanted_addressing,
    wanted_mtu,
    wanted_names,
    without_ipv6,
)
from metropolis.node.core.network.uplink.ward import Aim, UplinkWard
from osbase import event
from osbase.net import announce, external, links, ports, stack
from osbase.net.addressing import (
    Addressing,
    IPAddress,
    IPInterface,
)
from osbase.net.config import Interface
from osbase.net.dhcp4 import Client, Lease, clock
from osbase.net.links import LinkState
from osbase.supervisor import Context, Runnable, in_thread

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UplinkStatus:
    """The state of the uplink. link None: it does not exist (yet). addresses:
    static and by DHCP, without those of router advertisements. external: the
    addresses by which other hosts reach the node, from any source, best first:
    see osbase.net.external. search: DNS domains. ntp: time servers by DHCP.
    """

    link: LinkState | None = None
    addresses: tuple[IPInterface, ...] = ()
    dns: tuple[IPAddress, ...] = ()
    search: tuple[str, ...] = ()
    external: tuple[IPAddress, ...] = ()
    ntp: tuple[IPAddress, ...] = ()


class LinkGoneError(Exception):
    """The link was removed, or another took its place."""


class Uplink:
    """`run` is a runnable; `status` and `link` are its results."""

    def __init__(
        self,
        config: Interface,
        status: event.Value[UplinkStatus],
        *,
        resolv_conf: str = allocs.RESOLV_CONF,
        reported: Callable[[str, Runnable], Runnable] = lambda _, runnable: runnable,
    ) -> None:
        """status: set at every change. reported: returns a runnable whose
        failures become a problem under a name.
        """
        self._config = config
        self._status = status
        self._resolv_conf = resolv_conf
        self._reported = reported
        self._built = event.Value[bool]("whether the uplink's links are made")
        self._ward = UplinkWard()
        self.link = event.Value[LinkState | None]("uplink's link")

    @property
    def _group(self) -> int:
        """Return the group of links that it makes, see `links`; others: 0."""
        made = self._config.bond is not None or self._config.vlan is not None
        return allocs.LINK_GROUP_UPLINK if made else 0

    def ward(self) -> UplinkWard:
        """Return the ward that restores what others remove from the uplink."""
        return self._ward

    async def run(self, ctx: Context) -> None:
        """Run the parts."""
        ctx.run("links", self._reported("uplink", self._links))
        ctx.run("link", self._follow)
        ctx.run("addresses", self._reported("uplink_addresses", self._addresses))
        ctx.signal_healthy()
        ctx.signal_done()

    async def _links(self, ctx: Context) -> None:
        ctx.signal_healthy()
        await stack.maintain(
            self._config,
            allocs.LINK_GROUP_UPLINK,
            self._built,
            quiet_groups=(allocs.LINK_GROUP_WORKLOAD,),
            report=lambda what: ctx.logger.info("%s", what),
        )
        ctx.signal_done()

    async def _follow(self, ctx: Context) -> None:
        ctx.signal_healthy()
        watcher = self._built.watch()
        if not await watcher.get():
            self.link.set(None)
            # Without a member, a bond has a MAC that it made up.
            await watcher.get(lambda built: built)
        name, mac = self._config.top_name, self._config.hardware_address
        if name or mac:
            await links.follow(name, self.link, mac)
        else:
            await ports.follow(
                self.link,
                preferred=await in_thread(program.links_with_addresses),
                quiet_groups=(allocs.LINK_GROUP_WORKLOAD,),
            )

    async def _addresses(self, ctx: Context) -> None:
        watcher = self.link.watch()
        state = await watcher.get()
        if state is None:
            ctx.logger.info("waiting for %s to appear", self._config.described)
            self._status.set(UplinkStatus())
            state = await watcher.get(lambda found: found is not None)
        assert state is not None, "waited for"
        ctx.logger.info("uplink is %s, index %d, MTU %d", state.name, state.ifindex, state.mtu)
        self._status.set(replace(self._now(), link=state))
        settings = await in_thread(program.prepare, self._config, self._group, state)
        advertised = self._config.router_advertisements
        await in_thread(self._aim, Aim(state, settings, advertised, group=self._group))

        ended = contextlib.ExitStack()
        leases = event.Value[Lease | None]("lease of the uplink")
        client = None
        if self._config.dhcp4 is None:
            leases.set(None)
        else:
            # Until a server answers, the lease is that of a former run.
            left = await in_thread(program.left_behind, state.ifindex, self._resolv_conf)
            # Static addresses do not wait for a server, either.
            leases.set(left)
            client = Client(
                state.name,
                state.mac,
                leases,
                host_name=self._config.dhcp4.host_name,
                hint=None if left is None else left.address.ip,
                logger=ctx.logger,
            )
            dhcp = client

            async def run_client(ctx: Context) -> None:
                ctx.signal_healthy()
                await dhcp.run()

            ctx.run("dhcp4", run_client)
            if left is not None and left.end is not None:
                later = clock.Timer(functools.partial(_end, leases, left))
                ended.callback(later.close)
                later.set(left.end)
        ctx.signal_healthy()
        reach = event.Value[tuple[IPAddress, ...]]("the uplink's external addresses")
        changed = event.Value[None]("a reason to announce them")
        # In this order: the first of several failures is the cause.
        tasks = [
            asyncio.create_task(part)
            for part in (
                self._watch(ctx, state, watcher, client, changed),
                self._configure(ctx, state, settings, leases),
                external.follow(state.ifindex, reach),
                self._tell_external(ctx, reach, changed),
                self._announce(ctx, state, reach, changed),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            ended.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await in_thread(self._aim, None)

    def _aim(self, aim: Aim | None) -> None:
        with self._ward.changing():
            self._ward.aim = aim

    def _now(self) -> UplinkStatus:
        return self._status.peek(UplinkStatus())

    async def _watch(
        self,
        ctx: Context,
        state: LinkState,
        watcher: event.Watcher[LinkState | None],
        client: Client | None,
        changed: event.Value[None],
    ) -> None:
        """Follow the link until LinkGoneError."""
        last = state
        async for new in watcher:
            if new is None or _identity(new) != _identity(state):
                self._status.set(UplinkStatus(new))
                raise LinkGoneError(f"{state.name} is gone, or another link now")
            if new.carrier != last.carrier:
                ctx.logger.info("%s has %s", new.name, "a carrier" if new.carrier else "no carrier")
            if new.carrier and not last.carrier:
                changed.set(None)
                if client is not None:
                    client.link_came_up()
            last = new
            self._status.set(replace(self._now(), link=new))

    async def _configure(
        self,
        ctx: Context,
        state: LinkState,
        settings: tuple[Sysctl, ...],
        leases: event.Value[Lease | None],
    ) -> None:
        async for lease in leases.watch():
            await self._apply(ctx, state, settings, lease)

    async def _apply(
        self, ctx: Context, state: LinkState, settings: tuple[Sysctl, ...], lease: Lease | None
    ) -> None:
        config = self._config
        if not await in_thread(sysctls.has_ipv6):
            if (fewer := without_ipv6(config)) != config:
                ctx.logger.warning("%s gets no IPv6 addresses: the kernel has none", state.name)
            config = fewer
        dns, search = wanted_names(config, lease)

        def wanted(now: float) -> Addressing:
            return wanted_addressing(config, lease, now)

        aim = Aim(
            state,
            settings,
            config.router_advertisements,
            wanted,
            wanted_mtu(config, lease),
            config.mtu is not None,
            self._resolv_conf,
            render_resolv_conf(dns, search),
            self._group,
        )
        now = wanted(clock.now())
        refused = await in_thread(program.program, self._ward, aim, now)
        if refused:
            ctx.logger.warning("%s", refused)
        addresses = tuple(address.interface for address in now.addresses)
        if self._now().addresses != addresses:
            ctx.logger.info("%s has %s", state.name, ", ".join(map(str, addresses)) or "no address")
        link = self.link.peek()
        if link is None or (link.ifindex, link.name, link.mac) != (
            state.ifindex,
            state.name,
            state.mac,
        ):
            return  # not its addresses; its own life reports them
        self._status.set(
            replace(
                self._now(),
                link=link,
                addresses=addresses,
                dns=dns,
                search=search,
                ntp=() if lease is None else lease.ntp,
            )
        )

    async def _tell_external(
        self,
        ctx: Context,
        reach: event.Value[tuple[IPAddress, ...]],
        changed: event.Value[None],
    ) -> None:
        known: frozenset[IPAddress] = frozenset()
        async for addresses in reach.watch():
            if frozenset(addresses) - known:
                changed.set(None)
            known = frozenset(addresses)
            ctx.logger.info("reachable by %s", ", ".join(map(str, addresses)) or "no address")
            self._status.set(replace(self._now(), external=addresses))

    async def _announce(
        self,
        ctx: Context,
        state: LinkState,
        reach: event.Value[tuple[IPAddress, ...]],
        changed: event.Value[None],
    ) -> None:
        """Announce addresses to the neighbours, twice each time."""
        watcher = changed.watch()
        again = False
        while True:
            try:
                async with asyncio.timeout(announce.INTERVAL_S if again else None):
                    await watcher.get()
                again = True
            except TimeoutError:
                again = False
            addresses = reach.peek(None)
            if addresses is None:  # a carrier, before anything is known
                continue
            try:
                await in_thread(
                    announce.send, state.name, state.mac, addresses, router=sysctls.FORWARDS
                )
            except OSError as error:
                ctx.logger.warning("announcing addresses on %s: %s", state.name, error)


def _identity(link: LinkState) -> tuple[int, str, bytes]:
    """Return what a life depends on: settings go by name, DHCP by MAC."""
    return link.ifindex, link.name, link.mac


def _end(leases: event.Value[Lease | None], left: Lease) -> None:
    """Give up a former run's lease, unless there is a newer one."""
    if leases.peek() is left:
        leases.set(None)
