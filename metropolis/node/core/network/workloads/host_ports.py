# SPDX-License-Identifier: Apache-2.0
"""Host ports as values, and as the text of a part. Pure.

    Mapping   a port of a request
    part_of   mappings -> the part of an AttachIntent; of_parts: back
    text_of   mappings -> its text, in canonical form
    parse     the text -> mappings
    faults    mappings -> all that is wrong with them

The text has one entry for each run of ports, in order, with commas between:

    PROTOCOL FIRST[-LAST]=PORT[@ADDRESS]     t80=8080
                                             u5000-5099=5000@192.0.2.7

PROTOCOL: t, u or s for TCP, UDP and SCTP. FIRST and LAST: the ports of the
node. PORT: the workload's for FIRST; further ones ascend with it. ADDRESS: the
node's address that has the ports. Without it: all addresses of the families
that the workload has. 0.0.0.0 and ::, all of one family.

Not possible: ::1, since the kernel never forwards it (RFC 4291, 2.5.3), and
link-local addresses, which every link may have.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from metropolis.node import allocs
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import IPAddress, PartText
from metropolis.node.core.network.workloads.parts import TEXT_MAX
from metropolis.node.core.network.workloads.validate import several, show

LETTER: Final = "h"
FIELD: Final = "port_mapping"
"""Letter and name of the part."""

PORTS_MAX: Final = 1024
"""Ports of an attachment. Each is an element for each family."""

PROTOCOLS: Final = ("tcp", "udp", "sctp")

_LETTERS: Final = {name[0]: name for name in PROTOCOLS}
_RUN: Final = re.compile(
    r"([tus])([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?=([1-9][0-9]{0,4})(?:@([0-9a-f.:]{2,39}))?"
)
# Not tracked, so not translated; and nodes without a cluster may join one.
_WIREGUARD: Final = ("udp", allocs.WIREGUARD_PORT)


@dataclass(frozen=True, slots=True)
class Mapping:
    """A port of the node that leads to one of the workload.

    protocol: of PROTOCOLS. host_ip: None: all addresses of both families.
    """

    protocol: str
    host_port: int
    container_port: int
    host_ip: IPAddress | None = None

    def __str__(self) -> str:
        return words(self.protocol, self.host_port, self.host_ip)

    def versions(self) -> Iterator[int]:
        """Yield the IP versions that it is for."""
        if self.host_ip is None:
            yield from (4, 6)
        else:
            yield self.host_ip.version

    @property
    def any(self) -> bool:
        """Whether it is for all addresses of its families."""
        return self.host_ip is None or self.host_ip.is_unspecified


def parse_host_ip(packed: bytes) -> IPAddress:
    """Parse a packed address. Raises InvalidArgument."""
    if len(packed) not in (4, 16):
        raise invalid(f"host_ip {show(packed)}: must have 4 or 16 bytes, has {len(packed)}")
    return ip_address(packed)


def part_of(mappings: Iterable[Mapping]) -> tuple[PartText, ...]:
    """Return the part of an AttachIntent; (): no mappings. Raises
    InvalidArgument, its field `port_mapping`.
    """
    text = text_of(mappings)
    return ((LETTER, text),) if text else ()


def of_parts(parts: Iterable[PartText]) -> tuple[Mapping, ...]:
    """Return an attachment's mappings, in order. Raises InvalidArgument."""
    return next((parse(text) for letter, text in parts if letter == LETTER), ())


def text_of(mappings: Iterable[Mapping]) -> str:
    """Return the text of the mappings, in any order; "": there are none.
    Raises InvalidArgument, its field `port_mapping`.
    """
    wanted = list(itertools.islice(mappings, PORTS_MAX + 1))
    if len(wanted) > PORTS_MAX:
        raise invalid(f"more than {PORTS_MAX} ports; ask for fewer")
    if found := [*map(str, faults(wanted))]:
        raise invalid(several(found))
    text = ",".join(map(_entry, _runs(sorted(wanted, key=_order))))
    if len(text) > TEXT_MAX:
        raise invalid(
            f"{len(wanted)} ports: are recorded as {len(text)} characters, of which a link holds "
            f"{TEXT_MAX}; ask for fewer ports, or for ranges of successive ones"
        )
    return text


