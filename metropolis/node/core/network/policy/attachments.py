# SPDX-License-Identifier: Apache-2.0
"""The attachments that policies are about, and what their workloads are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from metropolis.node.core.network.policy.model import Protocol, Workload
from metropolis.node.core.network.workloads.model import Identity, IPAddress

type Key = tuple[str, str]
"""Workload id and interface name."""

NO_LABELS = Identity()


@dataclass(frozen=True, slots=True)
class Member:
    """An attachment. ifindex: of its link on the host, which tells it from a
    later one of the same key.
    """

    key: Key
    ifindex: int
    ips: tuple[IPAddress, ...]


class Attachments:
    """See the module. Not thread-safe."""

    def __init__(self) -> None:
        self._members: dict[Key, Member] = {}
        self._of_workload: dict[str, set[Key]] = {}
        self._identities: dict[str, Identity] = {}
        self._owners: dict[IPAddress, Key] = {}
        # As policies see them: the same objects while nothing changes, so that
        # a compilation sees at once which did.
        self._workloads: dict[Key, Workload] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def put(self, member: Member) -> Member | None:
        """Add or replace an attachment; return the one before. Its addresses
        are no others' any more: they have ended, and are forgotten later.
        """
        before = self._members.get(member.key)
        if before is not None:
            self._disown(before)
        for ip in member.ips:
            owner = self._owners.get(ip)
            if owner is not None:
                other = self._members[owner]
                rest = tuple(one for one in other.ips if one != ip)
                self._members[owner] = replace(other, ips=rest)
                self._workloads.pop(owner, None)
            self._owners[ip] = member.key
        self._members[member.key] = member
        self._workloads.pop(member.key, None)
        self._of_workload.setdefault(member.key[0], set()).add(member.key)
        return before

    def has(self, ip: IPAddress) -> bool:
        """Return whether an attachment has the address."""
        return ip in self._owners

    def ips(self, key: Key, ifindex: int) -> tuple[IPAddress, ...]:
        """Return the addresses of an attachment, () if there is a later one."""
        found = self._members.get(key)
        return () if found is None or found.ifindex != ifindex else found.ips

    def drop(self, key: Key, ifindex: int) -> bool:
        """Remove an attachment, unless it is a later one; return whether its
        workload has no other.
        """
        found = self._members.get(key)
        if found is None or found.ifindex != ifindex:
            return False
        self._disown(found)
        del self._members[key]
        self._workloads.pop(key, None)
        keys = self._of_workload[key[0]]
        keys.discard(key)
        if keys:
            return False
        del self._of_workload[key[0]]
        self._identities.pop(key[0], None)
        return True

    def _disown(self, member: Member) -> None:
        for ip in member.ips:
            del self._owners[ip]

    def of(self, workload_id: str) -> list[Member]:
        """Return a workload's attachments."""
        return [self._members[key] for key in sorted(self._of_workload.get(workload_id, ()))]

    def identity(self, workload_id: str) -> Identity:
        """Return what a workload is."""
        return self._identities.get(workload_id, NO_LABELS)

    def identify(self, workload_id: str, identity: Identity) -> None:
        """Say what a workload is."""
        self._identities[workload_id] = identity
        self._look_again(workload_id)

    def is_identified(self, workload_id: str) -> bool:
        """Return whether something was said of a workload."""
        return workload_id in self._identities

    def disown(self, workload_id: str) -> None:
        """Take back what was said of a workload."""
        self._identities.pop(workload_id, None)
        self._look_again(workload_id)

    def _look_again(self, workload_id: str) -> None:
        for key in self._of_workload.get(workload_id, ()):
            self._workloads.pop(key, None)

    def unknown(self) -> list[str]:
        """Return the workloads whose labels are not known."""
        return sorted(one for one, identity in self._identities.items() if not identity.known)

    def workload(self, member: Member) -> Workload:
        """Return an attachment as policies see it."""
        found = self._workloads.get(member.key)
        if found is None:
            found = self._workloads[member.key] = self._workload(member)
        return found

    def _workload(self, member: Member) -> Workload:
        identity = self.identity(member.key[0])
        return Workload(
            name_of(member.key),
            member.ips,
            identity.namespace if identity.known else None,
            identity.labels,
            {name: (Protocol(word), port) for name, (word, port) in identity.ports.items()},
            identity.known,
        )


def name_of(key: Key) -> str:
    """Return the key of model.Workload. An interface name has no space."""
    return f"{key[0]} {key[1]}"
