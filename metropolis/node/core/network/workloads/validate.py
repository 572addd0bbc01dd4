# SPDX-License-Identifier: Apache-2.0
"""Checks of a request, before anything is changed. Pure.

Every message names the field and the value. Values of callers are quoted as
ASCII and cut, since they may be long, and errors travel in HTTP/2 headers.
"""

from collections.abc import Collection, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

from metropolis.node import allocs
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import (
    MTU_MIN,
    MTU_MIN_IPV4,
    AttachIntent,
    IPAddress,
    IPNetwork,
    Route,
    first_hop,
)

WORKLOAD_ID_MAX = 255  # IFALIASZ less the NUL: it is the link's alias
OWNER_MAX = 255  # characters
IF_NAME_MAX = 15  # bytes; IFNAMSIZ less the NUL
PATH_MAX = 4095  # bytes; PATH_MAX less the NUL
ROUTES_MAX = 64
_SHOWN = 64

# What isspace() of the kernel (lib/ctype.c) accepts: ASCII and, since its
# table is Latin-1, the byte 0xa0, which is also part of many UTF-8 letters.
_SPACE = frozenset(b"\t\n\v\f\r \xa0")


def show(value: str | bytes) -> str:
    """Quote the value for a message: ASCII, cut when long."""
    if len(value) <= _SHOWN:
        return ascii(value)
    unit = "bytes" if isinstance(value, bytes) else "characters"
    return f"{value[:_SHOWN]!a}... ({len(value)} {unit})"


def several(texts: Iterable[str], most: int = 8) -> str:
    """Return the texts as one, no more than `most`, and how many more."""
    every = list(texts)
    more = [f"and {len(every) - most} more"] if len(every) > most else []
    return "; ".join([*every[:most], *more])


