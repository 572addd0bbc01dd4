# SPDX-License-Identifier: Apache-2.0
"""The kernel's expected state, computed from etcd, and its actual state. Pure.

The rules are few, and are implemented here again rather than imported from the
code under test: a member that is not removed, with a record, is a peer by each
of its keys; the prefixes that it holds claims on belong to the present key.
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from google.protobuf.message import DecodeError

from metropolis.node.core.curator.spec import curator_pb2 as pb
from osbase.ip import IPNetwork

_ROOT: Final = b"/metropolis/v1/"
_COLUMNS: Final = 8


@dataclass(frozen=True)
class Peer:
    """A peer of the kernel, without its key. endpoint None: not set."""

    endpoint: tuple[IPv4Address | IPv6Address, int] | None
    allowed: frozenset[IPNetwork]


class OracleError(ValueError):
    """The dump, or an entry, cannot be parsed."""


def expected(entries: Mapping[bytes, bytes], own: str) -> dict[bytes, Peer]:
    """Return the expected peers by public key. entries: all of etcd, by key.
    own: the node under test. Raises OracleError.
    """
    held: dict[str, set[IPNetwork]] = {}
    nodes: dict[str, pb.NodeRecord] = {}
    removed = set()
    for key, value in entries.items():
        kind, _, name = key.removeprefix(_ROOT).decode().partition("/")
        try:
            if kind == "claims":
                holder = pb.Claim.FromString(value).node_id
                held.setdefault(holder, set()).add(ip_network(name))
            elif kind == "nodes":
                nodes[name] = pb.NodeRecord.FromString(value)
            elif kind == "members" and pb.Member.FromString(value).state == pb.Member.REMOVED:
                removed.add(name)
        except (DecodeError, ValueError) as error:
            raise OracleError(f"{key!r}: {error}") from error
    found = {}
    for name, record in nodes.items():
        if name == own or name in removed or name not in held:
            continue
        endpoint = (ip_address(record.underlay_address), record.wireguard_port)
        if record.next_public_key:
            found[record.next_public_key] = Peer(endpoint, frozenset())
        found[record.public_key] = Peer(endpoint, frozenset(held[name]))
    return found


def parse_dump(text: str) -> dict[bytes, Peer]:
    """Parse `wg show LINK dump` (wg(8)); return peers by public key. Raises
    OracleError.
    """
    found = {}
    for line in text.splitlines()[1:]:
        columns = line.split("\t")
        if len(columns) != _COLUMNS:
            raise OracleError(f"{len(columns)} columns, not {_COLUMNS}: {line!r}")
        key, _, where, allowed = columns[:4]
        try:
            endpoint = None
            if where != "(none)":
                host, _, port = where.rpartition(":")
                endpoint = (ip_address(host.strip("[]")), int(port))
            networks = [] if allowed == "(none)" else allowed.split(",")
            found[_key(key)] = Peer(endpoint, frozenset(map(ip_network, networks)))
        except ValueError as error:
            raise OracleError(f"{line!r}: {error}") from error
    return found


def _key(text: str) -> bytes:
    key = base64.b64decode(text, validate=True)
    if len(key) != 32:
        raise ValueError(f"a key of {len(key)} bytes")
    return key


def differences(wanted: Mapping[bytes, Peer], found: Mapping[bytes, Peer]) -> list[str]:
    """Return the differences, a line each."""
    return [
        f"{key.hex()[:16]}: is {_tell(found.get(key))}, should be {_tell(wanted.get(key))}"
        for key in _union(wanted, found)
        if wanted.get(key) != found.get(key)
    ]


def _union(*maps: Iterable[bytes]) -> dict[bytes, None]:
    return {key: None for each in maps for key in each}


def _tell(peer: Peer | None) -> str:
    if peer is None:
        return "absent"
    at = "nowhere" if peer.endpoint is None else "{} port {}".format(*peer.endpoint)
    return f"at {at} with {', '.join(sorted(map(str, peer.allowed))) or 'nothing'}"
