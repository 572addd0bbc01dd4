# SPDX-License-Identifier: Apache-2.0
"""Which attachment has which resource of the node, such as a host port.

Not thread-safe: the ledger's.
"""

from collections.abc import Hashable, Sequence
from itertools import chain

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.errors import AlreadyExists
from metropolis.node.core.network.workloads.parts import Part, Resource
from metropolis.node.core.network.workloads.validate import several


class Resources:
    """See the module. parts: that say what an attachment needs."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = {part.letter: part for part in parts}
        # The host index and the name of each resource's holder.
        self._holders: dict[Hashable, tuple[int, str]] = {}

    def take(self, record: Record, holder: str) -> None:
        """Take all that the attachment needs, or nothing. holder: its name, for
        errors of others. Raises AlreadyExists, which names the present holders.
        """
        needed = self._of(record)
        taken = [
            f"{one.text}: is taken by {self._holders[one.key][1]}"
            for one in needed
            if one.key in self._holders
        ]
        if taken:
            # A port may be taken for IPv4 and for IPv6, by the same holder.
            raise AlreadyExists(several(dict.fromkeys(taken)))
        for resource in needed:
            self._holders[resource.key] = (record.host_ifindex, holder)

    def holders(self, record: Record) -> set[int]:
        """Return the host indexes of those that have what it needs."""
        needed = (self._holders.get(resource.key) for resource in self._of(record))
        return {holder[0] for holder in needed if holder is not None}

    def adopt(self, record: Record, holder: str) -> None:
        """Take those of its resources that are free, at a start."""
        for resource in self._of(record):
            self._holders.setdefault(resource.key, (record.host_ifindex, holder))

    def release(self, record: Record) -> None:
        """Release the resources that the attachment has."""
        for resource in self._of(record):
            index, _ = self._holders.get(resource.key, (0, ""))
            if index == record.host_ifindex:
                del self._holders[resource.key]

    def _of(self, record: Record) -> list[Resource]:
        return list(
            chain.from_iterable(
                self._parts[letter].resources(text, record.ips) for letter, text in record.parts
            )
        )
