# SPDX-License-Identifier: Apache-2.0
"""The keys of the cluster's store and their meaning. Pure."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from metropolis.node.core.config import is_node_id
from osbase.ip import IPNetwork

ROOT: Final = b"/metropolis/v1/"
"""The prefix of all keys."""

CLUSTER: Final = ROOT + b"cluster"
MEMBERS: Final = ROOT + b"members/"
CLAIMS: Final = ROOT + b"claims/"
NODES: Final = ROOT + b"nodes/"

_MAX_KEY: Final = 128  # bytes; every well-formed key is shorter


class Kind(enum.Enum):
    """The kind of object that a key names."""

    CLUSTER = "cluster"
    MEMBER = "members"
    CLAIM = "claims"
    NODE = "nodes"


@dataclass(frozen=True)
class Key:
    """A parsed key. name: the node, or the prefix; "": the cluster."""

    kind: Kind
    name: str = ""
    prefix: IPNetwork | None = None


def member(node_id: str) -> bytes:
    """Return the key of a node's Member."""
    return MEMBERS + node_id.encode()


def claim(prefix: IPNetwork) -> bytes:
    """Return the key of a prefix's Claim."""
    return CLAIMS + str(prefix).encode()


def node(node_id: str) -> bytes:
    """Return the key of a node's NodeRecord."""
    return NODES + node_id.encode()


def end(prefix: bytes) -> bytes:
    """Return the end of the range of keys that begin with `prefix`: etcd's
    range_end is exclusive (rpc.proto, RangeRequest).
    """
    return prefix[:-1] + bytes([prefix[-1] + 1])


@functools.lru_cache(maxsize=1 << 15)
def prefix_of(text: str) -> IPNetwork:
    """Read a prefix, which has only one valid text. Raises ValueError.

    Results are cached, as each prefix is read three times: from its claim, its
    holder's Member and its NodeRecord.
    """
    if "%" in text:
        # A scope makes another text and object for the same addresses.
        raise ValueError("has a scope")
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError("is not a prefix without host bits") from None
    if str(network) != text:
        raise ValueError(f'should be written "{network}"')
    return network


def parse(key: bytes) -> Key | None:
    """Return the parsed key; None when it is not one of these.

    An object has only one key: "claims/10.0.0.0/024" is none.
    """
    if not key.startswith(ROOT) or len(key) > _MAX_KEY or not key.isascii():
        return None
    folder, _, name = key[len(ROOT) :].decode().partition("/")
    if folder == Kind.CLUSTER.value:
        return Key(Kind.CLUSTER) if key == CLUSTER else None
    if folder == Kind.CLAIM.value:
        try:
            return Key(Kind.CLAIM, name, prefix_of(name))
        except ValueError:
            return None
    if folder in (Kind.MEMBER.value, Kind.NODE.value) and is_node_id(name):
        return Key(Kind(folder), name)
    return None
