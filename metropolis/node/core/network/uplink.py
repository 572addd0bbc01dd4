# SPDX-License-Identifier: Apache-2.0
"""The uplink: how the node reaches the world.

    uplink
     +- links      makes bond and VLAN, if configured, and removes former ones
     +- link       follows the topmost link: there, gone, carrier, MTU
     +- addresses  one life of that link: settings, up, addresses, announcements
         +- dhcp4  the client, if configured

The link may appear late, vanish, come back, get another name or MAC:
`addresses` waits for it, and dies when it is gone or another, to wait for the
next. What others take from it while it lives is put back by `ward`, which the
reconciler calls. A restart finds bond and VLAN as it left them, and changes
nothing that is right. An address by DHCP ends in the kernel at the end of its
lease, whether this service lives or not; a restart finds it there, keeps it,
and asks for it again.

IPv6 by router advertisements is the kernel's doing; what comes of it is in the
status. Name servers in them (RDNSS) are not read. On a kernel without IPv6
(ipv6.disable=1) addresses by hand of that family are left out, with a warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from pathlib import Path
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network import sysctls
from metropolis.node.core.network.sysctls import Sysctl
from metropolis.node.core.network.uplink_ward import (
    METRIC,
    Aim,
    UplinkWard,
    leave_pods_groups,
    replace_file,
)
from osbase import event
from osbase.net import addressing, announce, external, links, mtu, ports, stack
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
from osbase.net.dhcp4 import Client, Lease, clock
from osbase.net.links import LinkState
from osbase.netlink.errors import NetlinkError
from osbase.netlink.rtnl import dump_links, get_link, parse_link, set_link_up
from osbase.netlink.transport import NetlinkSocket
from osbase.supervisor import Context, Runnable

_EVERYWHERE: Final[dict[int, IPNetwork]] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}

log = logging.getLogger(__name__)


_NOBODY: Final = IPv4Address(0)


@dataclass(frozen=True)
class UplinkStatus:
    """What the uplink has. link None: no such link (yet). addresses: by DHCP
    and by hand, without those of router advertisements. external: by which
    other hosts reach the node, whoever gave them, best first: see
    osbase.net.external. search: DNS domains. ntp: time servers by DHCP.
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
    """`run` is a runnable; `status` and `link` tell what came of it."""

    def __init__(
        self,
        config: Interface,
        status: event.Value[UplinkStatus],
        *,
        resolv_conf: str = allocs.RESOLV_CONF,
        told: Callable[[str, Runnable], Runnable] = lambda _, runnable: runnable,
    ) -> None:
        """status: set at every change. told: makes the failures of a runnable
        known under a name.
        """
        self._config = config
        self._status = status
        self._resolv_conf = resolv_conf
        self._told = told
        self._built = event.Value[bool]("whether the uplink's links are made")
        self._ward = UplinkWard()
        self.link = event.Value[LinkState | None]("uplink's link")

    @property
    def _group(self) -> int:
        """Of links that are made, see `links`; others have none."""
        made = self._config.bond is not None or self._config.vlan is not None
        return allocs.LINK_GROUP_UPLINK if made else 0

    def ward(self) -> UplinkWard:
        """Return what puts back what others take from the uplink."""
        return self._ward

    async def run(self, ctx: Context) -> None:
        """Run the parts."""
        ctx.run("links", self._told("uplink", self._links))
        ctx.run("link", self._follow)
        ctx.run("addresses", self._told("uplink_addresses", self._addresses))
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
        name, mac = self._config.top_name, self._config.hardware_address
        if name or mac:
            await links.follow(name, self.link, mac)
        else:
            await ports.follow(
                self.link,
                preferred=await asyncio.to_thread(_with_addresses),
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
        settings = await asyncio.to_thread(self._prepare, state)
        advertised = self._config.router_advertisements
        await asyncio.to_thread(self._aim, Aim(state, settings, advertised, group=self._group))

        ended = contextlib.ExitStack()
        leases = event.Value[Lease | None]("lease of the uplink")
        client = None
        if self._config.dhcp4 is None:
            leases.set(None)
        else:
            # Until a server answers, what a former run left is the lease.
            left = await asyncio.to_thread(self._left_behind, state.ifindex)
            # What is by hand does not wait for a server, either.
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
        # In this order: of several failures the first is the cause.
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
            await asyncio.to_thread(self._aim, None)

    def _aim(self, aim: Aim | None) -> None:
        with self._ward.changing():
            self._ward.aim = aim

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
        changed: event.Value[None],
    ) -> None:
        """Raises LinkGoneError in the end."""
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
        if not await asyncio.to_thread(sysctls.has_ipv6):
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
        refused = await asyncio.to_thread(self._program, aim, now)
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
            return  # these are not its addresses; its own life says them
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

    def _prepare(self, state: LinkState) -> tuple[Sysctl, ...]:
        """Set the link up, with its settings, which are returned."""
        by_hand = any(address.version == 6 for address in self._config.addresses)
        settings = sysctls.relevant(
            sysctls.uplink(
                state.name,
                router_advertisements=self._config.router_advertisements,
                ipv6_on=by_hand or not sysctls.ipv6_is_off(),
            )
        )
        for refused in sysctls.apply_each(settings):
            log.warning("%s", refused)  # and its ward, in Status
        with NetlinkSocket() as sock:
            sock.batch([set_link_up(state.ifindex, state.name)])
            # A former uplink loses what it got, and has its MTU back.
            former = _with_addresses()
            for link in map(parse_link, sock.dump(dump_links())):
                if link.ifindex == state.ifindex:
                    if (request := leave_pods_groups(link, self._group)) is not None:
                        sock.batch([request])
                    continue
                with contextlib.suppress(NetlinkError):  # it may go meanwhile
                    sock.batch(mtu.steps(link, None, allocs.UPLINK_MTU_MARK))
                    if link.ifindex in former:
                        addressing.apply(
                            sock,
                            link.ifindex,
                            link.name,
                            Addressing(),
                            protocol=allocs.ROUTE_PROTOCOL_UPLINK,
                            metric=METRIC,
                        )
        return settings

    def _left_behind(self, ifindex: int) -> Lease | None:
        """Return the lease that a former run had of the link, if it had any."""
        with NetlinkSocket() as sock:
            left = addressing.current(sock, ifindex, allocs.ROUTE_PROTOCOL_UPLINK)
            link = parse_link(sock.get(get_link(ifindex)))
        smaller = mtu.recorded(link, allocs.UPLINK_MTU_MARK) is not None
        try:
            names = Path(self._resolv_conf).read_text("utf-8", "replace")
        except OSError:
            names = ""
        return left_lease(left, link.mtu if smaller else None, names, clock.now())

    def _program(self, aim: Aim, wanted: Addressing) -> str:
        """Make it so; return what was refused that can be done without."""
        link = aim.link
        with self._ward.changing(), NetlinkSocket() as sock:
            # First: what is not applied as a whole is not put back in parts.
            self._ward.aim = None
            addressing.apply(
                sock,
                link.ifindex,
                link.name,
                wanted,
                protocol=allocs.ROUTE_PROTOCOL_UPLINK,
                metric=METRIC,
            )
            refused = ""
            found = parse_link(sock.get(get_link(link.ifindex)))
            try:
                sock.batch(
                    mtu.steps(found, aim.mtu, allocs.UPLINK_MTU_MARK, by_hand=aim.mtu_by_hand)
                )
            except NetlinkError as error:
                refused = str(error)
            try:
                replace_file(aim.resolv_conf, aim.names)
            except OSError as error:  # such as a file system that is full
                why = f"write {aim.resolv_conf}: {error.strerror}"
                refused = "; ".join(filter(None, (refused, why)))
            self._ward.aim = aim
            return refused


