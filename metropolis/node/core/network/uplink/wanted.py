# SPDX-License-Identifier: Apache-2.0
"""What the uplink should have, from its configuration and its lease. Pure.

configuration --+
                +--> addresses, routes | MTU | name servers -> resolv.conf
lease ----------+
  ^
    +-- left_lease: the rest of a former run in the kernel and in resolv.conf
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from typing import Final

from osbase.net.addressing import (
    FOREVER,
    Address,
    Addressing,
    IPAddress,
    IPNetwork,
    Route,
)
from osbase.net.config import Interface
from osbase.net.dhcp4 import Lease

_EVERYWHERE: Final[dict[int, IPNetwork]] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
_NOBODY: Final = IPv4Address(0)


def without_ipv6(config: Interface) -> Interface:
    """Return the configuration without its IPv6, for a kernel without it. Pure.
    Name servers stay: they may be reachable, and do no harm.
    """
    return replace(
        config,
        addresses=tuple(one for one in config.addresses if one.version != 6),
        gateways=tuple(one for one in config.gateways if one.version != 6),
        routes=tuple(one for one in config.routes if one.destination.version != 6),
    )


def wanted_addressing(config: Interface, lease: Lease | None, now: float) -> Addressing:
    """Return the wanted addressing. Pure. `now`: by the lease's clock."""
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
            # A gateway in no network of the link gets a route of its own (a
            # /32 lease, as clouds give).
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
    """Return routes to gateways that are in no address's network."""
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
    """Return the source of an IPv4 route, so that it vanishes with the address:
    the address in the gateway's network, or a /32.
    """
    if via is None or via.version == 6:
        return None
    found = [one for one in config.addresses if one.version == 4]
    found = [one for one in found if via in one.network or one.network.prefixlen == 32]
    found.sort(key=lambda one: via not in one.network)
    return found[0].ip if found else None


def wanted_mtu(config: Interface, lease: Lease | None) -> int | None:
    """Return the MTU that the lease gives, bytes; None: it gives none. Pure.

    A server may only make it smaller, since the link may not be capable of more
    (see osbase.net.mtu), and is ignored where it is set in the configuration
    (which osbase.net.stack applies).
    """
    return None if config.mtu is not None or lease is None else lease.mtu


def wanted_names(
    config: Interface, lease: Lease | None
) -> tuple[tuple[IPAddress, ...], tuple[str, ...]]:
    """Return DNS servers and search domains, static before DHCP's. Pure."""
    dns, search = list(config.dns), list(config.search)
    if lease is not None and not (config.dhcp4 is not None and config.dhcp4.ignore_dns):
        dns += lease.dns
        search += lease.search
    return tuple(dict.fromkeys(dns)), tuple(dict.fromkeys(search))


def render_resolv_conf(dns: Iterable[IPAddress], search: Sequence[str]) -> str:
    """Return a resolv.conf(5). The C library uses three servers."""
    lines = ["# Written by the network service; changes are overwritten."]
    if search:
        lines.append(f"search {' '.join(search)}")
    lines.extend(f"nameserver {server}" for server in dns)
    return "\n".join(lines) + "\n"


def left_lease(left: Addressing, mtu: int | None, names: str, now: float) -> Lease | None:
    """Return the lease of a former run, as far as it is visible; None: there
    was none. Pure. names: the text of its resolv.conf.
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
    """Parse the result of render_resolv_conf, for what DHCP can give."""
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
