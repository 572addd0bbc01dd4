# SPDX-License-Identifier: Apache-2.0
"""The addresses of workloads, each in the class that policies see. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from metropolis.node.core.network.policy.classes import Classes, Key, Numbers, Unit
from metropolis.node.core.network.policy.errors import PolicyError
from metropolis.node.core.network.policy.model import Networks, Peer, Workload
from metropolis.node.core.network.policy.peers import Peers
from metropolis.node.core.network.policy.programs import Named
from metropolis.node.core.network.policy.selectors import Labels, matches
from metropolis.node.core.network.policy.tables import WORLD, Identity
from metropolis.node.core.network.workloads.model import IPAddress


@dataclass(slots=True, eq=False)
class _Known:
    """A workload of the world. bits: of the selectors that match it. networks:
    by unit, the bits of the networks that contain it.
    """

    workload: Workload
    bits: int = 0
    named: Named = ()
    networks: dict[Unit, int] = field(default_factory=dict)


class Members:
    """Workloads and their addresses. A change of anything marks the workloads
    that it touches; `settle` moves these to their classes.
    """

    def __init__(self, peers: Peers, before: Numbers) -> None:
        self.classes = Classes(before)
        self.identities: dict[IPAddress, Identity] = {}
        self._before: Mapping[IPAddress, Identity] = before.identities
        self._peers = peers
        self._names: frozenset[str] = frozenset()
        self._workloads: Collection[Workload] = ()
        self._known: dict[str, _Known] = {}
        self._by_namespace: dict[str, set[_Known]] = {}
        self._owners: dict[Unit, _Known] = {}
        # In the order of marking. Stale: the bits must be found again, too.
        self._moved: dict[_Known, None] = {}
        self._stale: dict[_Known, None] = {}

    def set_namespaces(self, namespaces: Mapping[str, Labels]) -> None:
        """Replace the labels of namespaces."""
        for name in self._peers.selectors.set_namespaces(namespaces):
            self._stale.update(dict.fromkeys(self._by_namespace.get(name, ())))

    def set_names(self, names: frozenset[str]) -> None:
        """Replace the names of ports that policies use."""
        changed, self._names = self._names ^ names, names
        if changed:
            for known in self._known.values():
                if not changed.isdisjoint(known.workload.ports):
                    self._stale[known] = None

    def change_peers(self, gone: Mapping[int, Peer], new: Mapping[int, Peer]) -> None:
        """Follow a change of the peers, by bit."""
        for bit in gone:
            for one in self.classes.with_bit(bit):
                for unit in one.units:
                    known = self._owners[unit]
                    known.bits &= ~(1 << bit)
                    known.networks[unit] &= ~(1 << bit)
                    self._moved[known] = None
        for bit, peer in new.items():
            if not isinstance(peer, Networks):
                for name in self._peers.selectors.namespaces_of(peer, self._by_namespace):
                    for known in self._by_namespace[name]:
                        if matches(peer.workloads, known.workload.labels):
                            known.bits |= 1 << bit
                            self._moved[known] = None
        if any(isinstance(peer, Networks) for peer in new.values()):
            self._find_networks()

    def set_workloads(self, workloads: Collection[Workload]) -> None:
        """Replace the workloads.

        Raises PolicyError for a key or address that two of them have.
        """
        if workloads is self._workloads:
            return
        self._workloads = workloads
        after = {workload.key: workload for workload in workloads}
        if len(after) != len(workloads):
            raise PolicyError("two workloads have the same key")
        changed = [
            workload
            for key, workload in after.items()
            if (known := self._known.get(key)) is None
            or (known.workload is not workload and known.workload != workload)
        ]
        gone = [known for key, known in self._known.items() if key not in after]
        gone += [known for one in changed if (known := self._known.get(one.key))]
        units = {unit.ip: unit for known in gone for unit in self._remove(known)}
        for workload in changed:
            self._add(workload, units)
        for ip, unit in units.items():
            self.classes.remove(unit)
            self.identities.pop(ip, None)

    def settle(self) -> set[Identity]:
        """Move addresses to their classes, and number these; see Classes.

        Raises PolicyError if there are more classes than numbers.
        """
        for known in self._stale:
            known.bits = self._peers.selectors.bits(known.workload)
            known.named = self._named(known.workload)
        touched = self._moved | self._stale
        for known in touched:
            apart = any(known.networks.values())
            for unit, networks in known.networks.items():
                version = unit.ip.version if apart else 0
                key = Key(known.workload.known, known.bits | networks, known.named, version)
                self.classes.place(unit, key)
        changed = self.classes.settle()
        for number in changed:
            one = self.classes.by_number.get(number)
            for unit in one.units if one is not None else ():
                self.identities[unit.ip] = number
        for known in touched:
            for unit in known.networks:
                self.identities[unit.ip] = unit.number
        self._moved, self._stale, self._before = {}, {}, {}
        return changed

    def identity_of(self, workload: Workload) -> dict[IPAddress, Identity] | None:
        """Return the identities of a workload's addresses; None: at least one
        is of no class that there is.
        """
        bits, named = self._peers.selectors.bits(workload), self._named(workload)
        networks = [self._networks(workload, ip) for ip in workload.ips]
        apart = any(networks)
        result = {}
        for ip, mask in zip(workload.ips, networks, strict=True):
            key = Key(workload.known, bits | mask, named, ip.version if apart else 0)
            found = self.classes.find(key)
            if found is None:
                return None
            result[ip] = found.number
        return result

    def _add(self, workload: Workload, units: dict[IPAddress, Unit]) -> None:
        """units: of workloads that are gone; one that is used is removed."""
        known = self._known[workload.key] = _Known(workload)
        self._stale[known] = None
        if workload.known and workload.namespace is not None:
            self._by_namespace.setdefault(workload.namespace, set()).add(known)
        for ip in workload.ips:
            unit = units.pop(ip, None)
            if unit is None:
                if ip in self.identities:
                    raise PolicyError(f"{ip} is an address of {workload.key} and of another")
                unit = Unit(ip, (ip.version, int(ip)), self._before.get(ip, WORLD))
                self.identities[ip] = WORLD
            known.networks[unit] = self._networks(workload, ip)
            self._owners[unit] = known

    def _remove(self, known: _Known) -> Iterable[Unit]:
        workload = known.workload
        del self._known[workload.key]
        self._moved.pop(known, None)
        self._stale.pop(known, None)
        if workload.known and workload.namespace is not None:
            self._by_namespace[workload.namespace].remove(known)
        for unit in known.networks:
            del self._owners[unit]
        return known.networks

    def _find_networks(self) -> None:
        for known in self._known.values():
            if known.workload.known:
                for unit, before in known.networks.items():
                    if (bits := self._peers.address_bits(unit.ip)) != before:
                        known.networks[unit] = bits
                        self._moved[known] = None

    def _networks(self, workload: Workload, ip: IPAddress) -> int:
        return self._peers.address_bits(ip) if workload.known else 0

    def _named(self, workload: Workload) -> Named:
        if not workload.known:
            return ()
        names = sorted(self._names.intersection(workload.ports))
        return tuple((name, *workload.ports[name]) for name in names)