def _identity(link: LinkState) -> tuple[int, str, bytes]:
    """Settings go by the name, DHCP by the MAC."""
    return link.ifindex, link.name, link.mac


def without_ipv6(config: Interface) -> Interface:
    """Return what is left of it on a kernel without IPv6. Pure. Name servers
    stay: there may be a way to them, and there is no harm.
    """
    return replace(
        config,
        addresses=tuple(one for one in config.addresses if one.version != 6),
        gateways=tuple(one for one in config.gateways if one.version != 6),
        routes=tuple(one for one in config.routes if one.destination.version != 6),
    )


def wanted_addressing(config: Interface, lease: Lease | None, now: float) -> Addressing:
    """Return what the uplink should have. Pure. `now`: by the lease's clock."""
    addresses = [Address(interface) for interface in config.addresses]
    routes = _gateways_elsewhere(config)
    for via in config.gateways:
        routes.append(Route(_EVERYWHERE[via.version], via, _source(config, via)))
    for one in config.routes:
        routes.append(Route(one.destination, one.gateway, _source(config, one.gateway)))
    if lease is not None and (lease.end is None or now < lease.end):
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


def _gateways_elsewhere(config: Interface) -> list[Route]:
    """Return routes to gateways that are no neighbours of any address."""
    vias = dict.fromkeys((*config.gateways, *(route.gateway for route in config.routes)))
    near = [address.network for address in config.addresses]
    near += [route.destination for route in config.routes if route.gateway is None]
    return [
        Route(ip_network(via), None, _source(config, via))
        for via in vias
        if via is not None
        and not (via.version == 6 and via.is_link_local)
        and not any(via in network for network in near)
    ]


