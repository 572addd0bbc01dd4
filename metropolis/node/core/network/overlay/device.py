# SPDX-License-Identifier: Apache-2.0
"""What the overlay asks of the kernel: a narrow interface, and its words.

Of it there are two: `kernel.LinuxKernel`, and `testing.fake.FakeKernel`, and
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
    """The overlay cannot do its work, and why."""


@dataclass(frozen=True)
class Endpoint:
    """Where a peer is sent to, outside of the overlay."""

    address: IPAddress
    port: int


@dataclass(frozen=True)
class DevicePeer:
    """A peer as the kernel has it. handshake_ns: when the last was complete, in
    nanoseconds since 1970; 0: there was none.
    """

    endpoint: Endpoint | None = None
    allowed: frozenset[IPNetwork] = frozenset()
    keepalive_s: int = 0
    handshake_ns: int = 0


@dataclass(frozen=True)
class Device:
    """The link's WireGuard side. public_key None: it has no key. peers: by
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
    """What is to become of one peer.

    endpoint: None leaves it; a peer that is not there is made only if there is
    one. add: what other peers may hold moves from them. drop: only what it
    holds. prompt: begin a handshake now if there is no session.
    """

    public_key: bytes
    endpoint: Endpoint | None = None
    add: tuple[IPNetwork, ...] = ()
    drop: tuple[IPNetwork, ...] = ()
    remove: bool = False
    prompt: bool = False


@dataclass(frozen=True)
class Links:
    """Addresses and routes of ours: the addresses of the overlay's link, all
    routes of the overlay's protocol.
    """

    addresses: frozenset[IPAddress] = frozenset()
    routes: frozenset[Route] = frozenset()


class Kernel(Protocol):
    """Every call may block for as long as the kernel works: use a thread, one
    at a time. All raise NetlinkError, and leave a state that a dump tells.
    """

    def ensure_link(self, mtu: int, private_key: bytes, port: int) -> int | None:
        """Make the link have this key and port, and be up. What is right stays
        untouched, sessions included. Of a link that was there the MTU stays,
        and is returned, bytes; None: it was not there.

        Raises OverlayError when something else has its name.
        """

    def link(self) -> LinkFound | None:
        """Return how the link is; None: there is none of this kind."""

    def set_mtu(self, mtu: int) -> None:
        """Of the link, bytes."""

    def set_private_key(self, private_key: bytes) -> None:
        """From now on this node is another one to its peers. Sessions take
        what comes in by them until they expire, and nothing is sent by them.
        """

    def device(self) -> Device:
        """Return all of it."""

    def apply(self, changes: Sequence[PeerChange]) -> int:
        """Carry the changes out; return how many messages that took.

        First everything is added, then dropped, then removed: what moves from
        a peer to another belongs to one of them at any moment.
        """

    def links(self) -> Links:
        """Return what there is of ours."""

    def change_links(self, add: Links, remove: Links) -> None:
        """Add, and then remove. A route replaces one of its destination and
        metric.
        """

    def close(self) -> None:
        """Give up sockets. The next call opens new ones."""
