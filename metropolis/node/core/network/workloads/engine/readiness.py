# SPDX-License-Identifier: Apache-2.0
"""Whether an attach could be served, and why not: for Status and Attach."""

from collections.abc import Callable

from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.datapath.interface import Datapath
from metropolis.node.core.network.workloads.engine.ledger import Ledger
from metropolis.node.core.network.workloads.engine.settings import Settings
from metropolis.node.core.network.workloads.errors import Exhausted, Unavailable

NOT_RUNNING = "the workload network service is not running yet"
IPV6_REMEDY = (
    'switch IPv6 on, or set `ipv6: "optional"` in the node\'s network configuration, by which '
    "such workloads have IPv4 alone"
)


class Readiness:
    """is_running: whether the engine has started and was not closed.

    lacking: why a wanted prefix is missing; "" if none is.
    """

    def __init__(
        self,
        ledger: Ledger,
        datapath: Datapath,
        conditions: Conditions,
        settings: Settings,
        is_running: Callable[[], bool],
    ) -> None:
        self.lacking = ""
        self._ledger = ledger
        self._datapath = datapath
        self._conditions = conditions
        self._settings = settings
        self._is_running = is_running

    def refuse_unless_running(self) -> None:
        """Raise Unavailable before the engine has started."""
        if not self._is_running():
            raise Unavailable(NOT_RUNNING)

    def refuse_unless_ready(self) -> None:
        """Raise Unavailable when no attach can be served. The text has the
        problems of the node's network, too, as they may be the reason.
        """
        try:
            self._check()
        except Unavailable as error:
            problems = self._conditions.problems().values()
            raise Unavailable("; ".join(dict.fromkeys((str(error), *problems)))) from error

    def problems(self) -> dict[str, str]:
        """Return why the status is not OK, by name."""
        problems = self._conditions.problems()
        try:
            self._check()
        except Unavailable as error:
            # The same text may also be a problem of the node.
            if str(error) not in problems.values():
                problems["attach"] = str(error)
        return problems

    def notes(self) -> dict[str, str]:
        """Return notes on the node's network, by name."""
        notes = self._conditions.notes()
        try:
            self.check_room()
        except Exhausted as error:
            notes["addresses"] = str(error)
        return notes

    def check_room(self) -> None:
        """Raise Exhausted when a family with prefixes has no address left for
        an attach.
        """
        self._ledger.check_room(ipv6=self._datapath.ipv6)

    def _check(self) -> None:
        self.refuse_unless_running()
        if self.lacking:
            raise Unavailable(self.lacking)
        versions = self._ledger.versions
        if not versions:
            raise Unavailable("the node has no address prefix for workloads yet")
        if 6 in versions and not self._datapath.ipv6:
            remedy = "switch it on, or give the node an IPv4 prefix"
            if 4 in versions:
                if self._settings.ipv6_optional:
                    return
                remedy = IPV6_REMEDY
            raise Unavailable(
                f"the node has an IPv6 prefix for workloads, and its kernel has no IPv6: {remedy}"
            )
