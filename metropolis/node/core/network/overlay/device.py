# SPDX-License-Identifier: Apache-2.0
"""The overlay's interface to the kernel, and its values.

It has two implementations, `kernel.LinuxKernel` and `testing.fake.FakeKernel`;
both pass the same suite, `testing.contract`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from metropolis.node.core.network.overlay.mesh import IPAddress, IPNetwork
from osbase.netlink.route import Route

KEY_SIZE: Final = 32
"""Bytes of a key, private or public (linux/wireguard.h, WG_KEY_LEN)."""


class OverlayError(Exception):
    """The overlay cannot do its work; the text says why."""


@dataclass(frozen=True)
class Endpoint:
    """The underlay address and port of a peer."""

    address: IPAddress
    port: int


@dataclass(frozen=True)
class DevicePeer:
    """A peer as the kernel has it. handshake_ns: time of the last complete
    handshake, nanoseconds since 1970; 0: there was none.
    """

    endpoint: Endpoint | None = None
    allowed: frozenset[IPNetwork] = frozenset()
    keepalive_s: int = 0
    handshake_ns: int = 0


@dataclass(frozen=True)
class Device:
    """The link's WireGuard state. public_key None: it has no key. peers: by
    public key.
    """

    public_key: bytes | None
    port: int
    peers: Mapping[bytes, DevicePeer]


@dataclass(frozen=True)
class LinkFound:
    """The link itself. mtu: bytes."""

    up: bool
    group: int
    mtu: int


@dataclass(frozen=True)
class PeerChange:
    """A change of one peer.

    endpoint: None leaves it; a missing peer is made only if there is one. add:
    prefixes to allow; they move here from other peers. drop: only those that
    the peer holds. prompt: begin a handshake now if there is no session.
    """

    public_key: bytes
    endpoint: Endpoint | None = None
    add: tuple[IPNetwork, ...] = ()
    drop: tuple[IPNetwork, ...] = ()
    remove: bool = False
    prompt: bool = False


@dataclass(frozen=True)
class Links:
    """The overlay's addresses and routes: the addresses of its link, and all
    routes of its protocol.
    """

    addresses: frozenset[IPAddress] = frozenset()
    routes: frozenset[Route] = frozenset()


class Kernel(Protocol):
    """A call may block for as long as the kernel works: use a thread, one at a
    time. All raise NetlinkError, and leave a state that a dump shows.
    """

    def ensure_link(self, mtu: int, private_key: bytes, port: int) -> int | None:
        """Make the link have this key and port, and be up. Right settings are
        not written, so sessions stay. An existing link keeps its MTU, which is
        returned, bytes; None: the link is new.

        Raises OverlayError when something else has its name.
        """

    def link(self) -> LinkFound | None:
        """Return the link's state; None: there is no link of this kind."""

    def set_mtu(self, mtu: int) -> None:
        """Set the link's MTU, bytes."""

    def set_private_key(self, private_key: bytes) -> None:
        """Change the key: this node is now another peer to its peers. Existing
        sessions receive until they expire, and do not send.
        """

    def device(self) -> Device:
        """Return the link's key, port and peers."""

    def apply(self, changes: Sequence[PeerChange]) -> int:
        """Carry the changes out; return the number of messages.

        All additions come first, then drops, then removals: a prefix that moves
        from a peer to another belongs to one of them at any moment.
        """

    def links(self) -> Links:
        """Return the addresses and routes that exist."""

    def change_links(self, add: Links, remove: Links) -> None:
        """Add, and then remove. A route replaces the one with the same
        destination and metric.
        """

    def close(self) -> None:
        """Close the sockets. The next call opens new ones."""
