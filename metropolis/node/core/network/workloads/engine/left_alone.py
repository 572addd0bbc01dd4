# SPDX-License-Identifier: Apache-2.0
"""Links that are left alone: reported in Status, and returned to their
workload.

A link that a newer version made, or that only looks like ours, is not touched,
and its addresses are not handed out. One that lost its workload's id is adopted
by the first call that names the workload: the link's name is a hash of the id.
"""

import logging
from collections.abc import Sequence

from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Datapath
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.validate import show

log = logging.getLogger(__name__)

_NOTE = "workloads"  # its key
_SHOWN = 8  # links, of many


class LeftAlone:
    """See the module."""

    def __init__(self, ledger: Ledger, datapath: Datapath, conditions: Conditions) -> None:
        self._ledger = ledger
        self._datapath = datapath
        self._conditions = conditions

    def claim(self, workload_id: str) -> None:
        """Adopt the links that the workload has lost."""

        def host_interface(if_name: str) -> str:
            return self._datapath.host_interface(workload_id, if_name)

        if self._ledger.claim(workload_id, host_interface):
            log.info("workload %s has claimed what had lost its id", show(workload_id))
            self.note()

    def note(self) -> None:
        """Report the links that are left alone, with reasons."""
        held = self._ledger.held
        newer = [one.name for one in held if one.newer]
        lost = [one.name for one in held if one.record is not None]
        others = [one.name for one in held if not one.newer and one.record is None]
        texts = [
            f"{count_of(links)} {why}"
            for links, why in (
                (newer, "made by a newer version"),
                (lost, "of workloads whose id was lost with the link's alias"),
                (others, "of others, with routes of workloads"),
            )
            if links
        ]
        text = f"links left alone: {'; '.join(texts)}" if texts else ""
        self._conditions.note(_NOTE, text)
        if text:
            log.warning("%s", text)


def count_of(links: Sequence[str]) -> str:
    """Return `3 (a, b, c)`; only the first of many links."""
    shown = ", ".join(show(name) for name in links[:_SHOWN])
    more = ", ..." if len(links) > _SHOWN else ""
    return f"{len(links)} ({shown}{more})" if links else "0"
