# SPDX-License-Identifier: Apache-2.0
"""The node's configuration: a file in, checked value objects out.

`load` reads and parses, `check` is pure. All faults are in one ConfigError, one
line each: the file, line and column, the field, the fault. `config_faults`
finds them in a text that has any.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from ipaddress import (
    IPv6Address,
    ip_address,
    ip_interface,
    ip_network,
)

from google.protobuf import text_format

from metropolis.node import allocs
from metropolis.node.core.spec import config_pb2
from osbase.ip import IPAddress, IPNetwork
from osbase.net import config as net_config
from osbase.net.config import Interface, Problems, quoted
from osbase.text import printable

MAX_FILE = 1 << 20
MTU_MIN = 1280  # IPv6's minimum (RFC 8200, section 5)
MTU_MAX = 65535
NAMES_WAIT_S = 30.0
NEW_FLOWS_PER_SECOND = 1000
NEW_FLOWS_MAX = 1_000_000
PORTS_MAX = 64  # entries of node_access.port
ENDPOINTS_MAX = 64  # of cluster.etcd_endpoint
NTP_SERVERS_MAX = 8
PREFIXES_MAX = 256  # of network.pod_prefix


class ConfigError(Exception):
    """The configuration cannot be used; the text has a line for each fault."""


@dataclass(frozen=True)
class PodPrefixes:
    """Workloads' addresses come from these. reserved: never allocated."""

    prefixes: tuple[IPNetwork, ...] = ()
    reserved: frozenset[IPAddress] = frozenset()


class AccessMode(enum.Enum):
    """What pods may reach on the node: see NodeAccess in config.proto."""

    NOTHING = "nothing"
    LISTED = "listed"
    ALL = "all"


@dataclass(frozen=True, order=True)
class Ports:
    """A range of ports, inclusive. protocol: tcp, udp or sctp."""

    protocol: str
    first: int
    last: int


@dataclass(frozen=True)
class NodeAccess:
    """ports: for AccessMode.LISTED, else empty."""

    mode: AccessMode = AccessMode.NOTHING
    ports: tuple[Ports, ...] = ()


@dataclass(frozen=True)
class Network:
    """uplink None: the node has no uplink. mtu None: the uplink's.

    forwarded: destinations that pods reach although they are link-local or a
    cloud's. routed_pods: other hosts may begin connections to pods.
    ipv6_optional: workloads do without IPv6 where it is absent. names_wait_s:
    how long Status waits for name servers, seconds. new_flows_per_second: limit
    of one workload. ntp_servers: addresses or names; empty: DHCP's.
    """

    uplink: Interface | None = None
    pods: PodPrefixes = PodPrefixes()
    mtu: int | None = None
    node_access: NodeAccess = NodeAccess()
    forwarded: tuple[IPNetwork, ...] = ()
    routed_pods: bool = False
    ipv6_optional: bool = False
    names_wait_s: float = NAMES_WAIT_S
    new_flows_per_second: int = NEW_FLOWS_PER_SECOND
    ntp_servers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cluster:
    """The node's cluster. etcd_endpoints: "HOST:PORT", as gRPC takes them.

    underlay_address None: the uplink's. key_rotation_s None: on request only.
    """

    node_id: str
    etcd_endpoints: tuple[str, ...]
    ca_file: str = f"{allocs.PKI_DIR}/ca.pem"
    cert_file: str = f"{allocs.PKI_DIR}/cert.pem"
    key_file: str = f"{allocs.PKI_DIR}/key.pem"
    underlay_address: IPAddress | None = None
    key_rotation_s: float | None = None


@dataclass(frozen=True)
class NodeConfig:
    """The whole configuration. cluster None: the node is in no cluster."""

    network: Network = Network()
    cluster: Cluster | None = None