def _source(config: Interface, via: IPAddress | None) -> IPAddress | None:
    """In IPv4 a route says which of our addresses it is used with, so that it
    goes when the address does: that of the gateway's network, or a /32.
    """
    if via is None or via.version == 6:
        return None
    found = [one for one in config.addresses if one.version == 4]
    found = [one for one in found if via in one.network or one.network.prefixlen == 32]
    found.sort(key=lambda one: via not in one.network)
    return found[0].ip if found else None


def wanted_mtu(config: Interface, lease: Lease | None) -> int | None:
    """Return the MTU that the lease gives, bytes; None: it gives none. Pure.

    A server may make it smaller, since the link may be able to do no more (see
    osbase.net.mtu), and has nothing to say where it was set by hand (which
    osbase.net.stack does).
    """
    return None if config.mtu is not None or lease is None else lease.mtu


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


def _with_addresses() -> frozenset[int]:
    """Return the indexes of links with addresses of ours."""
    with NetlinkSocket() as sock:
        return addressing.links_of(sock, allocs.ROUTE_PROTOCOL_UPLINK)


def _end(leases: event.Value[Lease | None], left: Lease) -> None:
    """Give up what a former run left, unless there is something newer."""
    if leases.peek() is left:
        leases.set(None)


def left_lease(left: Addressing, mtu: int | None, names: str, now: float) -> Lease | None:
    """Return the lease of a former run, as far as it can be seen; None: there
    was none. Pure. names: what its resolv.conf says.
    """
    routes = [(one.destination, one.gateway) for one in left.routes]
    for address in left.addresses:
        if isinstance(address.interface, IPv4Interface):
            length = None if address.valid_s == FOREVER else address.valid_s
            end = float("inf") if length is None else float(length)
            dns, search = _read_names(names)
            return Lease(
                address=address.interface,
                server=_NOBODY,
                routes=tuple(
                    (to, via)
                    for to, via in routes
                    if isinstance(to, IPv4Network) and not isinstance(via, IPv6Address)
                ),
                dns=dns,
                search=search,
                mtu=mtu,
                start=now,
                length_s=length,
                renew_s=end,
                rebind_s=end,
            )
    return None


def _read_names(text: str) -> tuple[tuple[IPv4Address, ...], tuple[str, ...]]:
    """Undo render_resolv_conf, for what DHCP can give."""
    dns: list[IPv4Address] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server]:
                with contextlib.suppress(ValueError):
                    dns.append(IPv4Address(server))
            case ["search", *domains]:
                search = tuple(domains)
    return tuple(dns), search
