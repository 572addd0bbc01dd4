# SPDX-License-Identifier: Apache-2.0
"""What a reservation of the ledger gives, or says instead."""

from dataclasses import dataclass

from metropolis.node.core.network.workloads.engine.entries import Entry
from metropolis.node.core.network.workloads.errors import WorkloadError


@dataclass(frozen=True, slots=True)
class Reservation:
    """The reserved values of an attach. metric: of the routes inside the
    namespace. overruns: how often events had been lost; see `check_presence`.
    """

    entry: Entry
    metric: int
    overruns: int


class StillLeaving(Exception):
    """A reservation needs what DETACHED or lost entries still have. error: what
    is lacking, if the end of one of them may suffice.
    """

    def __init__(
        self, entries: list[Entry], error: WorkloadError | None = None, *, lost: bool = False
    ) -> None:
        super().__init__(entries)
        self.entries = entries
        self.error = error
        self.lost = lost


def unless(leaving: list[Entry], error: WorkloadError, lost: list[Entry]) -> Exception:
    """Return the error, or one that says what may end it."""
    if leaving:
        return StillLeaving(leaving, error)
    return StillLeaving(lost, error, lost=True) if lost else error
