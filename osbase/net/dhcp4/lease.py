# SPDX-License-Identifier: Apache-2.0
"""What a server grants, checked. Pure.

A server is believed as far as it makes sense: an option that does not (a
router that is multicast, renewal after the end) is left out, an address or
lease time that does not makes the whole message useless.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final

from osbase.net.dhcp4.packet import Message, Option, PacketError

INFINITE: Final = 0xFFFFFFFF
_SHORTEST_S: Final = 4
# Below what IPv6 needs the kernel takes it from the link (RFC 8200, section 5).
_MTU_RANGE: Final = range(1280, 65536)


@dataclass(frozen=True)
class Lease:
    """A lease. Times in seconds after `start`, which is the machine's clock at
    the sending of the request that was granted.

    routes: destinations and gateways, the default route among them; a gateway
    of None is on the link itself. length_s None: for ever.
    """

    address: IPv4Interface
    server: IPv4Address
    routes: tuple[tuple[IPv4Network, IPv4Address | None], ...]
    dns: tuple[IPv4Address, ...]
    domain: str
    mtu: int | None
    start: float
    length_s: int | None
    renew_s: float
    rebind_s: float

    @property
    def end(self) -> float | None:
        """When it ends, by the machine's clock."""
        return None if self.length_s is None else self.start + self.length_s


def server_of(message: Message) -> IPv4Address:
    """Return the server identifier. Raises PacketError."""
    raw = message.options.get(Option.SERVER_ID, b"")
    if len(raw) != 4 or not _is_host(IPv4Address(raw)):
        raise PacketError(f"server identifier {raw.hex() or 'missing'}")
    return IPv4Address(raw)


def parse(message: Message, start: float) -> Lease:
    """Return what an OFFER or ACK gives. Raises PacketError."""
    server = server_of(message)
    address = message.yours
    if not _is_host(address):
        raise PacketError(f"address {address} cannot be a host's")
    interface = IPv4Interface((address, _prefix_length(message, address)))
    if address in _of_nobody(interface):
        raise PacketError(f"address {interface} is its network's own")
    routes = _usable(_routes(message), interface)
    length = _u32(message, Option.LEASE_TIME)
    if length is None or length < _SHORTEST_S:
        raise PacketError(f"lease time of {length} s")
    end = float("inf") if length == INFINITE else float(length)
    renew, rebind = _u32(message, Option.RENEWAL_TIME), _u32(message, Option.REBINDING_TIME)
    if end == float("inf"):
        times = (end, end)
    elif renew is not None and rebind is not None and 1 <= renew < rebind < length:
        times = (float(renew), float(rebind))
    else:
        times = (end * 0.5, end * 0.875)
    return Lease(
        address=interface,
        server=server,
        routes=routes,
        dns=_addresses(message, Option.DNS),
        domain=_domain(message),
        mtu=_mtu(message),
        start=start,
        length_s=None if length == INFINITE else length,
        renew_s=times[0],
        rebind_s=times[1],
    )


def _usable(
    routes: tuple[tuple[IPv4Network, IPv4Address | None], ...], interface: IPv4Interface
) -> tuple[tuple[IPv4Network, IPv4Address | None], ...]:
    """Return the routes without those that the kernel refuses, and with them
    all that is configured at once; what is on the link first. A gateway that
    would be nowhere is on the link itself, as in networks of /32.
    """
    unfit = {*_of_nobody(interface), interface.ip}
    on_link = [network for network, gateway in routes if gateway is None]
    through = [(network, gateway) for network, gateway in routes if gateway not in {None, *unfit}]
    for _, gateway in through:
        assert gateway is not None, "left out before"
        if not any(gateway in network for network in (interface.network, *on_link)):
            on_link.append(IPv4Network(gateway))
    return (*((network, None) for network in on_link), *through)


def _of_nobody(interface: IPv4Interface) -> tuple[IPv4Address, ...]:
    """Return the addresses of a network and of all in it; a /31 has none (RFC
    3021).
    """
    network = interface.network
    return (network[0], network[-1]) if network.prefixlen < 31 else ()


def _is_host(address: IPv4Address) -> bool:
    first = address.packed[0]
    return 0 < first < 224 and first != 127


def _u32(message: Message, option: Option) -> int | None:
    raw = message.options.get(option, b"")
    return int.from_bytes(raw) if len(raw) == 4 else None


def _prefix_length(message: Message, address: IPv4Address) -> int:
    raw = message.options.get(Option.SUBNET_MASK, b"")
    if not raw:
        raise PacketError(f"no subnet mask with {address}")
    bits = int.from_bytes(raw)
    inverse = bits ^ 0xFFFFFFFF
    if len(raw) != 4 or bits == 0 or inverse & (inverse + 1):
        raise PacketError(f"subnet mask {raw.hex()}")
    return bits.bit_count()


def _addresses(message: Message, option: Option) -> tuple[IPv4Address, ...]:
    raw = message.options.get(option, b"")
    if len(raw) % 4:
        return ()
    found = (IPv4Address(raw[start : start + 4]) for start in range(0, len(raw), 4))
    return tuple(dict.fromkeys(address for address in found if _is_host(address)))


def _routes(message: Message) -> tuple[tuple[IPv4Network, IPv4Address | None], ...]:
    """Classless routes; where they are given, the router option does not count
    (RFC 3442).
    """
    classless = message.options.get(Option.CLASSLESS_ROUTES)
    if classless is not None:
        try:
            return _classless(classless)
        except PacketError:
            pass
    everywhere = IPv4Network((0, 0))
    return tuple((everywhere, router) for router in _addresses(message, Option.ROUTER)[:1])


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


def _domain(message: Message) -> str:
    """Return the domain name, or "" unless it is plain letters of a name: it
    will stand in a file.
    """
    raw = message.options.get(Option.DOMAIN_NAME, b"").rstrip(b"\0")
    text = raw.decode("ascii", "replace")
    plain = text.replace("-", "").replace(".", "").replace("_", "")
    return text if plain.isascii() and plain.isalnum() and len(text) <= 253 else ""
