# SPDX-License-Identifier: Apache-2.0
"""Peers by node, and what a change of them means for the kernel. Pure.

    node "a": key A, next A'    ->   peer A   at a's endpoint, a's prefixes
                                     peer A'  at a's endpoint, nothing

A node that is about to change its key is two peers for a while: the second
makes the kernel take handshakes by the next key. When the key has changed, the
prefixes move to it and the first is removed.

A peer that gets its first prefixes is prompted: a handshake is begun. Both ends
do so, and that of the one that is later succeeds: the other end knows it by
then. Left to traffic, a first packet that is sent too early costs WireGuard's
wait for a lost handshake, five seconds (REKEY_TIMEOUT); and who has just booted
would be sent packets of sessions from before for fifteen.

No keepalives: nodes reach each other directly, so there is no NAT whose state
would have to be kept alive, and an idle pair of nodes costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metropolis.node.core.network.overlay.device import DevicePeer, Endpoint, PeerChange
from metropolis.node.core.network.overlay.mesh import IPNetwork, Peer


@dataclass(frozen=True)
class Entry:
    """A peer as the kernel should have it."""

    endpoint: Endpoint
    allowed: frozenset[IPNetwork] = frozenset()


def entries_of(peer: Peer | None) -> dict[bytes, Entry]:
    """Return what a node is to the kernel, by public key."""
    if peer is None:
        return {}
    endpoint = Endpoint(peer.endpoint, peer.port)
    found = {peer.public_key: Entry(endpoint, frozenset(peer.prefixes))}
    if peer.next_public_key is not None:
        found.setdefault(peer.next_public_key, Entry(endpoint))
    return found


class Index:
    """What all nodes are to the kernel, kept up with changes of some."""

    def __init__(self) -> None:
        """Nobody."""
        self._nodes: dict[str, Peer] = {}
        self.entries: dict[bytes, Entry] = {}

    def change(self, changed: Mapping[str, Peer | None]) -> list[PeerChange]:
        """Take the nodes' newest, None: gone; return what that changes. Costs
        what the changed nodes are, not what the others are.
        """
        old: dict[bytes, Entry] = {}
        new: dict[bytes, Entry] = {}
        for node, peer in changed.items():
            before = self._nodes.pop(node, None)
            old |= entries_of(before)
            new |= entries_of(peer)
            if peer is not None:
                self._nodes[node] = peer
        for key in old:
            self.entries.pop(key, None)
        self.entries |= new
        return _difference(old, new)


def difference(
    present: Mapping[bytes, DevicePeer], wanted: Mapping[bytes, Entry]
) -> list[PeerChange]:
    """Return what makes the kernel's peers those that are wanted."""
    return _difference(present, wanted)


def _difference(
    old: Mapping[bytes, Entry | DevicePeer], new: Mapping[bytes, Entry]
) -> list[PeerChange]:
    changes = []
    for key, entry in new.items():
        before = old.get(key, DevicePeer())
        change = PeerChange(
            key,
            endpoint=entry.endpoint if entry.endpoint != before.endpoint else None,
            add=tuple(sorted(entry.allowed - before.allowed, key=str)),
            drop=tuple(sorted(before.allowed - entry.allowed, key=str)),
            prompt=bool(entry.allowed) and not before.allowed,
        )
        if change != PeerChange(key):
            changes.append(change)
    changes += [PeerChange(key, remove=True) for key in old if key not in new]
    return changes
