# SPDX-License-Identifier: Apache-2.0
"""The attachments as a ward of the reconciler."""

from collections.abc import Sequence

from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.engine.engine import Engine
from metropolis.node.core.network.workloads.errors import WorkloadError


class WorkloadsWard:
    """See ward.Ward."""

    name = "workloads"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See Ward. Before the engine is started it finds nothing."""
        try:
            return self._engine.repair(allow)
        except WorkloadError as error:
            return [Repair("workloads", "attachments could not be looked at", str(error))]
