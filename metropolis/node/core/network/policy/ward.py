# SPDX-License-Identifier: Apache-2.0
"""The ward of the elements of policies.

Others' `nft flush ruleset` takes all of them, which one look at one of them
shows. To list all takes a while, so that is done once in EVERY_S: an element
that somebody has taken alone is missing for so long.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.errors import WorkloadError

EVERY_S: Final = 30.0
_KEY: Final = "policies"


class Policies:
    """See ward.Ward."""

    name = "policies"

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._listed = time.monotonic()

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See Ward."""
        now = time.monotonic()
        if self._manager.is_loaded() and now - self._listed < EVERY_S:
            return ()
        self._listed = now
        what = self._manager.differs()
        if not what:
            return ()
        if not allow(_KEY):
            return (Repair(_KEY, what, left=True),)
        try:
            self._manager.repair()
        except WorkloadError as error:
            return (Repair(_KEY, what, str(error)),)
        return (Repair(_KEY, what),)
