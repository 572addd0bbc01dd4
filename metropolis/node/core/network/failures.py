# SPDX-License-Identifier: Apache-2.0
"""A failing part of the network service is a problem in Status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from metropolis.node.core.network.uplink.uplink import LinkGoneError
from metropolis.node.core.network.workloads.conditions import Conditions
from metropolis.node.core.network.workloads.errors import WorkloadError
from osbase.netlink.errors import NetlinkError
from osbase.nftables import NftablesError
from osbase.supervisor import Backoff, Context, Runnable, in_thread

LIVES_AFTER_S: Final = 5.0
"""After a part has run again for so long, its failure is no problem."""

_RETRY_FIRST_S: Final = 0.5
_RETRY_MAX_S: Final = 5.0

# Their texts need no type name.
_EXPECTED: Final = (NetlinkError, NftablesError, OSError, WorkloadError)

log = logging.getLogger(__name__)


class Failures:
    """Sets conditions, one for each failing part, by its name."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions

    async def until_done(self, key: str, step: Callable[[], None], what: str) -> None:
        """Repeat a step, in a thread, until it succeeds; Status has its error
        meanwhile. The part does not fail, since that would end other parts
        that do not need the step.
        """
        backoff = Backoff(_RETRY_FIRST_S, _RETRY_MAX_S, _RETRY_MAX_S)
        while True:
            try:
                await in_thread(step)
            except Exception as error:
                expected = isinstance(error, _EXPECTED)
                if self._conditions.set(key, f"{what}: {_cause(error)}"):
                    log.error("%s: %s", what, _cause(error), exc_info=not expected)
                await asyncio.sleep(backoff.died(0.0))
            else:
                self._conditions.clear(key)
                return

    def reported(self, name: str, runnable: Runnable) -> Runnable:
        """Return the runnable such that its failure is a problem of the node,
        until it has run again for a while. A vanished link is no problem.
        """

        async def run(ctx: Context) -> None:
            loop = asyncio.get_running_loop()
            later = loop.call_later(LIVES_AFTER_S, self._conditions.clear, name)
            try:
                await runnable(ctx)
            except LinkGoneError:
                self._conditions.clear(name)
                raise
            except Exception as error:
                self._conditions.set(name, f"{name}: {_cause(error)}")
                raise
            else:
                self._conditions.clear(name)
            finally:
                later.cancel()

        return run


def _cause(error: BaseException) -> str:
    """Return the text of a group's first error, or of the error itself. Only
    its first line, since nft(8) appends the whole program.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error).partition("\n")[0] or type(error).__name__
