# SPDX-License-Identifier: Apache-2.0
"""Values that callers of the engine pass in and get back."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from metropolis.node import allocs
from osbase.ip import IPAddress as IPAddress
from osbase.ip import IPNetwork as IPNetwork

MTU_MIN: Final = 1280
"""Below it the kernel disables IPv6 on a link (RFC 8200, section 5)."""
MTU_MIN_IPV4: Final = 68
"""Below it the kernel disables IPv4 on a link (RFC 791)."""

type PartText = tuple[str, str]
"""A part of an attachment: the letter of the part, and its text; see parts."""

OWNER_API: Final = "api"
"""The owner of attachments by the workload network API; others have names."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route inside the workload's namespace; gateway None: on the link."""

    destination: IPNetwork
    gateway: IPAddress | None


@dataclass(frozen=True, slots=True)
class Identity:
    """What a workload is, for network policies. namespace None: it has none,
    and no labels. ports: protocol (tcp, udp or sctp) and number by name. known:
    whether the labels are known; if not, it has none.
    """

    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    known: bool = True


def unknown_pod(metadata: Mapping[str, str]) -> Identity | None:
    """Return the identity of a pod as CNI's K8S_ arguments have it: its labels
    are not among them. None: it is no pod.
    """
    namespace = metadata.get("K8S_POD_NAMESPACE")
    if not namespace or not metadata.get("K8S_POD_NAME"):
        return None
    return Identity(namespace, known=False)


@dataclass(frozen=True, slots=True)
class AttachIntent:
    """The values of an Attach.

    workload_id: 1 to 255 printable ASCII characters. netns_path: absolute.
    if_name: the name inside. requested_ips: at most one per family, empty:
    chosen. requested_mac: 6 bytes, unicast; None: chosen. owner: who asks, 1
    to 255 printable ASCII characters; it decides nothing. parts: what else is
    asked for, in the order of the letters. requested_mtu: bytes, 0: the node's.
    routes: besides those of every interface; see validate.parse_routes.
    identity: None: says nothing about it. It is no part of the digest.
    """

    workload_id: str
    netns_path: str
    if_name: str
    requested_ips: tuple[IPAddress, ...] = ()
    requested_mac: bytes | None = None
    owner: str = OWNER_API
    parts: tuple[PartText, ...] = ()
    requested_mtu: int = 0
    routes: tuple[Route, ...] = ()
    identity: Identity | None = None

    def digest(self) -> bytes:
        """Return 8 bytes that differ when two requests for one workload and
        interface differ.

        The namespace is left out: it is compared by its cookie. So are absent
        values, so that a field of a later version does not change the digests
        of old requests.
        """
        state = hashlib.blake2b(digest_size=8)
        for ip in sorted(self.requested_ips, key=lambda ip: ip.version):
            state.update(b"ip" + bytes([len(ip.packed)]) + ip.packed)
        if self.requested_mac is not None:
            state.update(b"mac" + self.requested_mac)
        for letter, text in self.parts:
            state.update(b"part" + letter.encode() + len(text).to_bytes(2) + text.encode())
        if self.requested_mtu:
            state.update(b"mtu" + self.requested_mtu.to_bytes(4))
        for text in sorted(str(route.destination) for route in self.routes):
            state.update(b"route" + len(text).to_bytes(2) + text.encode())
        return state.digest()


@dataclass(frozen=True, slots=True)
class Attachment:
    """A workload's interface.

    ips: IPv4 first. mac: 6 bytes, of the end inside. host_interface and
    host_ifindex: the end on the host. mtu: bytes, both ends. gateways: the
    first hop of each address, in the order of `ips`. owner: who first requested
    it; "": unknown, since version 1 of the records had none. parts: see
    AttachIntent. routes: only the answer to an attach has those that it asked
    for.
    """

    workload_id: str
    if_name: str
    ips: tuple[IPAddress, ...]
    mac: bytes
    host_interface: str
    host_ifindex: int
    mtu: int
    gateways: tuple[IPAddress, ...]
    routes: tuple[Route, ...]
    owner: str = ""
    parts: tuple[PartText, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference from the attachment; all texts are for people.

    what: the object and its property.
    """

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class Checked:
    """An attachment compared with the kernel; without findings it is right.
    entered: whether the namespace was entered, and routes inside compared.
    """

    attachment: Attachment
    findings: tuple[Finding, ...]
    entered: bool


@dataclass(frozen=True, slots=True)
class Collected:
    """The result of a Collect. remaining: not removed, each with the reason."""

    removed: tuple[Attachment, ...]
    remaining: tuple[tuple[Attachment, str], ...]


_DEFAULT: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
_FIRST_HOP: dict[int, IPAddress] = {4: allocs.FIRST_HOP_IPV4, 6: allocs.FIRST_HOP_IPV6}
_ON_LINK: dict[int, IPNetwork] = {
    4: IPv4Network(allocs.FIRST_HOP_IPV4),
    6: IPv6Network(allocs.FIRST_HOP_IPV6),
}


def first_hop(family: int) -> IPAddress:
    """Return the gateway of workloads in IP version 4 or 6."""
    return _FIRST_HOP[family]


_ROUTES = {
    version: (Route(_ON_LINK[version], None), Route(_DEFAULT[version], _FIRST_HOP[version]))
    for version in (4, 6)
}


def routes_of(versions: Iterable[int]) -> tuple[Route, ...]:
    """Return the routes of an interface with addresses of these versions."""
    return tuple([route for version in versions for route in _ROUTES[version]])
