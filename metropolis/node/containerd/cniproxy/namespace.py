# SPDX-License-Identifier: Apache-2.0
"""What setup(), remove() and check() take about a namespace.

A capability that the service does not have is an error when it asks for
something; the metadata of pods is accepted, and not used yet.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

from metropolis.node.containerd.cniproxy.errors import InvalidConfigError
from metropolis.node.core.network.workloads.spec import workload_pb2 as pb

_MAC = re.compile(r"([0-9a-fA-F]{2}([:-]))([0-9a-fA-F]{2}\2){4}[0-9a-fA-F]{2}")


@dataclass(frozen=True)
class PortMapping:
    """A port of the node that leads to one of the container.

    protocol: tcp, udp or sctp in any case; "": tcp. host_ip: an address of the
    node; "": all of both families, 0.0.0.0 or ::, all of one. host_port 0: the
    container only declares the port, and none of the node leads to it.
    """

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True)
class BandWidth:
    """Limits in bits per second, and bursts in bits; 0: none.

    ingress: to the container. A burst only lowers the service's.
    """

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


@dataclass(frozen=True)
class DNS:
    """Resolver settings, which are passed on to the result."""

    servers: Sequence[str] = ()
    searches: Sequence[str] = ()
    options: Sequence[str] = ()


@dataclass(frozen=True)
class Route:
    """A route in the namespace. dst: with a prefix length. gw: "" or the first
    hop of its family, since nothing else is reachable.
    """

    dst: str
    gw: str = ""


@dataclass
class Namespace:
    """What the options say about one namespace. asked_ips, asked_mac: by
    labels, over which the capabilities have priority, as in CNI.
    """

    args: dict[str, str] = field(default_factory=dict)
    dns: DNS | None = None
    ips: tuple[IPv4Address | IPv6Address, ...] = ()
    mac: bytes = b""
    asked_ips: tuple[IPv4Address | IPv6Address, ...] = ()
    asked_mac: bytes = b""
    port_mappings: tuple[pb.PortMapping, ...] = ()
    mtu: int = 0
    routes: tuple[pb.Route, ...] = ()
    bandwidth: pb.Bandwidth | None = None


type NamespaceOpt = Callable[[Namespace], None]

# Metadata that runtimes send along with every pod.
_METADATA = {"cgroupPath", "io.kubernetes.cri.pod-annotations"}


def with_labels(labels: Mapping[str, str]) -> NamespaceOpt:
    """Describe the pod: K8S_POD_NAMESPACE and the like.

    IP (addresses, with commas between) and MAC ask for what they name, as in
    CNI_ARGS.
    """

    def apply(namespace: Namespace) -> None:
        namespace.args |= labels
        if labels.get("IP"):
            namespace.asked_ips = tuple(_address(text) for text in labels["IP"].split(","))
        if labels.get("MAC"):
            namespace.asked_mac = _mac(labels["MAC"])

    return apply


def with_args(key: str, value: str) -> NamespaceOpt:
    """Describe the pod by one key."""
    return with_labels({key: value})


def with_capability_port_map(mappings: Sequence[PortMapping]) -> NamespaceOpt:
    """Have ports of the node lead to the container's."""
    return with_capability("portMappings", mappings)


def with_capability_bandwidth(bandwidth: BandWidth) -> NamespaceOpt:
    """Limit what the container receives and sends."""
    return with_capability("bandwidth", bandwidth if bandwidth != BandWidth() else None)


def with_capability_dns(dns: DNS) -> NamespaceOpt:
    """Put these resolver settings into the result."""

    def apply(namespace: Namespace) -> None:
        namespace.dns = dns

    return apply


def with_mtu(mtu: int) -> NamespaceOpt:
    """Set the MTU of both ends, bytes; 0: the node's. Not in go-cni, whose
    users write it into a configuration.
    """

    def apply(namespace: Namespace) -> None:
        if type(mtu) is not int or not 0 <= mtu < 1 << 32:
            raise InvalidConfigError(f"mtu {mtu!r:.80}: a number of bytes is expected")
        namespace.mtu = mtu

    return apply


