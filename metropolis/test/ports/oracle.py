# SPDX-License-Identifier: Apache-2.0
"""What a client of a host port must see. Pure: the claim, and nothing else.

A cell is one question: a client asks one address of the node, at the host port
of one mapping. `expected` answers it, with the reason. The answers are these:

    pod       the pod with the mapping, and the source that it must see
    node      the node's own listener at that port: the packet is untouched
    refused   nothing listens: a reset or an ICMP error, at once
    silent    the node's access rules drop the packet, as without host ports
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Final


class Client(StrEnum):
    """Where the question comes from. self: the pod with the mapping."""

    OUTSIDE = "outside"
    OTHER = "other-node"
    NODE = "node"
    NEIGHBOUR = "neighbour"
    SELF = "self"


class At(StrEnum):
    """An address of the node.

    second: another one of the same link. hop: the first hop, the gateway of
    pods, which ask fe80::1 from their address of global scope. link-local: of
    the uplink, IPv6. loopback-53: 127.0.0.53, where systemd-resolved listens.
    """

    NODE = "node"
    SECOND = "second"
    LOOPBACK = "loopback"
    LOOPBACK_53 = "loopback-53"
    HOP = "hop"
    LINK_LOCAL = "link-local"


class HostIP(StrEnum):
    """A mapping's host address. any: none; wildcard: 0.0.0.0 or ::."""

    ANY = "any"
    WILDCARD = "wildcard"
    NODE = "node"
    SECOND = "second"
    LOOPBACK = "loopback"


class By(StrEnum):
    """The answer of a cell."""

    POD = "pod"
    NODE = "node"
    REFUSED = "refused"
    SILENT = "silent"


class Source(StrEnum):
    """The source address that the answering side must see.

    kept: the client's own. hop: the first hop's. rewritten: any address of the
    node. unknown: not claimed.
    """

    KEPT = "kept"
    HOP = "hop"
    REWRITTEN = "rewritten"
    UNKNOWN = "unknown"


PROTOCOLS: Final = ("tcp", "udp", "sctp")


@dataclass(frozen=True)
class Mapping:
    """A mapping's host address. version: 4 or 6; 0 for any."""

    host: HostIP
    version: int = 0

    def __str__(self) -> str:
        return f"{self.host}{self.version or ''}"


@dataclass(frozen=True)
class Setting:
    """The state of the node for a whole run of cells.

    access: whether pods reach the node's own services. listening: the node's
    own programs listen at all the ports, since after the attach. versions:
    families in which pods have addresses. further: the mappings lead to a
    second interface of their pod, whose first one has the default route. It
    asks itself from the second's address: what it asks from the first's does
    not come back (a limit that the documents name).
    """

    access: bool
    listening: bool
    versions: tuple[int, ...] = (4, 6)
    further: bool = False

    def __str__(self) -> str:
        families = "dual" if len(self.versions) == 2 else f"ipv{self.versions[0]}"
        access = "access" if self.access else "no-access"
        second = "/second-interface" if self.further else ""
        return f"{families}/{access}/{'listening' if self.listening else 'bare'}{second}"


@dataclass(frozen=True)
class Cell:
    """One question. version: family of the address that is asked."""

    setting: Setting
    client: Client
    mapping: Mapping
    at: At
    version: int
    protocol: str

    def __str__(self) -> str:
        return (
            f"{self.setting}/{self.client}/{self.mapping}/{self.at}{self.version}/{self.protocol}"
        )


@dataclass(frozen=True)
class Expected:
    """The answer, and why."""

    by: By
    source: Source
    why: str


MAPPINGS: Final = (
    Mapping(HostIP.ANY),
    *(
        Mapping(host, version)
        for host in (HostIP.WILDCARD, HostIP.NODE, HostIP.SECOND)
        for version in (4, 6)
    ),
    Mapping(HostIP.LOOPBACK, 4),
)
"""All that a node accepts. ::1 and link-local addresses are refused by name."""

_PODS: Final = (Client.NEIGHBOUR, Client.SELF)
_ADDRESSES: Final = ((At.NODE, 4), (At.NODE, 6), (At.SECOND, 4), (At.SECOND, 6))
_ASKED: Final[dict[Client, tuple[tuple[At, int], ...]]] = {
    Client.OUTSIDE: _ADDRESSES,
    Client.OTHER: (*_ADDRESSES, (At.LINK_LOCAL, 6)),
    Client.NODE: (
        *_ADDRESSES,
        (At.LOOPBACK, 4),
        (At.LOOPBACK, 6),
        (At.LOOPBACK_53, 4),
        (At.HOP, 4),
        (At.LINK_LOCAL, 6),
    ),
    Client.NEIGHBOUR: (*_ADDRESSES, (At.HOP, 4), (At.HOP, 6)),
    Client.SELF: (*_ADDRESSES, (At.HOP, 4), (At.HOP, 6)),
}
"""The addresses that a client has a way to: another host has none to 127.0.0.1
of the node. A pod that makes one is an attack, which SECURITY.md has."""