def _fail(field: str, value: str | bytes, why: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {show(value)}: {why}", field=field)


def check_workload_id(value: str) -> None:
    """Raise InvalidArgument unless it is 1 to 255 printable ASCII."""
    _check_ascii("workload_id", value, WORKLOAD_ID_MAX)


def check_owner(value: str) -> None:
    """Raise InvalidArgument unless it is 1 to 255 printable ASCII."""
    _check_ascii("owner", value, OWNER_MAX)


def _check_ascii(field: str, value: str, longest: int) -> None:
    if not value:
        raise _fail(field, value, "must not be empty")
    if len(value) > longest:
        raise _fail(field, value, f"must have at most {longest} characters")
    if not (value.isascii() and value.isprintable()):
        raise _fail(field, value, "must be printable ASCII")


def check_if_name(value: str) -> None:
    """Raise InvalidArgument for a name that the kernel would refuse.

    The rules are dev_valid_name() of net/core/dev.c, and three that are not
    there: `%` makes the kernel number the name; `all` and `default` are
    refused for the sysctl folders of these names.
    """
    raw = value.encode("utf-8", "surrogatepass")
    if not raw:
        raise _fail("if_name", value, "must not be empty")
    if len(raw) > IF_NAME_MAX:
        raise _fail("if_name", value, f"must have at most {IF_NAME_MAX} bytes, has {len(raw)}")
    if value in (".", "..", "all", "default"):
        raise _fail("if_name", value, "is reserved")
    for byte in raw:
        if byte in b"/:%\0" or byte in _SPACE:
            what = ascii(chr(byte)) if byte < 0x80 else f"the byte 0x{byte:02x}"
            raise _fail("if_name", value, f"must not contain {what}")


def check_netns_path(value: str) -> None:
    """Raise InvalidArgument for what cannot be an absolute path."""
    if not value:
        raise _fail("netns.netns_path", value, "must not be empty")
    if not value.startswith("/"):
        raise _fail("netns.netns_path", value, "must be an absolute path")
    if "\0" in value:
        raise _fail("netns.netns_path", value, "must not contain a NUL")
    if len(value.encode("utf-8", "surrogatepass")) > PATH_MAX:
        raise _fail("netns.netns_path", value, f"must have at most {PATH_MAX} bytes")


def check_mac(value: bytes) -> None:
    """Raise InvalidArgument unless it is a unicast address of 6 bytes."""
    if len(value) != 6:
        raise _fail("requested_mac", value, f"must have 6 bytes, has {len(value)}")
    if value[0] & 1 or not any(value):
        raise _fail("requested_mac", value, "must be a unicast address and not zero")


def check_ips(values: Sequence[IPAddress]) -> None:
    """Raise InvalidArgument for two of a family, or if one is no host's."""
    seen: set[int] = set()
    for ip in values:
        if ip.version in seen:
            text = f"requested_ip {ip}: a second IPv{ip.version} address"
            raise InvalidArgument(text, field="requested_ip")
        seen.add(ip.version)


def parse_ips(values: Sequence[bytes]) -> tuple[IPAddress, ...]:
    """Parse packed addresses; return them IPv4 first."""
    found: list[IPAddress] = []
    for packed in values:
        if len(packed) not in (4, 16):
            raise _fail("requested_ip", packed, f"must have 4 or 16 bytes, has {len(packed)}")
        found.append(ip_address(packed))
    check_ips(found)
    return tuple(sorted(found, key=lambda ip: not isinstance(ip, IPv4Address)))


def check_mtu(mtu: int, *, largest: int, versions: Collection[int]) -> None:
    """Raise InvalidArgument unless an interface may have the MTU. largest: the
    node's. versions: those of the interface's addresses.
    """
    if 6 in versions and mtu < MTU_MIN:
        least, why = MTU_MIN, "which IPv6 needs"
    else:
        least, why = MTU_MIN_IPV4, "which IPv4 needs"
    if mtu < least:
        raise InvalidArgument(f"mtu {mtu}: must be at least {least}, {why}", field="mtu")
    if mtu > largest:
        raise InvalidArgument(f"mtu {mtu}: must be at most {largest}, the node's", field="mtu")


def check_families(routes: Sequence[Route], versions: Collection[int]) -> None:
    """Raise InvalidArgument for a route of a family without an address."""
    for route in routes:
        if (version := route.destination.version) not in versions:
            raise _no_route(route.destination, f"the interface has no IPv{version} address")


_OWN_ROUTES: dict[int, tuple[IPNetwork, ...]] = {
    4: (
        allocs.FIRST_HOP_NETWORK,
        IPv4Network("127.0.0.0/8"),
        IPv4Network("224.0.0.0/4"),
    ),
    6: (
        IPv6Network("fe80::/10"),
        IPv6Network("::1/128"),
        # Sent as IPv4, by the routes of that.
        IPv6Network("::ffff:0:0/96"),
        IPv6Network("ff00::/8"),
    ),
}


def parse_routes(routes: Iterable[tuple[IPNetwork, IPAddress | None]]) -> tuple[Route, ...]:
    """Return requested routes, each by the first hop, without the default
    routes, which every interface has. Raise InvalidArgument for one that cannot
    be, or a destination that is there twice.
    """
    found: dict[IPNetwork, Route] = {}
    for destination, gateway in routes:
        hop = first_hop(destination.version)
        if gateway is not None and gateway.version != destination.version:
            raise _no_route(destination, f"gateway {gateway} is of the other family")
        if gateway not in (None, hop):
            raise _no_route(
                destination, f"gateway {gateway} is not reachable; only {hop}, the first hop, is"
            )
        if destination in found:
            raise _no_route(destination, "is there twice")
        for own in _OWN_ROUTES[destination.version]:
            if own.version == destination.version and own.supernet_of(destination):  # type: ignore[arg-type]
                raise _no_route(destination, f"lies in {own}, which never leaves by a gateway")
        found[destination] = Route(destination, hop)
        if len(found) > ROUTES_MAX:
            raise InvalidArgument(f"routes: at most {ROUTES_MAX} are possible", field="routes")
    return tuple([route for route in found.values() if route.destination.prefixlen])


def _no_route(destination: IPNetwork, why: str) -> InvalidArgument:
    return InvalidArgument(f"routes {destination}: {why}", field="routes")


def check_attach(intent: AttachIntent) -> None:
    """Raise InvalidArgument for the first field that is wrong."""
    check_workload_id(intent.workload_id)
    check_netns_path(intent.netns_path)
    check_if_name(intent.if_name)
    check_ips(intent.requested_ips)
    if intent.requested_mac is not None:
        check_mac(intent.requested_mac)


def check_detach(workload_id: str, netns_path: str, if_name: str) -> None:
    """Check a Detach, as check_attach; path and interface may be empty."""
    check_workload_id(workload_id)
    if netns_path:
        check_netns_path(netns_path)
    if if_name:
        check_if_name(if_name)
