# SPDX-License-Identifier: Apache-2.0
"""Host ports: ports of the node that lead to ports of a workload. Pure.

    Mapping   a port of a request
    text_of   mappings -> the text of the part, in canonical form
    parse     the text -> mappings
    PART      the part of attachments

The text has one entry for each run of ports, in order, with commas between:

    PROTOCOL FIRST[-LAST]=PORT[@ADDRESS]     t80=8080
                                             u5000-5099=5000@192.0.2.7

PROTOCOL: t, u or s for TCP, UDP and SCTP. FIRST and LAST: the ports of the
node. PORT: the workload's for FIRST; further ones ascend with it. ADDRESS: the
node's address that has the ports. Without it: all addresses of the families
that the workload has. 0.0.0.0 and ::, all of one family.

An attach adds elements to maps of a static table, which `rules.host_ports`
makes and explains. So the kernel judges conflicts, and a packet costs the same
with one port and with thousands:

    any4, any6   protocol . port            -> the workload's address . port
    at4, at6     address . protocol . port  -> the same; looked up before any
    self4, self6 the workload's address, twice: for connections to itself

A packet from the node's 127.0.0.1 may only leave by a link with the setting
route_localnet: the link of a workload with such ports has it. The rule set
drops packets to 127.0.0.0/8 from all links, so the setting opens nothing.

Not possible: ::1, since the kernel never forwards it (RFC 4291, 2.5.3), and
link-local addresses, which every link may have.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath.elements import Element, NftSet
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import HostFacts, LinkPart
from metropolis.node.core.network.workloads.errors import FailedPrecondition, InvalidArgument
from metropolis.node.core.network.workloads.model import Finding, IPAddress, PartText
from metropolis.node.core.network.workloads.parts import TEXT_MAX, Resource
from metropolis.node.core.network.workloads.validate import show
from osbase.netlink.link import Link, set_link_ipv4_setting
from osbase.netlink.message import Request

if TYPE_CHECKING:
    from osbase.netlink.sock_diag import Listener

FIELD: Final = "port_mapping"
PORTS_MAX: Final = 1024
"""Ports of an attachment. Each is an element for each family."""

PROTOCOLS: Final = ("tcp", "udp", "sctp")
IPV4_DEVCONF_ROUTE_LOCALNET: Final = 26  # linux/ip.h

_LETTERS: Final = {name[0]: name for name in PROTOCOLS}
_RUN: Final = re.compile(
    r"([tus])([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?=([1-9][0-9]{0,4})(?:@([0-9a-f.:]{2,39}))?"
)
# Not tracked, so not translated; and nodes without a cluster may join one.
_WIREGUARD: Final = ("udp", allocs.WIREGUARD_PORT)
_LOOPBACK: Final = IPv4Network("127.0.0.0/8")
_FIRST_HOP_NETWORK: Final = IPv4Network(f"{allocs.FIRST_HOP_IPV4}/24", strict=False)


def _sets(name: str, *fields: str) -> dict[int, NftSet]:
    """By IP version. fields: the types of a key's; `addr` is the family's."""
    return {
        version: NftSet(
            "inet",
            allocs.NFTABLES_WORKLOADS,
            f"{name}{version}",
            tuple(f"ipv{version}_addr" if one == "addr" else one for one in fields),
        )
        for version in (4, 6)
    }


ANY: Final = _sets("any", "inet_proto", "inet_service")
AT: Final = _sets("at", "addr", "inet_proto", "inet_service")
SELF: Final = _sets("self", "addr", "addr")


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
        return _words(self.protocol, self.host_port, self.host_ip)

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
        raise _invalid(f"host_ip {show(packed)}: must have 4 or 16 bytes, has {len(packed)}")
    return ip_address(packed)


def part_of(mappings: Iterable[Mapping]) -> tuple[PartText, ...]:
    """Return the part of an AttachIntent; (): no mappings. Raises
    InvalidArgument, its field `port_mapping`.
    """
    text = text_of(mappings)
    return ((PART.letter, text),) if text else ()


def text_of(mappings: Iterable[Mapping]) -> str:
    """Return the text of the mappings, in any order; "": there are none.
    Raises InvalidArgument, its field `port_mapping`.
    """
    wanted = list(mappings)
    if len(wanted) > PORTS_MAX:
        raise _invalid(f"{len(wanted)} ports: must be at most {PORTS_MAX}")
    _check(wanted)
    text = ",".join(map(_entry, _runs(sorted(wanted, key=_order))))
    if len(text) > TEXT_MAX:
        raise _invalid(
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
            raise _invalid(f"{show(entry)}: is not understood")
        first, port = int(found[2]), int(found[4])
        last = int(found[3] or first)
        if not first <= last < first + PORTS_MAX:
            raise _invalid(f"{show(entry)}: must be 1 to {PORTS_MAX} ports")
        try:
            ip = None if found[5] is None else ip_address(found[5])
        except ValueError:
            raise _invalid(f"{show(entry)}: has no address") from None
        mappings += [
            Mapping(_LETTERS[found[1]], first + n, port + n, ip) for n in range(last - first + 1)
        ]
    if text_of(mappings) != text:
        raise _invalid(f"{show(text)}: is not in canonical form")
    return tuple(mappings)


def _check(mappings: Sequence[Mapping]) -> None:
    """Raise InvalidArgument for what no node can do."""
    taken: set[tuple[str, int, int, IPAddress | None]] = set()
    for one in mappings:
        if one.protocol not in PROTOCOLS:
            raise _invalid(f"protocol {show(one.protocol)}: must be tcp, udp or sctp")
        for name, port in (("host_port", one.host_port), ("container_port", one.container_port)):
            if not 1 <= port <= 65535:
                raise _invalid(f"{name} {port}: must be 1 to 65535")
        if (one.protocol, one.host_port) == _WIREGUARD:
            raise _invalid(f"{one}: is the node's own, for its cluster; choose another port")
        if one.host_ip is not None:
            _check_host_ip(one.host_ip)
        for version in one.versions():
            key = (one.protocol, one.host_port, version, None if one.any else one.host_ip)
            if key in taken:
                raise _invalid(f"{one}: is asked for twice")
            taken.add(key)


def _check_host_ip(ip: IPAddress) -> None:
    why = ""
    if ip.is_unspecified:
        return
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        why = f"write it as {ip.ipv4_mapped}"
    elif isinstance(ip, IPv6Address) and ip.is_loopback:
        why = "the kernel does not forward what is sent to ::1; use an address of the node"
    elif ip.is_multicast or ip == IPv4Address("255.255.255.255"):
        why = "must be an address of the node"
    elif ip in _FIRST_HOP_NETWORK or (ip.version == 6 and ip.is_link_local):
        why = "is the address of a link; use an address of the node"
    if why:
        raise _invalid(f"host_ip {ip}: {why}")


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


def _words(protocol: str, port: int, ip: IPAddress | None) -> str:
    where = "" if ip is None else f" of {ip}"
    return f"{protocol} port {port}{where}"


def _invalid(text: str) -> InvalidArgument:
    return InvalidArgument(f"{FIELD}: {text}", field=FIELD)


# ---- The part ---------------------------------------------------------------


class HostPorts(LinkPart):
    """See the module."""

    letter = "h"
    name = FIELD
    sets = tuple(one for some in (ANY, AT, SELF) for one in some.values())

    def check(self, text: str) -> None:
        """See Part."""
        parse(text)

    def resources(self, text: str, ips: Sequence[IPAddress]) -> Iterable[Resource]:
        """See Part. A port of one address and the port of all do not conflict:
        the one is looked up first.
        """
        for one, ip in _pairs(text, ips):
            if one.any:
                key = ("port", one.protocol, one.host_port, ip.version)
                yield Resource(key, _words(one.protocol, one.host_port, None))
            else:
                yield Resource(("port", one.protocol, one.host_port, one.host_ip), str(one))

    def refuse(self, record: Record, text: str, host: HostFacts) -> None:
        """Raise InvalidArgument if the node lacks an address, or the workload
        its family; FailedPrecondition if a process listens on a port.
        """
        versions = {ip.version for ip in record.ips}
        reached = {(one.protocol, one.host_port) for one, _ in _pairs(text, record.ips)}
        for one in parse(text):
            if not versions.intersection(one.versions()) and (
                not one.any or (one.protocol, one.host_port) not in reached
            ):
                raise _invalid(
                    f"host_ip {one.host_ip}: the workload has no IPv{next(one.versions())} address"
                )
        for address in dict.fromkeys(one.host_ip for one in parse(text) if not one.any):
            if address is not None and not host.is_local(address):
                raise _invalid(f"host_ip {address}: is not an address of this node")
        wanted: dict[str, list[tuple[Mapping, int]]] = {}
        for one, ip in _pairs(text, record.ips):
            wanted.setdefault(one.protocol, []).append((one, ip.version))
        for protocol, some in wanted.items():
            for found in host.listeners(protocol, {one.host_port for one, _ in some}):
                for one, version in some:
                    if _shadows(one, version, found):
                        where = "all addresses" if found.address is None else found.address
                        raise FailedPrecondition(
                            f"{FIELD}: {one}: {host.process_of(found)} listens at {where}; stop "
                            "it, or choose another port"
                        )

    def requests(self, record: Record, text: str) -> Sequence[Request]:
        """See LinkPart."""
        if not _from_loopback(record, text):
            return ()
        index, name = record.host_ifindex, record.host_interface
        return [set_link_ipv4_setting(index, name, IPV4_DEVCONF_ROUTE_LOCALNET, 1)]

    def elements(self, record: Record, text: str) -> Sequence[Element]:
        """See LinkPart."""
        found: list[Element] = []
        has: dict[IPAddress, None] = {}
        for one, ip in _pairs(text, record.ips):
            has[ip] = None
            data = f"{ip} . {one.container_port}"
            key = f"{one.protocol} . {one.host_port}"
            if one.any:
                found.append(Element(ANY[ip.version], key, data))
            else:
                found.append(Element(AT[ip.version], f"{one.host_ip} . {key}", data))
        return [*found, *(Element(SELF[ip.version], f"{ip} . {ip}") for ip in has)]

    def findings(self, record: Record, text: str, link: Link) -> Iterable[Finding]:
        """See LinkPart."""
        found = link.ipv4_setting(IPV4_DEVCONF_ROUTE_LOCALNET)
        if _from_loopback(record, text) and found != 1:
            yield Finding(f"route_localnet of {record.host_interface}", "1", str(found))


def _pairs(text: str, ips: Sequence[IPAddress]) -> Iterator[tuple[Mapping, IPAddress]]:
    """Yield each mapping with each address of the workload that it leads to."""
    by_version = {ip.version: ip for ip in ips}
    for one in parse(text):
        for version in one.versions():
            if version in by_version:
                yield one, by_version[version]


def _from_loopback(record: Record, text: str) -> bool:
    """Whether a port is reached at the node's 127.0.0.0/8."""
    return any(
        ip.version == 4 and (one.any or one.host_ip in _LOOPBACK)
        for one, ip in _pairs(text, record.ips)
    )


def _shadows(one: Mapping, version: int, found: Listener) -> bool:
    """Whether the mapping takes packets of this IP version from the socket."""
    if one.host_port != found.port or version not in found.versions:
        return False
    listening = found.address
    if listening is None:
        return True
    if not one.any:
        return listening == one.host_ip
    if listening.version == 4:
        untouched = listening in _LOOPBACK and listening != IPv4Address("127.0.0.1")
        return not untouched and listening not in _FIRST_HOP_NETWORK
    return not (listening.is_loopback or listening.is_link_local)


PART: Final = HostPorts()
