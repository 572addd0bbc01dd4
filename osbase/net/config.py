# SPDX-License-Identifier: Apache-2.0
"""The static configuration of an interface, checked. Pure.

A Problems list collects everything that is wrong, each with the field's path
and the value, so that who wrote a file sees it all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)

from osbase.net.spec import net_pb2

type IPAddress = IPv4Address | IPv6Address
type IPInterface = IPv4Interface | IPv6Interface


class Problems:
    """What is wrong with a configuration: `field: what`."""

    def __init__(self) -> None:
        """Nothing, at first."""
        self.found: list[str] = []

    def add(self, field: str, what: str) -> None:
        """Add one; `field` is a path such as "network.uplink.name"."""
        self.found.append(f"{field}: {what}")


@dataclass(frozen=True)
class Dhcp4:
    """IPv4 by DHCP. host_name "": none is told."""

    host_name: str = ""


@dataclass(frozen=True)
class Interface:
    """How one interface is configured. name "": the first Ethernet device."""

    name: str = ""
    dhcp4: Dhcp4 | None = None
    addresses: tuple[IPInterface, ...] = ()
    gateways: tuple[IPAddress, ...] = ()
    dns: tuple[IPAddress, ...] = ()

    @property
    def router_advertisements(self) -> bool:
        """Whether IPv6 comes from routers: unless a gateway was given."""
        return all(gateway.version != 6 for gateway in self.gateways)


def interface(message: net_pb2.Interface, field: str, problems: Problems) -> Interface:
    """Check a message; what is wrong is added, and left out of the result."""
    name = message.name
    if name and not is_link_name(name):
        problems.add(f"{field}.name", f"{quoted(name)} cannot be the name of a link")
    dhcp4 = None
    if message.HasField("dhcp4"):
        dhcp4 = Dhcp4(_host_name(message.dhcp4.host_name, f"{field}.dhcp4.host_name", problems))
    static = f"{field}.static"
    addresses = _addresses(message.static.address, f"{static}.address", problems)
    if dhcp4 is not None:
        for address in addresses:
            if address.version == 4:
                problems.add(f"{static}.address", f'"{address}": IPv4 is configured by dhcp4')
    gateways = _gateways(message.static.gateway, addresses, f"{static}.gateway", problems)
    dns: list[IPAddress] = []
    for index, text in enumerate(message.static.dns):
        server = parse_address(text, f"{static}.dns[{index}]", problems)
        if server is not None:
            dns.append(server)
    return Interface(name, dhcp4, tuple(addresses), tuple(gateways), tuple(dict.fromkeys(dns)))


def is_link_name(name: str) -> bool:
    """Whether the kernel takes the name: 1 to 15 bytes, and no file's path."""
    return (
        0 < len(name.encode()) <= 15
        and name not in (".", "..")
        and not any(char in "/:" or char.isspace() or not char.isprintable() for char in name)
    )


def parse_address(text: str, field: str, problems: Problems) -> IPAddress | None:
    """Read a host's address of either family."""
    try:
        address = ip_address(text)
    except ValueError:
        problems.add(field, f"{quoted(text)} is not an IPv4 or IPv6 address")
        return None
    if address.is_multicast or address.is_unspecified or getattr(address, "scope_id", None):
        problems.add(field, f'"{address}" cannot be the address of a host')
        return None
    return address


def quoted(text: str) -> str:
    """Quote what somebody wrote, cut when long."""
    return ascii(text if len(text) <= 64 else f"{text[:64]}...").replace("'", '"')


def _host_name(text: str, field: str, problems: Problems) -> str:
    plain = text.replace("-", "")
    if text and not (len(text) <= 63 and plain.isascii() and plain.isalnum()):
        problems.add(field, f"{quoted(text)} cannot be a host name")
        return ""
    return text


def _addresses(texts: Iterable[str], field: str, problems: Problems) -> list[IPInterface]:
    found: list[IPInterface] = []
    for index, text in enumerate(texts):
        where = f"{field}[{index}]"
        try:
            address = ip_interface(text)
        except ValueError:
            problems.add(where, f"{quoted(text)} is not an address with a prefix length")
            continue
        if "/" not in text:
            problems.add(where, f'{quoted(text)} has no prefix length, such as "{text}/24"')
            continue
        network = address.network
        if parse_address(str(address.ip), where, problems) is None:
            continue
        short = network.prefixlen < network.max_prefixlen - 1
        if short and (
            (address.version == 4 and address.ip == network.broadcast_address)
            or address.ip == network.network_address
        ):
            problems.add(where, f'"{address}" is the network itself, not a host in it')
        elif any(address.ip == other.ip for other in found):
            problems.add(where, f'"{address}" is there twice')
        else:
            found.append(address)
    return found


def _gateways(
    texts: Iterable[str], addresses: Sequence[IPInterface], field: str, problems: Problems
) -> list[IPAddress]:
    found: list[IPAddress] = []
    for index, text in enumerate(texts):
        where = f"{field}[{index}]"
        gateway = parse_address(text, where, problems)
        if gateway is None:
            continue
        if any(gateway.version == other.version for other in found):
            problems.add(where, f'"{gateway}" is a second gateway of IPv{gateway.version}')
        elif any(gateway == address.ip for address in addresses):
            problems.add(where, f'"{gateway}" is our own address')
        elif not (gateway.version == 6 and gateway.is_link_local) and not any(
            gateway in address.network for address in addresses
        ):
            problems.add(where, f'"{gateway}" is not inside the prefix of any address')
        else:
            found.append(gateway)
    return found
