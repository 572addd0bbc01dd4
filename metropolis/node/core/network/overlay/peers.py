# SPDX-License-Identifier: Apache-2.0
"""Peers by node, and the effect of a change on the kernel. Pure.

    node "a": key A, next A'    ->   peer A   at a's endpoint, with a's prefixes
                                     peer A'  at a's endpoint, without any

A node that is about to change its key is two peers for a while: with the second
the kernel accepts handshakes by the next key. When the key has changed, the
prefixes move to it and the first is removed.

A peer that gets its first prefixes is prompted: a handshake is begun. Both ends
do so, and the later of the two succeeds, since the other end knows it by then.
If traffic began the handshake, a first packet that is sent too early would cost
WireGuard's wait for a lost handshake, five seconds (REKEY_TIMEOUT); and a node
that has just booted would get packets of former sessions for fifteen.

No keepalives: nodes reach each other directly, so no NAT needs its state kept
alive, and an idle pair of nodes costs nothing.
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
    """Return the kernel's peers for a node, by public key."""
    if peer is None:
        return {}
    endpoint = Endpoint(peer.endpoint, peer.port)
    found = {peer.public_key: Entry(endpoint, frozenset(peer.prefixes))}
    if peer.next_public_key is not None:
        found.setdefault(peer.next_public_key, Entry(endpoint))
    return found


class Index:
    """The kernel's peers for all nodes; updated by changes of some nodes."""

    def __init__(self) -> None:
        """Begin without nodes."""
        self._nodes: dict[str, Peer] = {}
        self.entries: dict[bytes, Entry] = {}

    def change(self, changed: Mapping[str, Peer | None]) -> list[PeerChange]:
        """Apply the nodes' newest values, None: gone; return the changes of the
        kernel's peers. The cost depends on the changed nodes only.
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
    """Return the changes that turn the kernel's peers into the wanted ones."""
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
