# SPDX-License-Identifier: Apache-2.0
"""The uplink: how the node reaches the world.

    uplink
     +- links      makes bond and VLAN, if configured, and removes former ones
     +- link       follows the topmost link: there, gone, carrier, MTU
     +- addresses  one life of that link: settings, up, addresses, announcements
         +- dhcp4  the client, if configured

The link may appear late, vanish, and come back: `addresses` waits for it, and
dies when it is gone, to wait for the next. A restart finds bond and VLAN as it
left them, and changes nothing that is right. An address by DHCP ends in the
kernel at the end of its lease, whether this service lives or not; a
restart finds it there, keeps it, and asks for it again.

IPv6 by router advertisements is the kernel's doing; what comes of it is in the
status. Name servers in them (RDNSS) are not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from osbase import event
from osbase.net import addressing, announce, external, links, stack
from osbase.net.addressing import (
    FOREVER,
    Address,
    Addressing,
    IPAddress,
    IPInterface,
    IPNetwork,
    Route,
)
from osbase.net.config import Interface
from osbase.net.dhcp4 import Client, Lease
from osbase.net.links import LinkState
from osbase.netlink.errors import NetlinkError
from osbase.netlink.message import Request
from osbase.netlink.rtnl import set_link_up
from osbase.netlink.transport import NetlinkSocket
from osbase.supervisor import Context

_METRIC: Final = 100
"""Of routes by DHCP or by hand: preferred to those of router advertisements
(1024), if there are both."""

_EVERYWHERE: Final[dict[int, IPNetwork]] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


@dataclass(frozen=True)
class UplinkStatus:
    """What the uplink has. link None: no such link (yet). addresses: by DHCP
    and by hand, without those of router advertisements. external: by which
    other hosts reach the node, whoever gave them, best first: see
    osbase.net.external. search: DNS domains.
    """

    link: LinkState | None = None
    addresses: tuple[IPInterface, ...] = ()
    dns: tuple[IPAddress, ...] = ()
    search: tuple[str, ...] = ()
    external: tuple[IPAddress, ...] = ()


class LinkGoneError(Exception):
    """The link was removed, or another took its place."""


class Uplink:
    """`run` is a runnable; `status` and `link` tell what came of it."""

    def __init__(
        self,
        config: Interface,
        status: event.Value[UplinkStatus],
        *,
        resolv_conf: str = allocs.RESOLV_CONF,
    ) -> None:
        """status: set at every change."""
        self._config = config
        self._status = status
        self._resolv_conf = resolv_conf
        self._built = event.Value[bool]("whether the uplink's links are made")
        self.link = event.Value[LinkState | None]("uplink's link")

    async def run(self, ctx: Context) -> None:
        """Run the parts."""
        ctx.run("links", self._links)
        ctx.run("link", self._follow)
        ctx.run("addresses", self._addresses)
        ctx.signal_healthy()
        ctx.signal_done()

    async def _links(self, ctx: Context) -> None:
        ctx.signal_healthy()
        await stack.maintain(
            self._config,
            allocs.LINK_GROUP_UPLINK,
            self._built,
            quiet_groups=(allocs.LINK_GROUP_WORKLOAD,),
            told=lambda what: ctx.logger.info("%s", what),
        )
        ctx.signal_done()

    async def _follow(self, ctx: Context) -> None:
        ctx.signal_healthy()
        watcher = self._built.watch()
        if not await watcher.get():
            self.link.set(None)
            # Until it has a member, a bond has a MAC of its own making.
            await watcher.get(lambda built: built)
        await links.follow(self._config.top_name, self.link)

    async def _addresses(self, ctx: Context) -> None:
        watcher = self.link.watch()
        state = await watcher.get()
        if state is None:
            wanted = self._config.top_name or "an Ethernet device"
            ctx.logger.info("waiting for %s to appear", wanted)
            self._status.set(UplinkStatus())
            state = await watcher.get(lambda found: found is not None)
        assert state is not None, "waited for"
        ctx.logger.info("uplink is %s, index %d, MTU %d", state.name, state.ifindex, state.mtu)
        self._status.set(replace(self._now(), link=state))
        await asyncio.to_thread(self._prepare, state)

        leases = event.Value[Lease | None]("lease of the uplink")
        client = None
        if self._config.dhcp4 is None:
            leases.set(None)
        else:
            # Until there is a lease, what a former run left stays: the
            # kernel removes it in time.
            hint = await asyncio.to_thread(_left_behind, state.ifindex)
            client = Client(
                state.name,
                state.mac,
                leases,
                host_name=self._config.dhcp4.host_name,
                hint=hint,
                logger=ctx.logger,
            )
            dhcp = client

            async def run_client(ctx: Context) -> None:
                ctx.signal_healthy()
                await dhcp.run()

            ctx.run("dhcp4", run_client)
            if hint is None:
                # Static addresses do not wait for a server.
                leases.set(None)
        ctx.signal_healthy()
        reach = event.Value[tuple[IPAddress, ...]]("the uplink's external addresses")
        changed = event.Value[None]("a reason to announce them")
        # In this order: of several failures the first is the cause.
        tasks = [
            asyncio.create_task(part)
            for part in (
                self._watch(ctx, state, watcher, client, leases, changed),
                self._configure(ctx, state, leases),
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
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _now(self) -> UplinkStatus:
        try:
            return self._status.peek()
        except LookupError:
            return UplinkStatus()

    async def _watch(
        self,
        ctx: Context,
        state: LinkState,
        watcher: event.Watcher[LinkState | None],
        client: Client | None,
        leases: event.Value[Lease | None],
        changed: event.Value[None],
    ) -> None:
        """Raises LinkGoneError in the end."""
        last = state
        async for new in watcher:
            if new is None or new.ifindex != state.ifindex or new.mac != state.mac:
                self._status.set(UplinkStatus(new))
                raise LinkGoneError(f"{state.name} is gone, or another link now")
            if new.carrier != last.carrier:
                ctx.logger.info("%s has %s", new.name, "a carrier" if new.carrier else "no carrier")
            if new.carrier and not last.carrier:
                changed.set(None)
                if client is not None:
                    client.link_came_up()
            if not new.up:
                try:
                    await asyncio.to_thread(_batch, set_link_up(new.ifindex, new.name))
                except NetlinkError as error:
                    # It goes down before it is removed.
                    raise LinkGoneError(f"{new.name} is gone, or refuses: {error}") from error
                # Its routes went with it, and IPv6 addresses; once more, then.
                with contextlib.suppress(LookupError):
                    leases.set(leases.peek())
            last = new
            self._status.set(replace(self._now(), link=new))

    async def _configure(
        self, ctx: Context, state: LinkState, leases: event.Value[Lease | None]
    ) -> None:
        async for lease in leases.watch():
            await self._apply(ctx, state, lease)

    async def _apply(self, ctx: Context, state: LinkState, lease: Lease | None) -> None:
        wanted = wanted_addressing(self._config, lease, asyncio.get_running_loop().time())
        dns, search = wanted_names(self._config, lease)
        await asyncio.to_thread(_apply, state, wanted, wanted_mtu(self._config, lease, state.mtu))
        await asyncio.to_thread(write_resolv_conf, self._resolv_conf, dns, search)
        addresses = tuple(address.interface for address in wanted.addresses)
        if self._now().addresses != addresses:
            ctx.logger.info("%s has %s", state.name, ", ".join(map(str, addresses)) or "no address")
        self._status.set(
            replace(self._now(), link=self.link.peek(), addresses=addresses, dns=dns, search=search)
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
        """Tell the neighbours, twice each time."""
        watcher = changed.watch()
        again = False
        while True:
            try:
                async with asyncio.timeout(announce.INTERVAL_S if again else None):
                    await watcher.get()
                again = True
            except TimeoutError:
                again = False
            try:
                addresses = reach.peek()
            except LookupError:  # a carrier, before anything is known
                continue
            try:
                await asyncio.to_thread(
                    announce.send, state.name, state.mac, addresses, router=sysctls.FORWARDS
                )
            except OSError as error:
                ctx.logger.warning("announcing addresses on %s: %s", state.name, error)

    def _prepare(self, state: LinkState) -> None:
        advertised = self._config.router_advertisements
        sysctls.apply(sysctls.uplink(state.name, router_advertisements=advertised))
        _batch(set_link_up(state.ifindex, state.name))


def wanted_addressing(config: Interface, lease: Lease | None, now: float) -> Addressing:
    """Return what the uplink should have. Pure. `now`: by the lease's clock."""
    addresses = [Address(interface) for interface in config.addresses]
    routes = [Route(_EVERYWHERE[gateway.version], gateway) for gateway in config.gateways]
    routes += [Route(route.destination, route.gateway) for route in config.routes]
    # In IPv4 a route says which of our addresses it is used with, so that it
    # goes when the address does.
    for index, route in enumerate(routes):
        for address in config.addresses:
            via = route.gateway
            if address.version == 4 and via is not None and via in address.network:
                routes[index] = replace(route, source=address.ip)
                break
    if lease is not None:
        left = FOREVER if lease.end is None else max(1, round(lease.end - now))
        own = lease.address.ip
        addresses.append(Address(lease.address, left))
        by_hand = {route.destination for route in routes}
        for destination, gateway in lease.routes:
            if destination in by_hand:
                continue
            routes.append(Route(destination, gateway, own))
            # A gateway that is nobody's neighbour yet gets a route of its own
            # (a /32 lease, as clouds give).
            alone = IPv4Network(gateway) if gateway is not None else None
            if (
                alone is not None
                and gateway not in lease.address.network
                and all(route.destination != alone for route in routes)
                and not any(via is None and gateway in network for network, via in lease.routes)
            ):
                routes.append(Route(alone, None, own))
    return Addressing(tuple(addresses), tuple(dict.fromkeys(routes)))


