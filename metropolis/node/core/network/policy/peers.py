# SPDX-License-Identifier: Apache-2.0
"""The bits of selectors and networks that policies use, and which addresses
have them. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping

from metropolis.node.core.network.policy.index import SelectorIndex
from metropolis.node.core.network.policy.intervals import (
    LAST_ADDRESS,
    Intervals,
    elementary,
    of_networks,
)
from metropolis.node.core.network.policy.model import Networks, Peer, Policy
from metropolis.node.core.network.policy.programs import peers_of
from metropolis.node.core.network.policy.selectors import Labels
from metropolis.node.core.network.workloads.model import IPAddress


class Peers:
    """Bits of the peers and subjects of all policies; equal ones share a bit.
    The bit of a peer that no policy has any more is used again.

    selectors: those that are no networks.
    """

    def __init__(self, namespaces: Mapping[str, Labels]) -> None:
        self.selectors = SelectorIndex(namespaces)
        self.bits: dict[Peer, int] = {}
        self._users: dict[int, int] = {}
        self._free: list[int] = []
        self._networks: dict[int, Mapping[int, Intervals]] = {}
        self._bounds: dict[int, tuple[list[int], list[int]]] = {}

    def change(
        self, removed: Iterable[Policy], added: Iterable[Policy]
    ) -> tuple[dict[int, Peer], dict[int, Peer]]:
        """Change policies. Return the peers that are gone and those that are
        new, by bit. A bit is not in both.
        """
        new: dict[int, Peer] = {}
        for policy in added:
            for peer in peers_of(policy):
                if peer not in self.bits:
                    new[self._take(peer)] = peer
                self._users[self.bits[peer]] += 1
        gone: dict[int, Peer] = {}
        for policy in removed:
            for peer in peers_of(policy):
                bit = self.bits[peer]
                self._users[bit] -= 1
                if not self._users[bit]:
                    gone[bit] = peer
        for bit, peer in gone.items():
            del self.bits[peer], self._users[bit]
            self._free.append(bit)
            if isinstance(peer, Networks):
                del self._networks[bit]
            else:
                self.selectors.remove(bit)
        if any(isinstance(peer, Networks) for peer in [*new.values(), *gone.values()]):
            self._arrange()
        return gone, new

    def address_bits(self, ip: IPAddress) -> int:
        """Return the bits of the networks that contain an address."""
        starts, masks = self._bounds.get(ip.version, ([0], [0]))
        return masks[bisect_right(starts, int(ip)) - 1]

    def networks(self, positions: Iterable[int], version: int) -> list[tuple[int, Intervals]]:
        """Return the networks among the bits, as `elementary` takes them."""
        return [
            (1 << position, self._networks[position][version])
            for position in positions
            if position in self._networks
        ]

    def _take(self, peer: Peer) -> int:
        bit = self._free.pop() if self._free else len(self._users)
        self.bits[peer] = bit
        self._users[bit] = 0
        if isinstance(peer, Networks):
            self._networks[bit] = {version: of_networks(peer, version) for version in (4, 6)}
        else:
            self.selectors.add(bit, peer)
        return bit

    def _arrange(self) -> None:
        """Sort the networks, so that an address is found by its number."""
        for version, last in LAST_ADDRESS.items():
            parts = list(elementary(self.networks(self._networks, version), last))
            self._bounds[version] = [part[0] for part in parts], [part[2] for part in parts]