_SPECIFIC: Final = {
    HostIP.NODE: At.NODE,
    HostIP.SECOND: At.SECOND,
    HostIP.LOOPBACK: At.LOOPBACK,
}

_NEVER: Final[dict[tuple[At, int], str]] = {
    (At.LOOPBACK, 6): "::1 cannot be translated: untouched, and never a timeout",
    (At.LOOPBACK_53, 4): "of 127.0.0.0/8 only 127.0.0.1 is taken: a resolver is at 127.0.0.53",
    (At.HOP, 4): "the first hop's network is the node's own, not a host address",
    (At.HOP, 6): "the first hop's network is the node's own, not a host address",
    (At.LINK_LOCAL, 6): "link-local addresses are not host addresses",
}
"""Addresses that are left alone whatever is mapped."""


def mappings(setting: Setting) -> list[Mapping]:
    """Return the mappings of the pod: those of a family that it has."""
    return [one for one in MAPPINGS if not one.version or one.version in setting.versions]


def cells(setting: Setting) -> Iterator[Cell]:
    """Yield all cells of a setting."""
    for client in Client:
        for mapping, protocol in itertools.product(mappings(setting), PROTOCOLS):
            for at, version in _ASKED[client]:
                if client not in _PODS or version in setting.versions:
                    yield Cell(setting, client, mapping, at, version, protocol)


def expected(cell: Cell) -> Expected:
    """Return what the cell must show."""
    untouched = _untouched_because(cell)
    if untouched:
        return _own(cell, untouched)
    if cell.client is Client.SELF:
        source = Source.HOP if cell.version == 4 else Source.REWRITTEN
        return Expected(
            By.POD, source, "hairpin: with its own source the answer would not leave the pod"
        )
    if cell.at is At.LOOPBACK:
        return Expected(By.POD, Source.HOP, "a pod cannot answer 127.0.0.1: it sees the first hop")
    return Expected(By.POD, Source.KEPT, "translated by destination only: the source is kept")


def _untouched_because(cell: Cell) -> str:
    """Return why the packet must be left alone; "": it must be translated."""
    if reason := _NEVER.get((cell.at, cell.version)):
        return reason
    if cell.version not in cell.setting.versions:
        return "the pod has no address of this family"
    if cell.mapping.version not in (0, cell.version):
        return "the mapping is of the other family"
    wanted = _SPECIFIC.get(cell.mapping.host)
    if wanted is not None and cell.at is not wanted:
        return f"the mapping is of the {wanted} address alone"
    return ""


def _own(cell: Cell, why: str) -> Expected:
    """Return what is seen of a packet that is left alone."""
    link_local = (cell.at, cell.version) == (At.LINK_LOCAL, 6)
    source = Source.UNKNOWN if link_local else Source.KEPT
    if cell.client in _PODS:
        if not cell.setting.access:
            return Expected(By.SILENT, source, f"{why}; and pods have no access to the node")
    if cell.setting.listening:
        return Expected(By.NODE, source, why)
    return Expected(By.REFUSED, source, why)


# ---- Elements ---------------------------------------------------------------

type Addresses = dict[int, str]
"""By family."""

type Elements = dict[str, set[str]]
"""By set or map: `KEY : DATA`, or `KEY` in a set."""

MAPS: Final = ("any4", "any6", "at4", "at6", "self4", "self6")


@dataclass(frozen=True)
class Port:
    """A mapping as a caller gives it. host: an address, or ""."""

    host: str
    protocol: str
    host_port: int
    container_port: int


def elements(attached: Iterable[tuple[Addresses, Iterable[Port]]]) -> Elements:
    """Return the elements of these attachments, each its addresses by family
    and its ports: these and no others are in the kernel.
    """
    found: Elements = {name: set() for name in MAPS}
    for addresses, ports in attached:
        for version, address in addresses.items():
            mine = [one for one in ports if _of_family(one.host, version)]
            for one in mine:
                key, name = f"{one.protocol} . {one.host_port}", f"any{version}"
                if one.host not in ("", *_WILDCARDS):
                    key, name = f"{one.host} . {key}", f"at{version}"
                found[name].add(f"{key} : {address} . {one.container_port}")
            if mine:
                found[f"self{version}"].add(f"{address} . {address}")
    return found


_WILDCARDS: Final = ("0.0.0.0", "::")


def _of_family(host: str, version: int) -> bool:
    return not host or ip_address(host).version == version