def wanted_mtu(config: Interface, lease: Lease | None, current: int) -> int | None:
    """Return the MTU that the lease gives, bytes; None: it stays. Pure.

    A server may make it smaller, since the link may be able to do no more, and
    has nothing to say where it was set by hand (which osbase.net.stack does).
    """
    if config.mtu is not None or lease is None or lease.mtu is None or lease.mtu >= current:
        return None
    return lease.mtu


def wanted_names(
    config: Interface, lease: Lease | None
) -> tuple[tuple[IPAddress, ...], tuple[str, ...]]:
    """Return DNS servers and search domains, by hand before by DHCP. Pure."""
    dns, search = list(config.dns), list(config.search)
    if lease is not None and not (config.dhcp4 is not None and config.dhcp4.ignore_dns):
        dns += lease.dns
        search += lease.search
    return tuple(dict.fromkeys(dns)), tuple(dict.fromkeys(search))


def render_resolv_conf(dns: Iterable[IPAddress], search: Sequence[str]) -> str:
    """Return a resolv.conf(5). The C library takes three servers."""
    lines = ["# Written by the network service; changes are overwritten."]
    if search:
        lines.append(f"search {' '.join(search)}")
    lines.extend(f"nameserver {server}" for server in dns)
    return "\n".join(lines) + "\n"


def write_resolv_conf(path: str, dns: Iterable[IPAddress], search: Sequence[str]) -> None:
    """Replace the file at once, for readers that look at any time."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    new.write_text(render_resolv_conf(dns, search))
    new.chmod(0o644)
    os.replace(new, target)


def _left_behind(ifindex: int) -> IPv4Address | None:
    """Return the IPv4 address that a former run put on the link."""
    with NetlinkSocket() as sock:
        found = addressing.current_addresses(sock, ifindex, allocs.ROUTE_PROTOCOL_UPLINK)
    return next((one.ip for one in found if isinstance(one.ip, IPv4Address)), None)


def _apply(state: LinkState, wanted: Addressing, mtu: int | None) -> None:
    with NetlinkSocket() as sock:
        addressing.apply(
            sock,
            state.ifindex,
            state.name,
            wanted,
            protocol=allocs.ROUTE_PROTOCOL_UPLINK,
            metric=_METRIC,
        )
        if mtu is not None:
            sock.batch([addressing.set_mtu(state.ifindex, state.name, mtu)])


def _batch(request: Request) -> None:
    with NetlinkSocket() as sock:
        sock.batch([request])
