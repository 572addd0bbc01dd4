# SPDX-License-Identifier: Apache-2.0
"""The values of the cluster's store: bytes in, checked value objects out. Pure.

A holder of credentials for etcd can write anything there. A value passes the
checks here by itself, or it is refused as a whole: RecordError has the reason,
printable and within a line. Whether values fit each other (two nodes with one
key, prefixes claimed by another) is for the directory to decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from metropolis.node import allocs
from metropolis.node.core.config import MTU_MAX, MTU_MIN, is_node_id
from metropolis.node.core.curator.keys import prefix_of
from metropolis.node.core.curator.spec import curator_pb2 as pb
from osbase.ip import IPAddress as IPAddress
from osbase.ip import IPNetwork as IPNetwork

MAX_VALUE: Final = 16384
"""Bytes; a longer value is refused unread."""

_MAX_CLUSTER: Final = MAX_VALUE
_MAX_OTHER: Final = 4096  # bytes
_MAX_NETWORKS: Final = 64
_MAX_PREFIXES: Final = 64
_MAX_VERSION: Final = 128  # characters
_KEY: Final = 32  # bytes: X25519 (RFC 7748, section 5)
_LONGEST: Final = {4: 30, 6: 126}


class RecordError(Exception):
    """The value cannot be used; the text says why, in one printable line."""


@dataclass(frozen=True)
class PodNetwork:
    """A network of pods, and the prefix length of a node's part."""

    prefix: IPNetwork
    node_prefix_length: int

    def __str__(self) -> str:
        """Return it as operators write it: "10.200.0.0/16:24"."""
        return f"{self.prefix}:{self.node_prefix_length}"

    def gives(self, prefix: IPNetwork) -> bool:
        """Return whether a node may claim `prefix` in it."""
        return prefix.prefixlen == self.node_prefix_length and _inside(prefix, self.prefix)

    @property
    def size(self) -> int:
        """Return how many prefixes it has."""
        return 1 << (self.node_prefix_length - self.prefix.prefixlen)

    def nth(self, index: int) -> IPNetwork:
        """Return the prefix with this index, from 0."""
        step = self.prefix.max_prefixlen - self.node_prefix_length
        first = int(self.prefix.network_address) + (index << step)
        return type(self.prefix)((first, self.node_prefix_length))


@dataclass(frozen=True)
class ClusterConfig:
    """Settings of all nodes. mtu None: each derives it from its uplink."""

    networks: tuple[PodNetwork, ...]
    mtu: int | None = None

    def gives(self, prefix: IPNetwork) -> bool:
        """Return whether a node may claim `prefix`."""
        return any(network.gives(prefix) for network in self.networks)

    @property
    def families(self) -> tuple[int, ...]:
        """Return 4, 6 or both: a node claims one prefix of each family."""
        return tuple(dict.fromkeys(network.prefix.version for network in self.networks))


@dataclass(frozen=True)
class Member:
    """A node's membership. prefixes: those it last published."""

    removed: bool
    wanted_key_epoch: int = 0
    prefixes: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True)
