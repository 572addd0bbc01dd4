# SPDX-License-Identifier: Apache-2.0
"""Host ports: ports of the node that lead to ports of a workload. Pure.

An attach adds elements to maps of a static table, which `rules.host_ports`
makes and explains. So the kernel judges conflicts, and a packet costs the same
with one port and with thousands:

    any4, any6   protocol . port            -> the workload's address . port
    at4, at6     address . protocol . port  -> the same; looked up before any
    self4, self6 the workload's address, twice: for connections to itself

A packet from the node's 127.0.0.1 may only leave by a link with the setting
route_localnet: the link of a workload with such ports has it. The rule set
drops packets to 127.0.0.0/8 from all links, so the setting opens nothing.

The text of the part is in workloads.host_ports.
"""

import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import TYPE_CHECKING, Final

from metropolis.node import allocs
from metropolis.node.core.network.workloads.datapath.elements import Element, Found, NftSet
from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.datapath.parts import HostFacts, LinkPart
from metropolis.node.core.network.workloads.errors import FailedPrecondition
from metropolis.node.core.network.workloads.host_ports import (
    FIELD,
    LETTER,
    Mapping,
    invalid,
    parse,
    words,
)
from metropolis.node.core.network.workloads.model import Finding, IPAddress
from metropolis.node.core.network.workloads.parts import Resource
from metropolis.node.core.network.workloads.validate import several
from osbase.netlink.link import Link, set_link_ipv4_setting
from osbase.netlink.message import Request

if TYPE_CHECKING:
    from osbase.conntrack.delete import Choice, Filter, Flow
    from osbase.netlink.sock_diag import Listener

_NUMBERS: Final = {
    "tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP,
}  # fmt: skip
_STALE: Final = {name: _NUMBERS[name] for name in ("udp", "sctp")}
# Fields of keys and data, each padded to a multiple of 4 bytes.
_KEY: Final = struct.Struct(">B3xH2x")
_PORT: Final = struct.Struct(">H2x")
IPV4_DEVCONF_ROUTE_LOCALNET: Final = 26  # linux/ip.h
_SHOWN: Final = 4  # ports of a finding
_LOOPBACK: Final = IPv4Network("127.0.0.0/8")


def _sets(name: str, key: Sequence[str], data: Sequence[str] = ()) -> dict[int, NftSet]:
    """By IP version. key, data: types of fields; `addr` is the family's."""

    def types(version: int, fields: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"ipv{version}_addr" if one == "addr" else one for one in fields)

    table = allocs.NFTABLES_WORKLOADS
    return {
        at: NftSet("inet", table, f"{name}{at}", types(at, key), types(at, data)) for at in (4, 6)
    }


_TO: Final = ("addr", "inet_service")
ANY: Final = _sets("any", ("inet_proto", "inet_service"), _TO)
AT: Final = _sets("at", ("addr", "inet_proto", "inet_service"), _TO)
SELF: Final = _sets("self", ("addr", "addr"))


