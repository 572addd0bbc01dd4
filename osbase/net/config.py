# SPDX-License-Identifier: Apache-2.0
"""The static configuration of an interface, checked. Pure.

A Problems list collects all problems, each with the field's path and the value,
so that the author of a file sees all at once.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Final

from osbase.ip import IPAddress, IPInterface, IPNetwork
from osbase.net.spec import net_pb2

MTU_MIN: Final = 1280  # IPv6's least (RFC 8200, section 5)
MTU_MAX: Final = 65535
_MEMBERS_MAX: Final = 16
_ADDRESSES_MAX: Final = 256  # bounds the time, too: gateways are compared with all
_MIIMON_MAX_MS: Final = 10_000
_VLAN_IDS: Final = range(1, 4095)  # 0 and 4095 are reserved (IEEE 802.1Q)
_SEARCH_MAX: Final = 6  # of resolv.conf(5) before glibc 2.26


class Problems:
    """Problems of a configuration, each as `field: what`.

    partial: fields may be missing that the author has written, but wrongly.
    """

    def __init__(self, *, partial: bool = False) -> None:
        """Begin without problems."""
        self.found: list[str] = []
        self._partial = partial

    def add(self, field: str, what: str, *, by_others: bool = False) -> None:
        """Add a problem; `field` is a path such as "network.uplink.name".

        by_others: it is a problem only because of what other fields have, or
        lack. Where those may be wrong themselves, it is none.
        """
        if not (by_others and self._partial):
            self.found.append(f"{field}: {what}")


class BondMode(enum.Enum):
    """How a bond uses its members; value: the kernel's name."""

    ACTIVE_BACKUP = "active-backup"
    LACP = "802.3ad"


class LacpRate(enum.Enum):
    """How often the partner sends: every 30 s, or every second."""

    SLOW = "slow"
    FAST = "fast"


class TransmitHash(enum.Enum):
    """The fields of a packet that select the member which sends it."""

    LAYER2 = "layer2"
    LAYER23 = "layer2+3"
    LAYER34 = "layer3+4"


@dataclass(frozen=True)
class Bond:
    """Several ports as one link. miimon_ms: interval of carrier checks.
    lacp_rate, min_links, transmit_hash: for LACP only. primary, "" if not set:
    for active-backup only.
    """

    mode: BondMode
    members: tuple[str, ...]
    name: str = "bond0"
    miimon_ms: int = 100
    lacp_rate: LacpRate = LacpRate.SLOW
    min_links: int = 1
    primary: str = ""
    transmit_hash: TransmitHash = TransmitHash.LAYER34


@dataclass(frozen=True)
class Vlan:
    """A tagged network on a link."""

    id: int
    name: str


@dataclass(frozen=True)
class Dhcp4:
    """IPv4 by DHCP. host_name "": do not send it. ignore_dns: the server's."""

    host_name: str = ""
    ignore_dns: bool = False


@dataclass(frozen=True)
class StaticRoute:
    """A static route. gateway None: the destination is on the link."""

    destination: IPNetwork
    gateway: IPAddress | None


@dataclass(frozen=True)
class Interface:
    """How one interface is configured. name: an existing link; "": the one with
    the hardware address (6 bytes), else any Ethernet device, or there is a
    bond. mtu None: leave it.
    """

    name: str = ""
    dhcp4: Dhcp4 | None = None
    addresses: tuple[IPInterface, ...] = ()
    gateways: tuple[IPAddress, ...] = ()
    dns: tuple[IPAddress, ...] = ()
    search: tuple[str, ...] = ()
    routes: tuple[StaticRoute, ...] = ()
    bond: Bond | None = None
    vlan: Vlan | None = None
    mtu: int | None = None
    hardware_address: bytes = b""

    @property
    def lower_name(self) -> str:
        """Return the name of a VLAN's lower link, present or not; "": see
        `name`.
        """
        return self.bond.name if self.bond is not None else self.name

    @property
    def top_name(self) -> str:
        """Return the name of the link with the addresses; "": see `name`."""
        return self.vlan.name if self.vlan is not None else self.lower_name

    @property
    def described(self) -> str:
        """Return a description of the configured link, for messages."""
        if self.hardware_address and self.vlan is None:
            return f"a link with hardware address {self.hardware_address.hex(':')}"
        return self.top_name or "an Ethernet device"

    @property
    def router_advertisements(self) -> bool:
        """Return whether routers configure IPv6: unless there is a gateway."""
        return all(gateway.version != 6 for gateway in self.gateways)


