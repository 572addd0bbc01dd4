# SPDX-License-Identifier: Apache-2.0
"""The kernel as the manager sees it: elements of the table, and tracked flows,
with the errors of calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from metropolis.node.core.network.policy import revoke
from metropolis.node.core.network.policy.kernel import PROTOCOLS, PolicyKernel, PolicyKernelError
from metropolis.node.core.network.policy.lookup import Lookup
from metropolis.node.core.network.policy.tables import Identity, Tables
from metropolis.node.core.network.workloads.errors import Exhausted, KernelRefused
from metropolis.node.core.network.workloads.model import IPAddress
from osbase.ip import AF_INET, AF_INET6
from osbase.netlink.address import dump_addresses, parse_address
from osbase.netlink.errors import NetlinkError
from osbase.netlink.transport import NetlinkSocket


class LiveKernel:
    """Implements manager.Kernel, in the network namespace of the threads that
    call.
    """

    def __init__(self, kernel: PolicyKernel | None = None) -> None:
        self._kernel = kernel or PolicyKernel()

    def read(self) -> Tables | None:
        """See manager.Kernel."""
        with _refusals():
            try:
                return self._kernel.read()
            except PolicyKernelError:
                return None

    def apply(
        self,
        removed: Tables,
        added: Tables,
        *,
        policed: bool,
        present: Collection[Identity] | None,
    ) -> None:
        """See manager.Kernel."""
        with _refusals():
            self._kernel.apply(removed, added, policed=policed, present=present)

    def replace(self, tables: Tables, *, policed: bool) -> None:
        """See manager.Kernel."""
        with _refusals():
            self._kernel.replace(tables, policed=policed)

    def revoke(
        self,
        changed: Collection[Identity],
        lookup: Lookup,
        *,
        every: bool,
        ended: Collection[IPAddress] = (),
    ) -> int:
        """See manager.Kernel."""
        with _refusals():
            own = _own_addresses()

            def allowed(
                source: IPAddress, destination: IPAddress, protocol: int, port: int
            ) -> bool:
                return lookup.allows(source, destination, PROTOCOLS.get(protocol), port)

            judge = revoke.Judge(allowed, lookup.identity, own.__contains__, ended)
            return len(revoke.revoke(changed, judge, every=every).cut)

    def policed(self) -> bool:
        """See manager.Kernel."""
        with _refusals():
            try:
                return self._kernel.policed()
            except PolicyKernelError:
                return False


def _own_addresses() -> set[IPAddress]:
    """Return the node's."""
    with NetlinkSocket() as sock:
        found = [
            parse_address(one)
            for family in (AF_INET, AF_INET6)
            for one in sock.dump(dump_addresses(family, 0))
        ]
    return {one.address for one in found if one is not None}


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except PolicyKernelError as error:
        raise (Exhausted if error.full else KernelRefused)(str(error)) from error
    except (NetlinkError, OSError) as error:
        raise KernelRefused(f"policies: {error}") from error
