# SPDX-License-Identifier: Apache-2.0
"""The ward of the elements of policies.

Others' `nft flush ruleset` takes all of them, which one look at one of them
shows. To list all takes a while, so that is done once in EVERY_S: an element
that somebody has taken alone is missing for so long.

Flows that began while the rules were missing were not judged: when these have
been made again, all flows are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from metropolis.node.core.network.policy.manager import Manager
from metropolis.node.core.network.reconcile.ward import Allow, Repair
from metropolis.node.core.network.workloads.errors import WorkloadError

EVERY_S: Final = 30.0
_KEY: Final = "policies"


class Policies:
    """See ward.Ward."""

    name = "policies"

    def __init__(self, manager: Manager, rules_made: Callable[[], int]) -> None:
        """rules_made: how many times the table's rules have been made."""
        self._manager = manager
        self._rules_made = rules_made
        self._made = 0
        self._listed = time.monotonic()

    def look(self, allow: Allow) -> Sequence[Repair]:
        """See Ward."""
        now, made = time.monotonic(), self._rules_made()
        if made != self._made:
            self._made = made
            self._manager.distrust()
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