def with_routes(*routes: Route) -> NamespaceOpt:
    """Add these routes in the namespace. Not in go-cni: see with_mtu."""

    def apply(namespace: Namespace) -> None:
        namespace.routes += tuple(_route(one) for one in routes)

    return apply


def with_capability_cgroup_path(path: str) -> NamespaceOpt:
    """Give the pod's control group; it is not used."""
    return with_capability("cgroupPath", path)


def with_capability(name: str, value: Any) -> NamespaceOpt:
    """Ask for `ips` (a list of strings), `mac` (a string), `portMappings` (a
    sequence of PortMapping) or `bandwidth` (a BandWidth), or add metadata.
    """

    def apply(namespace: Namespace) -> None:
        if name == "ips":
            namespace.ips = tuple(_address(text) for text in value or ())
        elif name == "mac":
            namespace.mac = _mac(value)
        elif name == "portMappings":
            made = (_port_mapping(one) for one in value or ())
            namespace.port_mappings = tuple(one for one in made if one.host_port)
        elif name == "bandwidth":
            namespace.bandwidth = _bandwidth(value) if value else None
        elif value and name not in _METADATA:
            raise InvalidConfigError(f"capability {name} is {value!r:.200}: not in the service")

    return apply


def _address(text: object) -> IPv4Address | IPv6Address:
    try:
        ip = ip_interface(text if isinstance(text, str) else "").ip
    except ValueError:
        raise InvalidConfigError(f"capability ips has {text!r:.80}: no IP address") from None
    if isinstance(ip, IPv6Address) and ip.scope_id is not None:
        raise InvalidConfigError(f"capability ips has {text!r:.80}: a zone is not possible")
    return ip


def _mac(text: object) -> bytes:
    if not text:
        return b""
    if not isinstance(text, str) or not _MAC.fullmatch(text):
        raise InvalidConfigError(f"capability mac is {text!r:.80}: six hex pairs are expected")
    return bytes.fromhex(text.replace("-", "").replace(":", ""))


def _route(route: object) -> pb.Route:
    """Make the request's; the service judges the rest."""
    try:
        if not isinstance(route, Route) or not route.dst.rpartition("/")[2].isdigit():
            raise ValueError("a Route with a prefix length is expected")
        if "%" in route.dst + route.gw:
            raise ValueError("a zone is not possible")
        dst = ip_network(route.dst, strict=False)
        return pb.Route(
            destination=dst.network_address.packed,
            prefix_length=dst.prefixlen,
            gateway=ip_address(route.gw).packed if route.gw else b"",
        )
    except (TypeError, ValueError) as error:
        raise InvalidConfigError(f"route {route!r:.200}: {error}") from None


def _bandwidth(limits: object) -> pb.Bandwidth:
    """Make the request's; the service judges the numbers."""
    if not isinstance(limits, BandWidth):
        raise InvalidConfigError(f"capability bandwidth is {limits!r:.80}: a BandWidth is expected")
    try:
        return pb.Bandwidth(
            ingress_rate=limits.ingress_rate,
            ingress_burst=limits.ingress_burst,
            egress_rate=limits.egress_rate,
            egress_burst=limits.egress_burst,
        )
    except (TypeError, ValueError) as error:
        raise InvalidConfigError(f"{limits!r:.200}: {error}") from None


def _port_mapping(mapping: object) -> pb.PortMapping:
    """Make the request's; the service judges the rest."""
    if not isinstance(mapping, PortMapping):
        raise InvalidConfigError(f"port mapping {mapping!r:.80}: a PortMapping is expected")
    try:
        ip = ip_address(mapping.host_ip) if mapping.host_ip else None
        if isinstance(ip, IPv6Address):
            if ip.scope_id is not None:
                raise ValueError("a zone is not possible")
            ip = ip.ipv4_mapped or ip
        return pb.PortMapping(
            host_port=mapping.host_port,
            container_port=mapping.container_port,
            protocol=mapping.protocol.lower(),
            host_ip=ip.packed if ip else b"",
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidConfigError(f"{mapping!r:.200}: {error}") from None