class Record:
    """How a node is reached."""

    node_id: str
    public_key: bytes
    next_public_key: bytes | None
    key_epoch: int
    address: IPAddress
    port: int
    prefixes: tuple[IPNetwork, ...]
    version: str

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Return all its keys."""
        return (self.public_key,) if self.next_public_key is None else (
            self.public_key, self.next_public_key,
        )  # fmt: skip


def decode_cluster(data: bytes) -> ClusterConfig:
    """Decode a ClusterConfig. Raises RecordError."""
    message = pb.ClusterConfig()
    _parse(message, data, _MAX_CLUSTER)
    if not 0 < len(message.pod_network) <= _MAX_NETWORKS:
        raise RecordError(
            f"has {len(message.pod_network)} pod networks; 1 to {_MAX_NETWORKS} are possible"
        )
    networks: list[PodNetwork] = []
    for item in message.pod_network:
        networks.append(pod_network(item.prefix, item.node_prefix_length))
        check_apart(networks)
    mtu = message.mtu
    if mtu and not MTU_MIN <= mtu <= MTU_MAX:
        raise RecordError(f"mtu {mtu} is not between {MTU_MIN} and {MTU_MAX}")
    return ClusterConfig(tuple(networks), mtu or None)


def pod_network(prefix: str, length: int) -> PodNetwork:
    """Check a network of pods. Raises RecordError."""
    network = _prefix(prefix)
    if network.is_multicast or network.is_loopback or network.is_link_local:
        raise RecordError(f"pod network {network} is multicast, loopback or link-local")
    if network.prefixlen == 0:
        raise RecordError(f"pod network {network} is everything")
    if allocs.FIRST_HOP_IPV4 in network or allocs.FIRST_HOP_IPV6 in network:
        raise RecordError(f"pod network {network} contains the first hop of workloads")
    longest = _LONGEST[network.version]
    if not network.prefixlen <= length <= longest:
        raise RecordError(
            f"pod network {network}: a node's prefix of /{length} is not between "
            f"/{network.prefixlen} and /{longest}"
        )
    return PodNetwork(network, length)


def check_apart(networks: list[PodNetwork]) -> None:
    """Check the last against the others. Raises RecordError on overlap."""
    *before, last = networks
    for other in before:
        if last.prefix.overlaps(other.prefix):
            raise RecordError(f"pod networks {other.prefix} and {last.prefix} overlap")


def encode_cluster(config: ClusterConfig) -> bytes:
    """Encode; the inverse of decode_cluster."""
    return pb.ClusterConfig(
        pod_network=[
            pb.PodNetwork(prefix=str(one.prefix), node_prefix_length=one.node_prefix_length)
            for one in config.networks
        ],
        mtu=config.mtu or 0,
    ).SerializeToString(deterministic=True)


def decode_member(data: bytes) -> Member:
    """Decode a Member. Raises RecordError."""
    message = pb.Member()
    _parse(message, data, _MAX_OTHER)
    if message.state not in (pb.Member.ACTIVE, pb.Member.REMOVED):
        raise RecordError(f"state {message.state} is neither ACTIVE nor REMOVED")
    removed = message.state == pb.Member.REMOVED
    return Member(removed, message.wanted_key_epoch, _prefixes(message.prefix))


def encode_member(member: Member) -> bytes:
    """Encode; the inverse of decode_member."""
    return pb.Member(
        state=pb.Member.REMOVED if member.removed else pb.Member.ACTIVE,
        prefix=[str(prefix) for prefix in member.prefixes],
        wanted_key_epoch=member.wanted_key_epoch,
    ).SerializeToString(deterministic=True)


def decode_claim(data: bytes) -> str:
    """Decode a Claim: the node, "" when it is free. Raises RecordError."""
    message = pb.Claim()
    _parse(message, data, _MAX_OTHER)
    if message.node_id and not is_node_id(message.node_id):
        raise RecordError(f"node_id {quoted(message.node_id)} names no node")
    return message.node_id


def encode_claim(node_id: str) -> bytes:
    """Encode; the inverse of decode_claim."""
    return pb.Claim(node_id=node_id).SerializeToString()


def decode_record(data: bytes) -> Record:
    """Decode a NodeRecord by itself. Raises RecordError."""
    message = pb.NodeRecord()
    _parse(message, data, _MAX_OTHER)
    if not is_node_id(message.node_id):
        raise RecordError(f"node_id {quoted(message.node_id)} names no node")
    public_key = _public_key("public_key", message.public_key)
    next_key = None
    if message.next_public_key:
        next_key = _public_key("next_public_key", message.next_public_key)
        if next_key == public_key:
            raise RecordError("next_public_key is public_key")
    address = _address(message.underlay_address)
    port = message.wireguard_port
    if not 0 < port < 65536:
        raise RecordError(f"wireguard_port {port} is not between 1 and 65535")
    version = message.software_version
    if len(version) > _MAX_VERSION or not version.isprintable():
        raise RecordError(f"software_version {quoted(version)} is too long or not printable")
    prefixes = _prefixes(message.pod_prefix)
    return Record(
        message.node_id, public_key, next_key, message.key_epoch, address, port, prefixes, version
    )


def encode_record(record: Record) -> bytes:
    """Encode; the inverse of decode_record."""
    return pb.NodeRecord(
        node_id=record.node_id,
        public_key=record.public_key,
        next_public_key=record.next_public_key or b"",
        key_epoch=record.key_epoch,
        underlay_address=record.address.packed,
        wireguard_port=record.port,
        pod_prefix=[str(prefix) for prefix in record.prefixes],
        software_version=record.version,
    ).SerializeToString(deterministic=True)


def check_address(address: IPAddress, config: ClusterConfig) -> None:
    """Check that other nodes can send to it. Raises RecordError."""
    for network in config.networks:
        if address in network.prefix:
            raise RecordError(f"underlay_address {address} is inside pod network {network.prefix}")


def quoted(text: str) -> str:
    """Return it as printable ASCII, short, in double quotes."""
    cut = text if len(text) <= 40 else text[:40] + "..."
    return '"' + cut.encode("ascii", "backslashreplace").decode().translate(_CONTROLS) + '"'


_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def _parse(message: Message, data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise RecordError(f"is over {limit} bytes")
    try:
        message.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise RecordError("is not the message it should be") from error


def _public_key(field: str, key: bytes) -> bytes:
    if len(key) != _KEY:
        raise RecordError(f"{field} has {len(key)} bytes, not {_KEY}")
    if not any(key):
        raise RecordError(f"{field} is zero")
    return key


def _address(packed: bytes) -> IPAddress:
    if len(packed) not in (4, 16):
        raise RecordError(f"underlay_address has {len(packed)} bytes, neither 4 nor 16")
    address = ip_address(packed)
    wrong = (
        address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or address.is_unspecified
        # 0.0.0.0/8 and 240.0.0.0/4 (RFC 6890); IPv4 in IPv6 is not on the wire.
        or (isinstance(address, IPv4Address) and not 0 < address.packed[0] < 240)
        or (isinstance(address, IPv6Address) and address.ipv4_mapped is not None)
    )
    if wrong:
        raise RecordError(f"underlay_address {address} cannot be sent to by other nodes")
    return address


def _prefix(text: str) -> IPNetwork:
    try:
        return prefix_of(text)
    except ValueError as error:
        raise RecordError(f"{quoted(text)} {error}") from None


def _prefixes(texts: Iterable[str]) -> tuple[IPNetwork, ...]:
    found = tuple(_prefix(text) for text in texts)
    if len(found) > _MAX_PREFIXES:
        raise RecordError(f"has {len(found)} prefixes, over {_MAX_PREFIXES}")
    if len(set(found)) != len(found):
        raise RecordError("has a prefix twice")
    return found


def _inside(prefix: IPNetwork, network: Any) -> bool:
    return prefix.version == network.version and bool(prefix.subnet_of(network))
