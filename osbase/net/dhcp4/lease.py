# SPDX-License-Identifier: Apache-2.0
"""The lease in a server's message, checked. Pure.

An invalid option (a multicast router, a renewal after the end) counts as
missing. A missing option gets the value that other clients use, since networks
are built with these:

    subnet mask   by the address's class (systemd-networkd, dhcpcd, and ifconfig
                  in the scripts of dhclient and udhcpc). A /32 would be the
                  more careful guess; without a router it reaches no host
    lease time    one hour (udhcpc); a time too short to renew is raised to the
                  shortest that we can (udhcpc, dhcpcd: at 16 and 20 s)
    server        the one that was asked (an acknowledgement), or the sender

A message is refused only when its address cannot be a host's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final

from osbase.net.dhcp4.packet import Message, Option, PacketError

INFINITE: Final = 0xFFFFFFFF
_SHORTEST_S: Final = 4
_DEFAULT_S: Final = 3600
_CLASS_C: Final = 24
_SEARCH_MAX: Final = 6  # as in osbase.net.config
# With a smaller MTU the kernel disables IPv6 on the link (RFC 8200, section 5).
_MTU_RANGE: Final = range(1280, 65536)


@dataclass(frozen=True)
class Lease:
    """A lease. Times are seconds after `start`, the time of `clock.now` when
    the granted request was sent.

    routes: destinations and gateways, the default route included; gateway
    None: the destination is on the link. length_s None: for ever.
    """

    address: IPv4Interface
    server: IPv4Address
    routes: tuple[tuple[IPv4Network, IPv4Address | None], ...]
    dns: tuple[IPv4Address, ...]
    search: tuple[str, ...]
    mtu: int | None
    start: float
    length_s: int | None
    renew_s: float
    rebind_s: float
    ntp: tuple[IPv4Address, ...] = ()

    @property
    def end(self) -> float | None:
        """Return when the lease ends, by the machine's clock."""
        return None if self.length_s is None else self.start + self.length_s


def server_of(message: Message, otherwise: IPv4Address | None = None) -> IPv4Address:
    """Return the server identifier, or `otherwise` if it is missing or cannot
    be a host's. Raises PacketError when both are missing.
    """
    raw = message.options.get(Option.SERVER_ID, b"")
    if len(raw) == 4 and _is_host(IPv4Address(raw)):
        return IPv4Address(raw)
    if otherwise is None or not _is_host(otherwise):
        raise PacketError(f"server identifier {raw.hex() or 'missing'}")
    return otherwise


def parse(message: Message, start: float, server: IPv4Address | None = None) -> Lease:
    """Return the lease in an OFFER or ACK. server: used when the message has no
    server identifier. Raises PacketError.
    """
    server = server_of(message, server)
    address = message.yours
    if not _is_host(address):
        raise PacketError(f"address {address} cannot be a host's")
    interface = IPv4Interface((address, _prefix_length(message, address)))
    if address in _reserved(interface):
        raise PacketError(f"address {interface} is its network's own")
    length = _u32(message, Option.LEASE_TIME)
    length = _DEFAULT_S if length is None else max(length, _SHORTEST_S)
    end = float("inf") if length == INFINITE else float(length)
    renew, rebind = _times(message, end)
    return Lease(
        address=interface,
        server=server,
        routes=_usable(_routes(message), interface),
        dns=_addresses(message, Option.DNS),
        search=_domains(message),
        mtu=_mtu(message),
        start=start,
        length_s=None if length == INFINITE else length,
        renew_s=renew,
        rebind_s=rebind,
        ntp=_addresses(message, Option.NTP),
    )


