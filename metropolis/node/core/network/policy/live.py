# SPDX-License-Identifier: Apache-2.0
"""The kernel as the manager sees it: elements of the table, and tracked flows,
with the errors of calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from metropolis.node.core.network.policy.kernel import PolicyKernel, PolicyKernelError
from metropolis.node.core.network.policy.lookup import Lookup
from metropolis.node.core.network.policy.revoke import revoke
from metropolis.node.core.network.policy.tables import Tables
from metropolis.node.core.network.workloads.errors import Exhausted, KernelRefused
from osbase.netlink.errors import NetlinkError


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

    def apply(self, removed: Tables, added: Tables, *, policed: bool) -> None:
        """See manager.Kernel."""
        with _refusals():
            self._kernel.apply(removed, added, policed=policed)

    def replace(self, tables: Tables, *, policed: bool) -> None:
        """See manager.Kernel."""
        with _refusals():
            self._kernel.replace(tables, policed=policed)

    def revoke(self, lookup: Lookup) -> int:
        """See manager.Kernel."""
        with _refusals():
            return revoke(lookup.allows)

    def policed(self) -> bool:
        """See manager.Kernel."""
        with _refusals():
            try:
                return self._kernel.policed()
            except PolicyKernelError:
                return False


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except PolicyKernelError as error:
        raise (Exhausted if error.full else KernelRefused)(str(error)) from error
    except (NetlinkError, OSError) as error:
        raise KernelRefused(f"policies: {error}") from error