def interface(message: net_pb2.Interface, field: str, problems: Problems) -> Interface:
    """Check a message. Wrong fields are added to the problems, and left out of
    the result.
    """
    name = _link_name(message.name, f"{field}.name", problems)
    hardware_address = _mac(message.hardware_address, f"{field}.hardware_address", problems)
    if hardware_address and (name or message.HasField("bond")):
        other = f'name "{name}"' if name else "bond"
        problems.add(
            f"{field}.hardware_address", f'"{message.hardware_address}" contradicts {other}'
        )
        hardware_address = b""
    bond = vlan = None
    if message.HasField("bond"):
        bond = _bond(message.bond, f"{field}.bond", problems)
        if name:
            problems.add(f"{field}.name", f'"{name}" contradicts bond, which has its own name')
            name = ""
    if message.HasField("vlan"):
        vlan = _vlan(message.vlan, f"{field}.vlan", problems)
        others = {name, bond.name, *bond.members} if bond is not None else {name}
        if vlan is not None and vlan.name in others:
            problems.add(f"{field}.vlan.name", f'"{vlan.name}" is the name of a link below it')
    mtu = message.mtu
    if mtu and not MTU_MIN <= mtu <= MTU_MAX:
        problems.add(f"{field}.mtu", f"{mtu} is not between {MTU_MIN} and {MTU_MAX}")
        mtu = 0
    dhcp4 = None
    if message.HasField("dhcp4"):
        host_name = _host_name(message.dhcp4.host_name, f"{field}.dhcp4.host_name", problems)
        dhcp4 = Dhcp4(host_name, message.dhcp4.ignore_dns)
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
    return Interface(
        name,
        dhcp4,
        tuple(addresses),
        tuple(gateways),
        tuple(dict.fromkeys(dns)),
        _search(message.static.search, f"{static}.search", problems),
        _routes(message.static.route, addresses, f"{static}.route", problems),
        bond,
        vlan,
        mtu or None,
        hardware_address,
    )


def is_link_name(name: str) -> bool:
    """Return whether the kernel takes the name: 1 to 15 bytes, not a path."""
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
    """Quote a value for a message, and cut a long one."""
    return ascii(text if len(text) <= 64 else f"{text[:64]}...").replace("'", '"')


def is_domain(text: str) -> bool:
    """Return whether resolv.conf(5) may contain the text as it is: letters,
    digits, "-", "_" and dots, up to 253.
    """
    plain = text.replace("-", "").replace(".", "").replace("_", "")
    return plain.isascii() and plain.isalnum() and len(text) <= 253


def _link_name(text: str, field: str, problems: Problems) -> str:
    if text and not is_link_name(text):
        problems.add(field, f"{quoted(text)} cannot be the name of a link")
        return ""
    return text


_MAC: Final = re.compile("[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")


def _mac(text: str, field: str, problems: Problems) -> bytes:
    """Parse a host's Ethernet address; b"" for "" and for invalid text."""
    if not text:
        return b""
    if not _MAC.fullmatch(text):
        problems.add(field, f'{quoted(text)} is not like "52:54:00:12:34:56"')
        return b""
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        problems.add(field, f'"{text}" cannot be the address of a host')
        return b""
    return mac


def _choice[T: enum.Enum](
    text: str, kind: type[T], default: T | None, field: str, problems: Problems
) -> T | None:
    """Return the value with that name; for "" the default, if there is one."""
    known = ", ".join(f'"{one.value}"' for one in kind)
    if not text:
        if default is None:
            problems.add(field, f"is missing; supported are {known}")
        return default
    try:
        return kind(text)
    except ValueError:
        problems.add(field, f"{quoted(text)} is not supported; supported are {known}")
        return None


def _bond(message: net_pb2.Bond, field: str, problems: Problems) -> Bond | None:
    """Return the bond; None when its message is ambiguous."""
    before = len(problems.found)
    name = _link_name(message.name, f"{field}.name", problems) or "bond0"
    mode = _choice(message.mode, BondMode, None, f"{field}.mode", problems)
    rate = _choice(message.lacp_rate, LacpRate, LacpRate.SLOW, f"{field}.lacp_rate", problems)
    transmit_hash = _choice(
        message.transmit_hash,
        TransmitHash,
        TransmitHash.LAYER34,
        f"{field}.transmit_hash",
        problems,
    )
    members = list(message.member)
    for index, member in enumerate(members[: _MEMBERS_MAX + 1]):
        where = f"{field}.member[{index}]"
        if not is_link_name(member):
            problems.add(where, f"{quoted(member)} cannot be the name of a link")
        elif member == name:
            problems.add(where, f'"{member}" is the bond itself')
        elif member in members[:index]:
            problems.add(where, f'"{member}" is there twice')
    if not 1 <= len(members) <= _MEMBERS_MAX:
        problems.add(
            f"{field}.member",
            f"{len(members)} members; 1 to {_MEMBERS_MAX} are needed",
            by_others=not members,
        )
    if message.miimon_ms > _MIIMON_MAX_MS:
        problems.add(f"{field}.miimon_ms", f"{message.miimon_ms} is over {_MIIMON_MAX_MS}")
    if message.min_links > len(members):
        problems.add(
            f"{field}.min_links",
            f"{message.min_links} is over the {len(members)} members",
            by_others=True,
        )
    if message.primary and message.primary not in members:
        problems.add(
            f"{field}.primary", f"{quoted(message.primary)} is not a member", by_others=True
        )
    foreign = {
        BondMode.ACTIVE_BACKUP: ("lacp_rate", "min_links", "transmit_hash"),
        BondMode.LACP: ("primary",),
    }
    for other in foreign[mode] if mode is not None else ():
        value = getattr(message, other)
        if value:
            shown = quoted(value) if isinstance(value, str) else value
            problems.add(f"{field}.{other}", f'{shown} means nothing in mode "{message.mode}"')
    if mode is None or rate is None or transmit_hash is None or len(problems.found) > before:
        return None
    return Bond(
        mode,
        tuple(members),
        name,
        message.miimon_ms or 100,
        rate,
        message.min_links or 1,
        message.primary,
        transmit_hash,
    )