def _times(message: Message, end: float) -> tuple[float, float]:
    """Return when to renew and to rebind. A time of the server that is out of
    order is replaced by the default (RFC 2131, section 4.4.5).
    """
    if end == float("inf"):
        return end, end
    renew, rebind = _u32(message, Option.RENEWAL_TIME), _u32(message, Option.REBINDING_TIME)
    late = float(rebind) if rebind is not None and 1 < rebind < end else end * 0.875
    if renew is not None and 1 <= renew < late:
        return float(renew), late
    return (end * 0.5, late) if end * 0.5 < late else (end * 0.5, end * 0.875)


def _usable(
    routes: tuple[tuple[IPv4Network, IPv4Address | None], ...], interface: IPv4Interface
) -> tuple[tuple[IPv4Network, IPv4Address | None], ...]:
    """Return the routes that the kernel accepts, those on the link first; for
    each destination the server's first usable one. A gateway outside the
    network gets a route on the link, as in networks of /32, also if it has a
    host route. Refused routes would fail the whole configuration.
    """
    unfit = {*_reserved(interface), interface.ip}
    on_link = [network for network, gateway in routes if gateway is None]
    through: dict[IPv4Network, IPv4Address] = {}
    for network, gateway in routes:
        if gateway is not None and gateway not in unfit and network not in on_link:
            through.setdefault(network, gateway)
    near = (interface.network, *on_link)
    alone = {
        _32(gateway)
        for gateway in through.values()
        if not any(gateway in network for network in near)
    }
    # A host route to a gateway through itself would need that gateway.
    through = {
        network: gateway
        for network, gateway in through.items()
        if network not in alone and network != _32(gateway)
    }
    on_link += [_32(gateway) for gateway in through.values() if _32(gateway) in alone]
    return (*((network, None) for network in dict.fromkeys(on_link)), *through.items())


def _32(address: IPv4Address) -> IPv4Network:
    return IPv4Network(address)


def _reserved(interface: IPv4Interface) -> tuple[IPv4Address, ...]:
    """Return the network and broadcast addresses; a /31 has none (RFC 3021)."""
    network = interface.network
    return (network[0], network[-1]) if network.prefixlen < 31 else ()


def _is_host(address: IPv4Address) -> bool:
    first = address.packed[0]
    return 0 < first < 224 and first != 127


def _u32(message: Message, option: Option) -> int | None:
    raw = message.options.get(option, b"")
    return int.from_bytes(raw) if len(raw) == 4 else None


def _prefix_length(message: Message, address: IPv4Address) -> int:
    """Return the length of the subnet mask. A mask with holes ends at its last
    bit: the narrowest network it can mean. A mask is ignored if the network
    would begin with 0, since the kernel makes no route to that.
    """
    raw = message.options.get(Option.SUBNET_MASK, b"")
    bits = int.from_bytes(raw)
    if len(raw) == 4 and bits:
        length = 32 - ((bits & -bits).bit_length() - 1)
        if IPv4Interface((address, length)).network[0].packed[0]:
            return length
    length = _class_length(address)
    # This length is a guess, not from the server.
    return 32 if address in _reserved(IPv4Interface((address, length))) else length


def _class_length(address: IPv4Address) -> int:
    """Return the prefix length of the address's class: A, B or C."""
    first = address.packed[0]
    return 8 if first < 128 else 16 if first < 192 else _CLASS_C


def _addresses(message: Message, option: Option) -> tuple[IPv4Address, ...]:
    """Return the addresses that can be hosts, each once, without a cut-off
    last one.
    """
    raw = message.options.get(option, b"")
    found = (IPv4Address(raw[start : start + 4]) for start in range(0, len(raw) - 3, 4))
    return tuple(dict.fromkeys(address for address in found if _is_host(address)))


type _Routes = tuple[tuple[IPv4Network, IPv4Address | None], ...]


def _routes(message: Message) -> _Routes:
    """Return the routes. Classless ones replace the router and static route
    options (RFC 3442). Microsoft's servers use 249 for 121.
    """
    for option in (Option.CLASSLESS_ROUTES, Option.CLASSLESS_ROUTES_MICROSOFT):
        try:
            classless = _classless(message.options.get(option, b""))
        except PacketError:
            continue
        if classless:
            return classless
    everywhere = IPv4Network((0, 0))
    routers = _addresses(message, Option.ROUTER)
    return (*_static(message), *((everywhere, router) for router in routers))


