# SPDX-License-Identifier: Apache-2.0
"""A fake kernel for the overlay. Its state outlives close()."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from metropolis.node import allocs
from metropolis.node.core.network.overlay import keys
from metropolis.node.core.network.overlay.device import (
    Device,
    DevicePeer,
    LinkFound,
    Links,
    OverlayError,
    PeerChange,
)
from osbase.netlink.errors import BatchError, RequestError
from osbase.netlink.ifla import RTM_GETLINK
from osbase.netlink.route import RTN_UNICAST, Route


@dataclass
class FakeKernel:
    """A Kernel. exists: the link does. taken: something else has its name.

    fail: errors that the next calls raise. batches: the arguments of `apply`.
    prompted: public keys of peers with whom a handshake was begun.
    """

    exists: bool = False
    taken: bool = False
    mtu: int = 0
    up: bool = True
    group: int = allocs.LINK_GROUP_OVERLAY
    port: int = 0
    private_key: bytes | None = None
    peers: dict[bytes, DevicePeer] = field(default_factory=dict)
    present: Links = field(default_factory=Links)
    fail: list[Exception] = field(default_factory=list)
    batches: list[tuple[PeerChange, ...]] = field(default_factory=list)
    prompted: list[bytes] = field(default_factory=list)

    def _begin(self) -> None:
        if self.fail:
            raise self.fail.pop()

    def _need_link(self, what: str) -> None:
        self._begin()
        if not self.exists:
            raise BatchError([RequestError(0, RTM_GETLINK, what, errno.ENODEV)])

    def ensure_link(self, mtu: int, private_key: bytes, port: int) -> int | None:
        """See Kernel."""
        self._begin()
        if self.taken:
            raise OverlayError("the link overlay is of kind 'dummy', not of kind 'wireguard'")
        found = self.mtu if self.exists else None
        if not self.exists:
            self.exists, self.mtu = True, mtu
        self.up, self.group = True, allocs.LINK_GROUP_OVERLAY
        self._set_key(private_key)
        self.port = port
        return found

    def delete_link(self) -> None:
        """Delete it as others would: with peers, addresses and routes."""
        self.exists, self.private_key, self.peers = False, None, {}
        kept = frozenset(route for route in self.present.routes if not _through_link(route))
        self.present = Links(frozenset(), kept)

    def link(self) -> LinkFound | None:
        """See Kernel."""
        self._begin()
        if not self.exists or self.taken:
            return None
        return LinkFound(self.up, self.group, self.mtu)

    def set_mtu(self, mtu: int) -> None:
        """See Kernel."""
        self._need_link("set MTU")
        self.mtu = mtu

    def set_private_key(self, private_key: bytes) -> None:
        """See Kernel."""
        self._need_link("set key")
        self._set_key(private_key)

    def _set_key(self, private_key: bytes) -> None:
        self.private_key = keys.clamp(private_key)
        self.peers.pop(keys.public_key(private_key), None)

    def device(self) -> Device:
        """See Kernel."""
        self._need_link("list peers")
        key = None if self.private_key is None else keys.public_key(self.private_key)
        return Device(key, self.port, dict(self.peers))

    def apply(self, changes: Sequence[PeerChange]) -> int:
        """See Kernel. A batch is one message."""
        if not changes:
            return 0
        self._need_link("set peers")
        self.batches.append(tuple(changes))
        own = None if self.private_key is None else keys.public_key(self.private_key)
        for change in changes:
            key = change.public_key
            if change.remove or key == own:
                continue
            if change.endpoint is not None:
                peer = self.peers.setdefault(key, DevicePeer())
                self.peers[key] = replace(peer, endpoint=change.endpoint)
            if key in self.peers:
                for other, peer in list(self.peers.items()):
                    if not peer.allowed.isdisjoint(change.add):
                        self.peers[other] = replace(peer, allowed=peer.allowed - set(change.add))
                peer = self.peers[key]
                self.peers[key] = replace(peer, allowed=peer.allowed | set(change.add))
        for change in changes:
            if change.public_key in self.peers:
                peer = self.peers[change.public_key]
                self.peers[change.public_key] = replace(
                    peer, allowed=peer.allowed - set(change.drop)
                )
        for change in changes:
            if change.remove:
                self.peers.pop(change.public_key, None)
            if change.prompt and change.public_key in self.peers:
                self.prompted.append(change.public_key)
        return 1

    def links(self) -> Links:
        """See Kernel."""
        self._need_link("list addresses")
        return self.present

    def change_links(self, add: Links, remove: Links) -> None:
        """See Kernel."""
        self._need_link("add address")
        places = {(route.destination, route.metric) for route in add.routes}
        kept = {
            route
            for route in self.present.routes
            if (route.destination, route.metric) not in places
        }
        self.present = Links(
            (self.present.addresses | add.addresses) - remove.addresses,
            (frozenset(kept) | add.routes) - remove.routes,
        )

    def close(self) -> None:
        """See Kernel."""


def _through_link(route: Route) -> bool:
    return route.kind == RTN_UNICAST
