# SPDX-License-Identifier: Apache-2.0
"""What setup() returns, and its JSON form.

The JSON is go-cni's Result as Go's encoding/json writes it: containerd keeps it
in its store, so the names are an on-disk format. Absent lists are null there,
absent addresses empty strings. `from_json` accepts what `to_json` writes, and
treats a missing key as an absent value.
"""

import json
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

from metropolis.node.containerd.cniproxy.errors import InvalidResultError

type Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class IPConfig:
    """An address of an interface, and its first hop if it has one."""

    ip: Address
    gateway: Address | None = None


@dataclass(frozen=True)
class Config:
    """An interface; `sandbox` is empty for one on the host."""

    ip_configs: tuple[IPConfig, ...] = ()
    mac: str = ""
    sandbox: str = ""
    pci_id: str = ""
    socket_path: str = ""


@dataclass(frozen=True)
class DNS:
    """Resolver settings of one network."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Route:
    """A route in the namespace; scope 253 (link) has no next hop."""

    dst: IPv4Network | IPv6Network
    gw: Address | None = None
    scope: int | None = None


@dataclass(frozen=True)
class Result:
    """Interfaces by name, the host's end among them; DNS by network."""

    interfaces: dict[str, Config] = field(default_factory=dict)
    dns: tuple[DNS, ...] = ()
    routes: tuple[Route, ...] = ()

    def to_json(self) -> str:
        """Write it as go-cni's Result."""
        return json.dumps(
            {
                "Interfaces": {name: _config_to(one) for name, one in self.interfaces.items()},
                "DNS": [_dns_to(one) for one in self.dns] or None,
                "Routes": [_route_to(one) for one in self.routes] or None,
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Result:
        """Read go-cni's Result; raise InvalidResultError for anything else."""
        try:
            value = json.loads(text)
            return cls(
                interfaces={k: _config_from(v) for k, v in (value["Interfaces"] or {}).items()},
                dns=tuple(_dns_from(one) for one in value.get("DNS") or ()),
                routes=tuple(_route_from(one) for one in value.get("Routes") or ()),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidResultError(f"result {text!r:.200}: {error!r:.200}") from error


def _config_to(config: Config) -> dict[str, Any]:
    ips = [
        {"IP": str(one.ip), "Gateway": "" if one.gateway is None else str(one.gateway)}
        for one in config.ip_configs
    ]
    return {
        "IPConfigs": ips or None,
        "Mac": config.mac,
        "Sandbox": config.sandbox,
        "PciID": config.pci_id,
        "SocketPath": config.socket_path,
    }


def _config_from(value: dict[str, Any]) -> Config:
    return Config(
        tuple(
            IPConfig(ip_address(_text(one["IP"])), _address(one.get("Gateway")))
            for one in value.get("IPConfigs") or ()
        ),
        _text(value.get("Mac", "")),
        _text(value.get("Sandbox", "")),
        _text(value.get("PciID", "")),
        _text(value.get("SocketPath", "")),
    )


def _dns_to(dns: DNS) -> dict[str, Any]:
    value = {
        "nameservers": list(dns.nameservers),
        "domain": dns.domain,
        "search": list(dns.search),
        "options": list(dns.options),
    }
    return {key: one for key, one in value.items() if one}


def _dns_from(value: dict[str, Any]) -> DNS:
    nameservers, search, options = (
        tuple(_text(one) for one in value.get(key) or ())
        for key in ("nameservers", "search", "options")
    )
    return DNS(nameservers, _text(value.get("domain", "")), search, options)


def _route_to(route: Route) -> dict[str, Any]:
    value = {"dst": str(route.dst), "gw": route.gw and str(route.gw), "scope": route.scope}
    return {key: one for key, one in value.items() if one is not None}


def _route_from(value: dict[str, Any]) -> Route:
    scope = value.get("scope")
    if not (scope is None or isinstance(scope, int)):
        raise TypeError(f"scope is {scope!r}")
    return Route(ip_network(_text(value["dst"])), _address(value.get("gw")), scope)


def _address(value: object) -> Address | None:
    return ip_address(_text(value)) if value else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no string")
    return value
