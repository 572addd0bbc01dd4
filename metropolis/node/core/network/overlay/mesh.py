# SPDX-License-Identifier: Apache-2.0
"""Values that the curator and the overlay exchange.

    curator --> mesh, peers, published --> overlay
    curator <------- identity ------------ overlay

The sender has checked all values: keys have 32 bytes, no two peers share a key
or overlap in their prefixes, and no prefix is outside the networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from osbase import event
from osbase.ip import IPAddress as IPAddress
from osbase.ip import IPNetwork as IPNetwork


@dataclass(frozen=True)
class Peer:
    """Another node. next_public_key: announced for a rotation, or None."""

    node_id: str
    public_key: bytes
    endpoint: IPAddress
    port: int
    prefixes: tuple[IPNetwork, ...]
    next_public_key: bytes | None = None


@dataclass(frozen=True)
class Mesh:
    """The cluster as this node takes part in it.

    networks: all pods', one route each. own: the prefixes this node holds;
    empty while it has no part in the cluster. mtu: as configured; None: derived
    from the uplink. wanted_key_epoch: see Identity.epoch. absent: prefixes of
    nodes that have not been seen since this one started; the kernel may have
    peers for them.

    When it is set, the table of peers is complete: other peers are unlisted.
    """

    networks: tuple[IPNetwork, ...] = ()
    own: tuple[IPNetwork, ...] = ()
    mtu: int | None = None
    wanted_key_epoch: int = 0
    absent: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True)
class Identity:
    """The node's WireGuard keys, for the other nodes.

    epoch: number of the rotation; a rotation begins when the mesh wants a
    higher one. next_public_key: in a rotation under way, published to all peers
    first. switching: public_key is used only once it is published.
    """

    public_key: bytes
    epoch: int = 0
    next_public_key: bytes | None = None
    switching: bool = False


@dataclass(frozen=True)
class Exchange:
    """The values that the curator and the overlay of one node share.

    The curator sets mesh; peers, all other nodes by id; published, our keys as
    others can read them. The overlay sets identity.
    """

    mesh: event.Value[Mesh] = field(default_factory=lambda: event.Value("mesh"))
    peers: event.Table[str, Peer] = field(default_factory=lambda: event.Table("peers"))
    published: event.Value[Identity] = field(default_factory=lambda: event.Value("published keys"))
    identity: event.Value[Identity] = field(default_factory=lambda: event.Value("keys"))