def load(path: str) -> NodeConfig:
    """Read a NodeConfig in protobuf text format. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{printable(path)}: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise ConfigError(f"{printable(path)}: over {MAX_FILE} bytes")
    return parse(data, path)


def parse(data: bytes, path: str) -> NodeConfig:
    """Parse and check `data`, the content of `path`. Raises ConfigError."""
    path = printable(path)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8") from error
    message = config_pb2.NodeConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        place = f"{error.GetLine()}:{error.GetColumn()}"
        reason = str(error).removeprefix(f"{place} : ")
        raise _with_places(text, path, f"{path}:{place}: {printable(reason)}") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    problems = Problems()
    config = check(message, problems)
    if problems.found:
        raise _with_places(text, path, "\n".join(f"{path}: {one}" for one in problems.found))
    return config


def _with_places(text: str, path: str, otherwise: str) -> ConfigError:
    """Return the error for a text that has faults: all of them, each with its
    line and column. otherwise: what is known without another reading.
    """
    # It is not imported for a text that is right.
    from metropolis.node.core import config_faults

    message = config_pb2.NodeConfig()
    reading = config_faults.read(text, message)
    problems = Problems(partial=bool(reading.faults))
    check(message, problems)
    lines = [(place, what) for place, what in reading.faults]
    for problem in problems.found:
        field, _, _ = problem.partition(": ")
        # What is missing may be what could not be read.
        if not reading.faults or reading.has(field):
            lines.append((reading.place_of(field) or config_faults.Place(0, 0), problem))
    if not lines:
        return ConfigError(otherwise)
    lines.sort(key=lambda one: (one[0].line, one[0].column))
    if len(lines) > config_faults.FAULTS_MAX:
        lines[config_faults.FAULTS_MAX :] = [(lines[config_faults.FAULTS_MAX][0], "and more")]
    return ConfigError(
        "\n".join(
            f"{path}:{place}: {what}" if place.line else f"{path}: {what}" for place, what in lines
        )
    )


def summary(config: NodeConfig) -> str:
    """Return the configuration in a few words, for people."""
    network, cluster = config.network, config.cluster
    uplink = "no uplink"
    if network.uplink is not None:
        how = "by DHCP" if network.uplink.dhcp4 is not None else "static"
        uplink = f"uplink {network.uplink.described}, {how}"
    if cluster is not None:
        endpoints = ", ".join(cluster.etcd_endpoints)
        return f'{uplink}; node "{cluster.node_id}" of the cluster at {endpoints}'
    prefixes = ", ".join(map(str, network.pods.prefixes))
    return f"{uplink}; pod prefixes {prefixes}" if prefixes else f"{uplink}; no pod prefix"


def check(message: config_pb2.NodeConfig, problems: Problems) -> NodeConfig:
    """Check a message; append each fault to `problems`."""
    network = message.network
    uplink = None
    if network.HasField("uplink"):
        uplink = net_config.interface(network.uplink, "network.uplink", problems)
    prefixes = _prefixes(network, problems)
    reserved = _reserved(network, prefixes, problems)
    mtu = network.mtu
    if mtu and not MTU_MIN <= mtu <= MTU_MAX:
        problems.add("network.mtu", f"{mtu} is not between {MTU_MIN} and {MTU_MAX}")
    cluster = None
    if message.HasField("cluster"):
        cluster = _cluster(message.cluster, problems)
        for field in ("pod_prefix", "reserved_address", "mtu"):
            if getattr(network, field):
                problems.add(f"network.{field}", "comes from the cluster, of a node that has one")
    if network.ipv6 not in ("", "required", "optional"):
        problems.add("network.ipv6", f'{quoted(network.ipv6)} is not "required" or "optional"')
    flows = network.new_flows_per_second
    if flows > NEW_FLOWS_MAX:
        problems.add("network.new_flows_per_second", f"{flows} is more than {NEW_FLOWS_MAX}")
    return NodeConfig(
        Network(
            uplink,
            PodPrefixes(tuple(prefixes), frozenset(reserved)),
            mtu or None,
            _node_access(network.node_access, problems),
            _forwarded(network, problems),
            network.routed_pods,
            network.ipv6 == "optional",
            float(network.names_wait_s) if network.HasField("names_wait_s") else NAMES_WAIT_S,
            flows or NEW_FLOWS_PER_SECOND,
            _ntp_servers(network, problems),
        ),
        cluster,
    )


def _node_access(message: config_pb2.NodeAccess, problems: Problems) -> NodeAccess:
    modes = {mode.value: mode for mode in AccessMode}
    mode = modes.get(message.mode or AccessMode.NOTHING.value)
    field = "network.node_access"
    if mode is None:
        problems.add(f"{field}.mode", f"{quoted(message.mode)} is not one of {', '.join(modes)}")
        mode = AccessMode.NOTHING
    elif message.port and mode is not AccessMode.LISTED:
        problems.add(
            f"{field}.port", f'goes with mode "listed", not with "{mode.value}"', by_others=True
        )
    if len(message.port) > PORTS_MAX:
        problems.add(f"{field}.port", f"has {len(message.port)} entries; at most {PORTS_MAX}")
    ports: list[Ports] = []
    for index, text in enumerate(message.port):
        found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?/(tcp|udp|sctp)", text)
        first = int(found[1]) if found else 0
        last = int(found[2] or found[1]) if found else 0
        if found is None or not 0 < first <= last < 65536:
            problems.add(
                f"{field}.port[{index}]",
                f'{quoted(text)} is not "PORT/PROTOCOL" or "FIRST-LAST/PROTOCOL", such as '
                '"10250/tcp"; ports are 1 to 65535, protocols tcp, udp, sctp',
            )
        else:
            ports.append(Ports(found[3], first, last))
    return NodeAccess(mode, tuple(sorted(set(ports))))


def _forwarded(network: config_pb2.Network, problems: Problems) -> tuple[IPNetwork, ...]:
    found: list[IPNetwork] = []
    for index, text in enumerate(network.forwarded_destination):
        field = f"network.forwarded_destination[{index}]"
        try:
            prefix = _prefix(text)
        except ValueError:
            problems.add(
                field, f'{quoted(text)} is no address or prefix, such as "169.254.169.254"'
            )
            continue
        if str(prefix.network_address) != str(ip_interface(text).ip):
            problems.add(field, f'{quoted(text)} has host bits set; the prefix is "{prefix}"')
        else:
            found.append(prefix)
    return tuple(dict.fromkeys(found))


def _ntp_servers(network: config_pb2.Network, problems: Problems) -> tuple[str, ...]:
    field = "network.ntp_server"
    if len(network.ntp_server) > NTP_SERVERS_MAX:
        problems.add(field, f"has {len(network.ntp_server)} entries; at most {NTP_SERVERS_MAX}")
    for index, text in enumerate(network.ntp_server):
        if not _is_host(text):
            problems.add(f"{field}[{index}]", f"{quoted(text)} is no address and no host name")
    return tuple(dict.fromkeys(network.ntp_server))


_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # of DNS (RFC 1123)


def _is_host(text: str) -> bool:
    """Return whether it is an address without a scope, or a name (RFC 1123)."""
    try:
        return "%" not in text and not ip_address(text).is_unspecified
    except ValueError:
        # A text that ends in a number is meant as an address, a wrong one.
        return (
            len(text) <= 253
            and re.fullmatch(rf"({_LABEL}\.)*{_LABEL}\.?", text) is not None
            and re.search(r"(^|\.)[0-9]+\.?$", text) is None
        )


def _prefix(text: str) -> IPNetwork:
    """Parse a prefix, with host bits or without. Raises ValueError; also for a
    scope ("fe80::%eth0/64"), which Python accepts and nftables does not.
    """
    if "%" in text:
        raise ValueError("has a scope")
    return ip_network(text, strict=False)


def is_node_id(text: str) -> bool:
    """Return whether it can name a node: a lower-case DNS label (RFC 1123)."""
    return text == text.lower() and re.fullmatch(_LABEL, text) is not None


def _cluster(message: config_pb2.Cluster, problems: Problems) -> Cluster:
    if not is_node_id(message.node_id):
        problems.add(
            "cluster.node_id",
            f"{quoted(message.node_id)} is not 1 to 63 of a-z, 0-9 and, inside, -",
        )
    endpoints: list[str] = []
    if len(message.etcd_endpoint) > ENDPOINTS_MAX:
        problems.add(
            "cluster.etcd_endpoint",
            f"has {len(message.etcd_endpoint)} entries; at most {ENDPOINTS_MAX}",
        )
    for index, text in enumerate(message.etcd_endpoint[:ENDPOINTS_MAX]):
        endpoint = etcd_endpoint(text)
        field = f"cluster.etcd_endpoint[{index}]"
        if endpoint is None:
            problems.add(
                field, f'{quoted(text)} is not "HOST" or "HOST:PORT", IPv6 in brackets, no scheme'
            )
        elif endpoint in endpoints:
            problems.add(field, f'"{endpoint}" is there twice')
        else:
            endpoints.append(endpoint)
    if not message.etcd_endpoint:
        problems.add("cluster.etcd_endpoint", "is missing; at least one is needed")
    for name in ("ca_file", "cert_file", "key_file"):
        path = getattr(message, name)
        if path and (not path.startswith("/") or not path.isprintable()):
            problems.add(f"cluster.{name}", f"{quoted(path)} is not an absolute path")
    underlay = None
    if message.underlay_address:
        field = "cluster.underlay_address"
        underlay = net_config.parse_address(message.underlay_address, field, problems)
        if underlay is not None and (underlay.is_loopback or underlay.is_link_local):
            problems.add(field, f'"{underlay}" cannot be reached by other nodes')
    plain = Cluster(message.node_id, tuple(endpoints))
    return Cluster(
        message.node_id,
        tuple(endpoints),
        message.ca_file or plain.ca_file,
        message.cert_file or plain.cert_file,
        message.key_file or plain.key_file,
        underlay,
        message.key_rotation_hours * 3600.0 or None,
    )


def etcd_endpoint(text: str) -> str | None:
    """Return "HOST:PORT", with IPv6 in brackets; None when it is neither."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]{1,253})(?::([0-9]{1,5}))?", text)
    if found is None:
        return None
    host, port = found[1], int(found[2] or allocs.CURATOR_PORT)
    if not 0 < port < 65536:
        return None
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            return None
    return f"{host}:{port}"


