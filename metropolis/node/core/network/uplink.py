# SPDX-License-Identifier: Apache-2.0
"""The uplink: how the node reaches the world.

    uplink
     +- link       follows the link: there, gone, carrier, MTU
     +- addresses  one life of the link: settings, up, addresses
         +- dhcp4  the client, if configured

The link may appear late, vanish, and come back: `addresses` waits for it, and
dies when it is gone, to wait for the next. An address by DHCP ends in the
kernel at the end of its lease, whether this service lives or not; a
restart finds it there, keeps it, and asks for it again.

IPv6 by router advertisements is the kernel's doing. Name servers in them
(RDNSS) are not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from osbase import event
from osbase.net import addressing, links
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
    and by hand, without those of router advertisements.
    """

    link: LinkState | None = None
    addresses: tuple[IPInterface, ...] = ()
    dns: tuple[IPAddress, ...] = ()


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
        self.link = event.Value[LinkState | None]("uplink's link")

    async def run(self, ctx: Context) -> None:
        """Run the parts."""
        ctx.run("link", self._follow)
        ctx.run("addresses", self._addresses)
        ctx.signal_healthy()
        ctx.signal_done()

    async def _follow(self, ctx: Context) -> None:
        following = asyncio.create_task(links.follow(self._config.name, self.link))
        ctx.signal_healthy()
        try:
            await following
        finally:
            following.cancel()

    async def _addresses(self, ctx: Context) -> None:
        watcher = self.link.watch()
        state = await watcher.get()
        if state is None:
            wanted = self._config.name or "an Ethernet device"
            ctx.logger.info("waiting for %s to appear", wanted)
            self._status.set(UplinkStatus())
            state = await watcher.get(lambda found: found is not None)
        assert state is not None, "waited for"
        ctx.logger.info("uplink is %s, index %d, MTU %d", state.name, state.ifindex, state.mtu)
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
                await self._apply(ctx, state, None)
        ctx.signal_healthy()
        configuring = asyncio.create_task(self._configure(ctx, state, leases))
        watching = asyncio.create_task(self._watch(ctx, state, watcher, client))
        try:
            await asyncio.wait([configuring, watching], return_when=asyncio.FIRST_COMPLETED)
            for task in (watching, configuring):
                if task.done():
                    task.result()
        finally:
            configuring.cancel()
            watching.cancel()
            await asyncio.gather(configuring, watching, return_exceptions=True)

    async def _watch(
        self,
        ctx: Context,
        state: LinkState,
        watcher: event.Watcher[LinkState | None],
        client: Client | None,
    ) -> None:
        """Raises LinkGoneError in the end."""
        last = state
        async for new in watcher:
            if new is None or new.ifindex != state.ifindex or new.mac != state.mac:
                self._status.set(UplinkStatus(new))
                raise LinkGoneError(f"{state.name} is gone, or another link now")
            if new.carrier != last.carrier:
                ctx.logger.info("%s has %s", new.name, "a carrier" if new.carrier else "no carrier")
            if new.carrier and not last.carrier and client is not None:
                client.link_came_up()
            if not new.up:
                try:
                    await asyncio.to_thread(_batch, set_link_up(new.ifindex, new.name))
                except NetlinkError as error:
                    # It goes down before it is removed.
                    raise LinkGoneError(f"{new.name} is gone, or refuses: {error}") from error
            last = new
            with contextlib.suppress(LookupError):
                self._status.set(replace(self._status.peek(), link=new))

    async def _configure(
        self, ctx: Context, state: LinkState, leases: event.Value[Lease | None]
    ) -> None:
        async for lease in leases.watch():
            await self._apply(ctx, state, lease)

    async def _apply(self, ctx: Context, state: LinkState, lease: Lease | None) -> None:
        wanted = wanted_addressing(self._config, lease, asyncio.get_running_loop().time())
        status = UplinkStatus(
            link=self.link.peek(),
            addresses=tuple(address.interface for address in wanted.addresses),
            dns=tuple(dict.fromkeys((*self._config.dns, *(lease.dns if lease else ())))),
        )
        mtu = lease.mtu if lease else None
        await asyncio.to_thread(_apply, state, wanted, mtu)
        domain = lease.domain if lease else ""
        await asyncio.to_thread(write_resolv_conf, self._resolv_conf, status.dns, domain)
        try:
            changed = self._status.peek().addresses != status.addresses
        except LookupError:
            changed = True
        if changed:
            ctx.logger.info(
                "%s has %s", state.name, ", ".join(map(str, status.addresses)) or "no address"
            )
        self._status.set(status)

    def _prepare(self, state: LinkState) -> None:
        advertised = self._config.router_advertisements
        sysctls.apply(sysctls.uplink(state.name, router_advertisements=advertised))
        _batch(set_link_up(state.ifindex, state.name))


def wanted_addressing(config: Interface, lease: Lease | None, now: float) -> Addressing:
    """Return what the uplink should have. Pure. `now`: by the lease's clock."""
    addresses = [Address(interface) for interface in config.addresses]
    routes = [Route(_EVERYWHERE[gateway.version], gateway) for gateway in config.gateways]
    # In IPv4 a route says which of our addresses it is used with, so that it
    # goes when the address does.
    for index, route in enumerate(routes):
        for address in config.addresses:
            if address.version == 4 and route.gateway in address.network:
                routes[index] = replace(route, source=address.ip)
                break
    if lease is not None:
        left = FOREVER if lease.end is None else max(1, round(lease.end - now))
        own = lease.address.ip
        addresses.append(Address(lease.address, left))
        for destination, gateway in lease.routes:
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


def render_resolv_conf(dns: Iterable[IPAddress], domain: str) -> str:
    """Return a resolv.conf(5). The C library takes three servers."""
    lines = ["# Written by the network service; changes are overwritten."]
    if domain:
        lines.append(f"search {domain}")
    lines.extend(f"nameserver {server}" for server in dns)
    return "\n".join(lines) + "\n"


def write_resolv_conf(path: str, dns: Iterable[IPAddress], domain: str) -> None:
    """Replace the file at once, for readers that look at any time."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    new.write_text(render_resolv_conf(dns, domain))
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
        if mtu is not None and mtu < state.mtu:
            sock.batch([addressing.set_mtu(state.ifindex, state.name, mtu)])


def _batch(request: Request) -> None:
    with NetlinkSocket() as sock:
        sock.batch([request])
