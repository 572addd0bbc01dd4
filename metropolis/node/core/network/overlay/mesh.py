# SPDX-License-Identifier: Apache-2.0
"""What the overlay is told, and what it tells: values that both sides share.

    curator --> mesh, peers, published --> overlay
    curator <------- identity ------------ overlay

Everything here was checked by who made it: keys have 32 bytes, no two peers
share a key or overlap in their prefixes, and no prefix is outside the networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from osbase import event
from osbase.ip import IPAddress as IPAddress
from osbase.ip import IPNetwork as IPNetwork


@dataclass(frozen=True)
class Peer:
    """Another node. next_public_key: it will have that; None: it will not."""

    node_id: str
    public_key: bytes
    endpoint: IPAddress
    port: int
    prefixes: tuple[IPNetwork, ...]
    next_public_key: bytes | None = None


@dataclass(frozen=True)
class Mesh:
    """The cluster as this node is part of it.

    networks: all pods', one route each. own: the prefixes this node holds;
    none while it has no part in the cluster. mtu: as configured; None: derived
    from the uplink. wanted_key_epoch: see Identity.epoch. absent: what nodes
    hold that have not been seen since this one began to look; of such a node,
    the kernel may know more.

    When it is set, the table of peers is complete: peers that are not in it
    are strangers.
    """

    networks: tuple[IPNetwork, ...] = ()
    own: tuple[IPNetwork, ...] = ()
    mtu: int | None = None
    wanted_key_epoch: int = 0
    absent: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True)
class Identity:
    """The node's WireGuard keys, as others have to know them.

    epoch: counts rotations; one is begun when the mesh wants a higher one.
    next_public_key: of a rotation under way, to be told to all peers first.
    switching: public_key is used only once it is published.
    """

    public_key: bytes
    epoch: int = 0
    next_public_key: bytes | None = None
    switching: bool = False


@dataclass(frozen=True)
class Exchange:
    """What the curator and the overlay tell each other, on one node.

    By the curator: mesh; peers, all other nodes by id; published, which keys of
    ours others can read. By the overlay: identity.
    """

    mesh: event.Value[Mesh] = field(default_factory=lambda: event.Value("mesh"))
    peers: event.Table[str, Peer] = field(default_factory=lambda: event.Table("peers"))
    published: event.Value[Identity] = field(default_factory=lambda: event.Value("published keys"))
    identity: event.Value[Identity] = field(default_factory=lambda: event.Value("keys"))