def _static(message: Message) -> _Routes:
    """Return routes by class of the destination (RFC 2132, section 5.8)."""
    raw = message.options.get(Option.STATIC_ROUTES, b"")
    routes = []
    for start in range(0, len(raw) - 7, 8):
        destination, gateway = struct.unpack_from("!4s4s", raw, start)
        address = IPv4Address(destination)
        if _is_host(address) and _is_host(IPv4Address(gateway)):
            length = _class_length(address)
            network = IPv4Network((address, length), strict=False)
            if address != network.network_address:
                network = IPv4Network(address)
            routes.append((network, IPv4Address(gateway)))
    return tuple(routes)


def _classless(raw: bytes) -> tuple[tuple[IPv4Network, IPv4Address | None], ...]:
    routes: dict[IPv4Network, IPv4Address | None] = {}
    offset = 0
    while offset < len(raw):
        width = raw[offset]
        octets = (width + 7) // 8
        end = offset + 1 + octets + 4
        if width > 32 or end > len(raw):
            raise PacketError("classless routes are cut off")
        destination = raw[offset + 1 : offset + 1 + octets].ljust(4, b"\0")
        (gateway_bits,) = struct.unpack_from("!I", raw, end - 4)
        gateway = IPv4Address(gateway_bits)
        offset = end
        network = IPv4Network((destination, width), strict=False)
        if gateway_bits == 0:
            routes.setdefault(network, None)
        elif _is_host(gateway):
            routes.setdefault(network, gateway)
    return tuple(routes.items())


def _mtu(message: Message) -> int | None:
    raw = message.options.get(Option.INTERFACE_MTU, b"")
    value = int.from_bytes(raw) if len(raw) == 2 else 0
    return value if value in _MTU_RANGE else None


def _domains(message: Message) -> tuple[str, ...]:
    """Return the domains to search: the list (RFC 3397), or else the domain
    name option, in which some servers put several. Only plain names are taken,
    since they are written to a file.
    """
    try:
        listed = _names(message.options.get(Option.DOMAIN_SEARCH, b""))
    except PacketError:
        listed = []
    named = message.options.get(Option.DOMAIN_NAME, b"").rstrip(b"\0").decode("ascii", "replace")
    found = [name for name in listed if _is_domain(name)]
    found = found or [name for name in named.split(" ") if name]
    if not all(map(_is_domain, found)):
        return ()
    return tuple(dict.fromkeys(found))[:_SEARCH_MAX]


def _is_domain(text: str) -> bool:
    plain = text.replace("-", "").replace(".", "").replace("_", "")
    return plain.isascii() and plain.isalnum() and len(text) <= 253


def _names(raw: bytes) -> list[str]:
    """Parse names, which may point back into the option (RFC 1035, 4.1.4).
    Raises PacketError.
    """
    names = []
    offset = 0
    while offset < len(raw):
        labels: list[str] = []
        at, jumped = offset, False
        while True:
            if at >= len(raw):
                raise PacketError("domain search is cut off")
            length = raw[at]
            if length & 0xC0 == 0xC0:
                if at + 2 > len(raw):
                    raise PacketError("domain search is cut off")
                target = (length & 0x3F) << 8 | raw[at + 1]
                if target >= at:  # backwards only, so there is an end
                    raise PacketError("domain search points forward")
                if not jumped:
                    offset, jumped = at + 2, True
                at = target
                continue
            at += 1
            if not length:
                break
            if length > 63 or at + length > len(raw):
                raise PacketError("domain search is cut off")
            labels.append(raw[at : at + length].decode("ascii", "replace"))
            at += length
        if not jumped:
            offset = at
        names.append(".".join(labels))
    return names