def _prefixes(network: config_pb2.Network, problems: Problems) -> list[IPNetwork]:
    found: list[IPNetwork] = []
    if len(network.pod_prefix) > PREFIXES_MAX:
        problems.add(
            "network.pod_prefix", f"has {len(network.pod_prefix)} entries; at most {PREFIXES_MAX}"
        )
    for index, text in enumerate(network.pod_prefix[:PREFIXES_MAX]):
        field = f"network.pod_prefix[{index}]"
        try:
            prefix = _prefix(text)
        except ValueError:
            problems.add(field, f'{quoted(text)} is not a prefix, such as "10.192.0.0/24"')
            continue
        if "/" not in text:
            problems.add(field, f"{quoted(text)} has no prefix length")
            continue
        host, _, _ = text.partition("/")
        if net_config.parse_address(host, field, Problems()) != prefix.network_address and (
            str(prefix.network_address) != host
        ):
            problems.add(field, f'{quoted(text)} has host bits set; the prefix is "{prefix}"')
        elif prefix.is_multicast or prefix.is_loopback or prefix.is_link_local:
            problems.add(field, f'"{prefix}" is link-local, loopback or multicast')
        elif allocs.FIRST_HOP_IPV4 in prefix or allocs.FIRST_HOP_IPV6 in prefix:
            problems.add(field, f'"{prefix}" contains the first hop of workloads')
        else:
            clash = next((other for other in found if prefix.overlaps(other)), None)
            if clash is not None:
                problems.add(field, f'"{prefix}" overlaps "{clash}"')
            else:
                found.append(prefix)
    return found


def _reserved(
    network: config_pb2.Network, prefixes: list[IPNetwork], problems: Problems
) -> set[IPAddress]:
    found: set[IPAddress] = set()
    for index, text in enumerate(network.reserved_address):
        field = f"network.reserved_address[{index}]"
        address = net_config.parse_address(text, field, problems)
        if address is None:
            continue
        if not any(address in prefix for prefix in prefixes):
            # It may be in one that is wrong itself.
            if len(prefixes) == len(network.pod_prefix):
                problems.add(field, f'"{address}" is in none of the pod prefixes', by_others=True)
        elif address in found:
            problems.add(field, f'"{address}" is there twice')
        else:
            found.add(address)
    return found
