# SPDX-License-Identifier: Apache-2.0
"""Links that are left alone; their addresses and resources are not handed out.

Not thread-safe: the ledger's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from metropolis.node.core.network.workloads.datapath.interface import Held, Record
from metropolis.node.core.network.workloads.engine.pool import AddressPool
from metropolis.node.core.network.workloads.engine.resources import Resources
from metropolis.node.core.network.workloads.model import IPAddress
from metropolis.node.core.network.workloads.validate import show


class HeldLinks:
    """See the module. pool, resources: where what they have is in use."""

    def __init__(self, pool: AddressPool, resources: Resources) -> None:
        self._pool = pool
        self._resources = resources
        self._by_index: dict[int, Held] = {}

    def adopt(self, found: Iterable[Held], used: set[IPAddress]) -> None:
        """Hold links. used: addresses of attachments."""
        used = set(used)
        for one in found:
            ips = tuple(ip for ip in one.ips if ip not in used)
            used.update(ips)
            holder = f"link {show(one.name)}, which is left alone"
            for ip in ips:
                self._pool.adopt(ip, holder)
            if one.record is not None:
                self._resources.adopt(one.record, holder)
            self._by_index[one.ifindex] = replace(one, ips=ips)

    def remove(self, ifindex: int) -> Held | None:
        """Stop holding a link. Returns it, if held; what it has stays in use
        until `release`.
        """
        return self._by_index.pop(ifindex, None)

    def release(self, held: Held) -> None:
        """Free what a link has that was removed."""
        for ip in held.ips:
            self._pool.release(ip)
        if held.record is not None:
            self._resources.release(held.record)

    def claim(self, host_interface: Callable[[str], str]) -> list[Record]:
        """Return the records of links that lost their workload's id and bear
        the name that `host_interface` gives for their interface; they are held
        no more, and what they have stays in use.
        """
        claimed: list[Record] = []
        for index, held in list(self._by_index.items()):
            record = held.record
            if record is None or held.ips != record.ips:
                continue
            if held.name == host_interface(record.if_name):
                del self._by_index[index]
                claimed.append(record)
        return claimed

    def __iter__(self) -> Iterator[Held]:
        return iter(self._by_index.values())

    def __bool__(self) -> bool:
        return bool(self._by_index)