@functools.lru_cache(maxsize=64)
def parse(text: str) -> tuple[Mapping, ...]:
    """Return the mappings, in order. Raises InvalidArgument."""
    mappings: list[Mapping] = []
    for entry in text.split(","):
        found = _RUN.fullmatch(entry)
        if found is None:
            raise invalid(f"{show(entry)}: is not understood")
        first, port = int(found[2]), int(found[4])
        last = int(found[3] or first)
        if not first <= last < first + PORTS_MAX:
            raise invalid(f"{show(entry)}: must be 1 to {PORTS_MAX} ports")
        try:
            ip = None if found[5] is None else ip_address(found[5])
        except ValueError:
            raise invalid(f"{show(entry)}: has no address") from None
        mappings += [
            Mapping(_LETTERS[found[1]], first + n, port + n, ip) for n in range(last - first + 1)
        ]
    if text_of(mappings) != text:
        raise invalid(f"{show(text)}: is not in canonical form")
    return tuple(mappings)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why no node can do a mapping. at: which one. field: of Mapping, with its
    value; "": the mapping as a whole.
    """

    at: int
    field: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.field} {self.value}: {self.why}".lstrip()


def faults(mappings: Iterable[Mapping]) -> Iterator[Fault]:
    """Yield what is wrong with mappings, in their order."""
    taken: set[tuple[str, int, int, IPAddress | None]] = set()
    for at, one in enumerate(mappings):
        if own := [*_faults_of(at, one)]:
            yield from own
            continue
        ip = None if one.any else one.host_ip
        keys = {(one.protocol, one.host_port, version, ip) for version in one.versions()}
        if keys & taken:
            yield Fault(at, "", str(one), "is asked for twice")
        taken |= keys


def _faults_of(at: int, one: Mapping) -> Iterator[Fault]:
    """Yield what is wrong with one mapping, whatever the others are."""
    if one.protocol not in PROTOCOLS:
        yield Fault(at, "protocol", show(one.protocol), "must be tcp, udp or sctp")
    for name, port in (("host_port", one.host_port), ("container_port", one.container_port)):
        if not 1 <= port <= 65535:
            yield Fault(at, name, str(port), "must be 1 to 65535")
    if (one.protocol, one.host_port) == _WIREGUARD:
        why = "is the node's own, for its cluster; choose another port"
        yield Fault(at, "", str(one), why)
    if one.host_ip is not None and (why := _why_no_host_ip(one.host_ip)):
        yield Fault(at, "host_ip", str(one.host_ip), why)


def _why_no_host_ip(ip: IPAddress) -> str:
    """Return why a port of it is not possible, and what is; "": it is."""
    if ip.is_unspecified:
        return ""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return f"write it as {ip.ipv4_mapped}"
    if isinstance(ip, IPv6Address) and ip.is_loopback:
        return "the kernel does not forward what is sent to ::1; use an address of the node"
    if ip.is_multicast or ip == IPv4Address("255.255.255.255"):
        return "must be an address of the node"
    if ip in allocs.FIRST_HOP_NETWORK or (ip.version == 6 and ip.is_link_local):
        return "is the address of a link; use an address of the node"
    return ""


type _Run = tuple[Mapping, int]
"""The first mapping, and how many there are."""


def _order(one: Mapping) -> tuple[int, int, bytes, int]:
    version, packed = (0, b"") if one.host_ip is None else (one.host_ip.version, one.host_ip.packed)
    return PROTOCOLS.index(one.protocol), version, packed, one.host_port


def _runs(mappings: Iterable[Mapping]) -> Iterator[_Run]:
    first: Mapping | None = None
    count = 0
    for one in mappings:
        follows = first is not None and one == Mapping(
            first.protocol, first.host_port + count, first.container_port + count, first.host_ip
        )
        if first is not None and follows:
            count += 1
            continue
        if first is not None:
            yield first, count
        first, count = one, 1
    if first is not None:
        yield first, count


def _entry(run: _Run) -> str:
    first, count = run
    last = f"-{first.host_port + count - 1}" if count > 1 else ""
    at = "" if first.host_ip is None else f"@{first.host_ip}"
    return f"{first.protocol[0]}{first.host_port}{last}={first.container_port}{at}"


def words(protocol: str, port: int, ip: IPAddress | None) -> str:
    """Name a port, for people."""
    where = "" if ip is None else f" of {ip}"
    return f"{protocol} port {port}{where}"


def invalid(text: str) -> InvalidArgument:
    """Return an error about host ports."""
    return InvalidArgument(f"{FIELD}: {text}", field=FIELD)
