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
    """A reservation needs what DETACHED entries still have. error: what is
    lacking, if the end of one of them may suffice.
    """

    def __init__(self, entries: list[Entry], error: WorkloadError | None = None) -> None:
        super().__init__(entries)
        self.entries = entries
        self.error = error


def unless(leaving: list[Entry], error: WorkloadError) -> Exception:
    """Return the error, or one that says what may end it."""
    return StillLeaving(leaving, error) if leaving else error
