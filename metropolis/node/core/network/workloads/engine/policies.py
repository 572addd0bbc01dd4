# SPDX-License-Identifier: Apache-2.0
"""What the engine asks of network policies."""

from collections.abc import Sequence
from typing import Protocol

from metropolis.node.core.network.workloads.datapath.interface import Record
from metropolis.node.core.network.workloads.model import Identity


class Policies(Protocol):
    """Which connections attachments may have. Thread-safe."""

    def adopt(self, records: Sequence[Record]) -> None:
        """Take over the attachments of a start. Raises nothing: what fails is a
        problem for Status, and `admit` raises until it is mended.
        """

    def admit(self, record: Record, identity: Identity | None) -> None:
        """Have the policies in force for an attachment, before a packet can
        pass its link, or with another identity or addresses than before. None:
        what was said of the workload before; if nothing was, it has no labels.

        Raises a WorkloadError; then the attachment is as before.
        """

    def forget(self, records: Sequence[Record]) -> None:
        """Forget attachments whose links pass no packet any more. Raises
        nothing. One that was admitted again, by another index, stays.
        """


class NoPolicies:
    """Everything is allowed."""

    def adopt(self, records: Sequence[Record]) -> None:
        """See Policies."""

    def admit(self, record: Record, identity: Identity | None) -> None:
        """See Policies."""

    def forget(self, records: Sequence[Record]) -> None:
        """See Policies."""