class HostPorts(LinkPart):
    """See the module."""

    letter = LETTER
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
                yield Resource(key, words(one.protocol, one.host_port, None))
            else:
                yield Resource(("port", one.protocol, one.host_port, one.host_ip), str(one))

    def refuse(self, record: Record, text: str, host: HostFacts) -> None:
        """Raise InvalidArgument if the node lacks an address, or the workload
        its family; FailedPrecondition if a process listens on a port.
        """
        if wrong := [*_wrong_host_ips(record, text, host)]:
            raise invalid(several(wrong))
        if shadowed := [*_shadowed(record, text, host)]:
            raise FailedPrecondition(f"{FIELD}: {several(shadowed)}")

    def requests(self, record: Record, text: str) -> Sequence[Request]:
        """See LinkPart."""
        if not _from_loopback(record, text):
            return ()
        index, name = record.host_ifindex, record.host_interface
        return [set_link_ipv4_setting(index, name, IPV4_DEVCONF_ROUTE_LOCALNET, 1)]

    def elements(self, record: Record, text: str) -> Sequence[Element]:
        """See LinkPart."""
        found: list[Element] = []
        led: dict[IPAddress, None] = {}
        for one, ip in _pairs(text, record.ips):
            led[ip] = None
            data = ip.packed + _PORT.pack(one.container_port)
            key = _KEY.pack(_NUMBERS[one.protocol], one.host_port)
            if one.host_ip is None or one.any:
                found.append(Element(ANY[ip.version], key, data))
            else:
                found.append(Element(AT[ip.version], one.host_ip.packed + key, data))
        return [*found, *(Element(SELF[ip.version], ip.packed * 2) for ip in led)]

    def findings(self, record: Record, text: str, link: Link) -> Iterable[Finding]:
        """See LinkPart."""
        found = link.ipv4_setting(IPV4_DEVCONF_ROUTE_LOCALNET)
        if _from_loopback(record, text) and found != 1:
            yield Finding(f"route_localnet of {record.host_interface}", "1", str(found))

    def host_findings(self, record: Record, text: str, host: HostFacts) -> Iterable[Finding]:
        """See LinkPart: a finding for each address that the node has no more.
        It may come back, so the elements stay.
        """
        ports: dict[IPAddress, list[str]] = {}
        for one, _ in _pairs(text, record.ips):
            if one.host_ip is not None and not one.any:
                ports.setdefault(one.host_ip, []).append(f"{one.host_port}/{one.protocol}")
        for ip, some in ports.items():
            if not host.is_local(ip):
                what = "host port" if len(some) == 1 else "host ports"
                more = [f"{len(some) - _SHOWN} more"] if len(some) > _SHOWN else []
                yield Finding(
                    f"{what} {', '.join([*some[:_SHOWN], *more])} of {ip}",
                    "an address of the node",
                    "the node has no such address now",
                )

    def flows(self, record: Record, text: str, *, begins: bool) -> Sequence[Filter]:
        """See LinkPart. A client of TCP gets a reset or gives up, and connects
        again, by another port; by UDP and SCTP it may go on as it was.

        A flow is found by the port that its client sent to, which is the
        node's. When a port begins to lead here, those that were not led are
        stale. Those that are masqueraded are not touched, as of workloads that
        ask a DNS server outside.
        """
        return [
            _filter(one, ip, led=False) if begins else replace(_filter(one, ip, led=True), to=ip)
            for one, ip in _pairs(text, record.ips)
            if one.protocol in _STALE
        ]

    def taken_over(self, record: Record, text: str, host: HostFacts) -> Sequence[Filter]:
        """See LinkPart: the port of an address, if another workload has that
        of all addresses.
        """
        return [
            _filter(one, ip, led=True)
            for one, ip in _pairs(text, record.ips)
            if one.protocol in _STALE and one.host_ip is not None and _by_any(one.host_ip)
            if not one.any
            and host.has_element(ANY[ip.version], _KEY.pack(_STALE[one.protocol], one.host_port))
        ]

    def left_over(self, gone: Collection[Found]) -> Sequence[Filter]:
        """See LinkPart. The workload's addresses are in the sets for
        connections to itself.
        """
        from osbase.conntrack.delete import Filter  # few starts need it

        made = []
        for version, size in ((4, 4), (6, 16)):
            own = [one.key for one in gone if one.set == SELF[version]]
            led = [ip_address(key[:size]) for key in own if len(key) == 2 * size]
            for one in gone:
                address = one.key[: -_KEY.size]
                whole = len(one.key) in (_KEY.size, size + _KEY.size)
                if whole and one.set in (ANY[version], AT[version]):
                    protocol, port = _KEY.unpack_from(one.key, len(address))
                    at = ip_address(address) if address else None
                    if protocol in _STALE.values():
                        made += [Filter(protocol, version, port, at, True, ip) for ip in led]
        return made

    def stale(self, record: Record, text: str, host: HostFacts) -> Choice:
        """See LinkPart. The order of looking up is the table's."""
        ours = {(one.set, one.key): one.data for one in self.elements(record, text)}
        is_local, has_element = cache(host.is_local), cache(host.has_element)

        def goes_elsewhere(flow: Flow) -> bool:
            key = _KEY.pack(flow.protocol, flow.port)
            version = flow.destination.version
            particular = (AT[version], flow.destination.packed + key)
            to = ours.get(particular)
            if to is None and _by_any(flow.destination):
                to = ours.get((ANY[version], key))
                if to is not None and has_element(*particular):
                    return False  # it is another workload's
            if to is None or not is_local(flow.destination):
                return False
            return flow.led_to is None or flow.led_to[0].packed + _PORT.pack(flow.led_to[1]) != to

        return goes_elsewhere


def _filter(one: Mapping, ip: IPAddress, *, led: bool) -> Filter:
    from osbase.conntrack.delete import Filter  # few attaches need it

    address = None if one.any else one.host_ip
    return Filter(_STALE[one.protocol], ip.version, one.host_port, address, led)


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


def _wrong_host_ips(record: Record, text: str, host: HostFacts) -> Iterator[str]:
    """Yield what is wrong with addresses of ports, for this workload here."""
    versions = {ip.version for ip in record.ips}
    reached = {(one.protocol, one.host_port) for one, _ in _pairs(text, record.ips)}
    lacking: dict[IPAddress | None, int] = {}
    named: dict[IPAddress, None] = {}
    for one in parse(text):
        ip = one.host_ip
        if not versions.intersection(one.versions()) and (
            not one.any or (one.protocol, one.host_port) not in reached
        ):
            lacking[ip] = next(one.versions())
        elif ip is not None and not one.any:
            named[ip] = None
    for ip, version in lacking.items():
        yield f"host_ip {ip}: the workload has no IPv{version} address"
    for address in named:
        if not host.is_local(address):
            yield f"host_ip {address}: is not an address of this node"


def _shadowed(record: Record, text: str, host: HostFacts) -> Iterator[str]:
    """Yield the mappings that would take a port from a process, and which."""
    wanted: dict[str, list[tuple[Mapping, int]]] = {}
    for one, ip in _pairs(text, record.ips):
        wanted.setdefault(one.protocol, []).append((one, ip.version))
    named = set()
    for protocol, some in wanted.items():
        for found in host.listeners(protocol, {one.host_port for one, _ in some}):
            for one, version in some:
                if one not in named and _shadows(one, version, found):
                    named.add(one)
                    where = "all addresses" if found.address is None else found.address
                    yield (
                        f"{one}: {host.process_of(found)} listens at {where}; stop it, or choose "
                        "another port"
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
    return _by_any(listening)


def _by_any(ip: IPAddress) -> bool:
    """Whether the port of all addresses includes this one, if it is the node's:
    see rules.host_ports.
    """
    if ip.version == 4:
        untouched = ip in _LOOPBACK and ip != IPv4Address("127.0.0.1")
        return not untouched and ip not in allocs.FIRST_HOP_NETWORK
    return not (ip.is_loopback or ip.is_link_local)


PART: Final = HostPorts()