def _vlan(message: net_pb2.Vlan, field: str, problems: Problems) -> Vlan | None:
    name = _link_name(message.name, f"{field}.name", problems)
    if message.id not in _VLAN_IDS:
        problems.add(f"{field}.id", f"{message.id} is not between 1 and 4094")
        return None
    return Vlan(message.id, name or f"vlan{message.id}")


def _host_name(text: str, field: str, problems: Problems) -> str:
    plain = text.replace("-", "")
    if text and not (len(text) <= 63 and plain.isascii() and plain.isalnum()):
        problems.add(field, f"{quoted(text)} cannot be a host name")
        return ""
    return text


def _search(texts: Sequence[str], field: str, problems: Problems) -> tuple[str, ...]:
    for index, text in enumerate(texts):
        if not is_domain(text):
            problems.add(f"{field}[{index}]", f"{quoted(text)} cannot be a domain")
    if len(texts) > _SEARCH_MAX:
        problems.add(field, f"{len(texts)} domains; resolvers take {_SEARCH_MAX}")
    return tuple(dict.fromkeys(text for text in texts if is_domain(text)))


def _addresses(texts: Sequence[str], field: str, problems: Problems) -> list[IPInterface]:
    found: list[IPInterface] = []
    if len(texts) > _ADDRESSES_MAX:
        problems.add(field, f"{len(texts)} addresses; at most {_ADDRESSES_MAX}")
    for index, text in enumerate(texts[:_ADDRESSES_MAX]):
        where = f"{field}[{index}]"
        try:
            address = None if "%" in text else ip_interface(text)  # a scoped address is invalid
        except ValueError:
            address = None
        if address is None:
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
    texts: Sequence[str], addresses: Sequence[IPInterface], field: str, problems: Problems
) -> list[IPAddress]:
    found: list[IPAddress] = []
    if len(texts) > _ADDRESSES_MAX:
        problems.add(field, f"{len(texts)} gateways; at most one of each family")
    for index, text in enumerate(texts[:_ADDRESSES_MAX]):
        where = f"{field}[{index}]"
        gateway = _gateway(text, addresses, where, problems)
        if gateway is None:
            continue
        if any(gateway.version == other.version for other in found):
            problems.add(where, f'"{gateway}" is a second gateway of IPv{gateway.version}')
        else:
            found.append(gateway)
    return found


def _gateway(
    text: str, addresses: Sequence[IPInterface], field: str, problems: Problems
) -> IPAddress | None:
    """Parse the address of a neighbour."""
    gateway = parse_address(text, field, problems)
    if gateway is None:
        return None
    if any(gateway == address.ip for address in addresses):
        problems.add(field, f'"{gateway}" is our own address')
    elif not (gateway.version == 6 and gateway.is_link_local) and not any(
        gateway in address.network or _is_alone(address, gateway.version) for address in addresses
    ):
        problems.add(field, f'"{gateway}" is not inside the prefix of any address', by_others=True)
    else:
        return gateway
    return None


def _is_alone(address: IPInterface, version: int) -> bool:
    """Return whether it has no neighbours, so no gateway is in its network."""
    return address.version == version and address.network.prefixlen == address.max_prefixlen


def _routes(
    messages: Iterable[net_pb2.Route],
    addresses: Sequence[IPInterface],
    field: str,
    problems: Problems,
) -> tuple[StaticRoute, ...]:
    found: dict[IPNetwork, StaticRoute] = {}
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        text = message.destination
        try:
            destination = ip_network(text, strict=False)
            has_host_bits = int(ip_interface(text).ip) != int(destination.network_address)
        except ValueError:
            problems.add(f"{where}.destination", f"{quoted(text)} is not a prefix")
            continue
        if has_host_bits:
            problems.add(f"{where}.destination", f"{quoted(text)} has host bits set")
            continue
        if "/" not in text or "%" in text:
            problems.add(f"{where}.destination", f"{quoted(text)} is not a prefix")
            continue
        if destination.prefixlen == 0:
            problems.add(f"{where}.destination", f'"{destination}": use static.gateway')
            continue
        if destination.is_multicast or destination.is_loopback or destination.is_link_local:
            problems.add(
                f"{where}.destination", f'"{destination}" is link-local, loopback or multicast'
            )
            continue
        if destination in found:
            problems.add(f"{where}.destination", f'"{destination}" is there twice')
            continue
        gateway = None
        if message.gateway:
            gateway = _gateway(message.gateway, addresses, f"{where}.gateway", problems)
            if gateway is None:
                continue
            if gateway.version != destination.version:
                problems.add(f"{where}.gateway", f'"{gateway}" is not of IPv{destination.version}')
                continue
        found[destination] = StaticRoute(destination, gateway)
    return tuple(found.values())
