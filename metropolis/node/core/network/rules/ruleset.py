# SPDX-License-Identifier: Apache-2.0
"""The loaded rule set: settings in, one transaction out."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from metropolis.node import allocs
from metropolis.node.core.network.rules import base
from metropolis.node.core.network.rules.settings import Settings
from osbase.nftables import Nftables, NftablesError
from osbase.nftables.guard import Guard

_CGROUPS: Final = Path("/sys/fs/cgroup")


class RuleSet:
    """Keeps the kernel's rules as the settings say. Thread-safe; calls block.

    It knows what it applied last, and by digests whether that is still there;
    it understands no rule that it reads.
    """

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.Lock()
        self._settings = settings
        self._applied: Settings | None = None
        self._guard = Guard(allocs.NFTABLES_TABLE)
        self._replaced: dict[str, None] = {}

    @property
    def settings(self) -> Settings:
        """What is wanted now."""
        return self._settings

    def apply(self, *, fresh: bool = False, **changes: Any) -> None:
        """Program what is wanted, whatever is there. Raises NftablesError.

        fresh: also remove what others added to the tables, for the price of the
        counters and of what is limited at the moment. changes: see update.
        """
        with self._lock:
            self._settings = replace(self._settings, **changes)
            self._apply(fresh=fresh)
            if fresh:
                self._replaced.clear()

    def update(self, **changes: Any) -> None:
        """Replace fields of the settings; program them if that changes any.

        Raises NftablesError; then the next call tries again.
        """
        with self._lock:
            self._settings = replace(self._settings, **changes)
            if self._settings != self._applied:
                self._apply()

    def differences(self) -> list[str]:
        """Return, in words, what is not as it was applied; []: nothing.

        So is, once, what an update found and replaced: who puts back and counts
        would not hear of it otherwise. Raises NetlinkError or OSError.
        """
        with self._lock:
            found = self._guard.differences()
            if not found and self._guard.doubtful:
                # Others were busy when it was applied, and are not now.
                with contextlib.suppress(NftablesError):
                    self._apply()
            # Once: who is not to put it back must see that it is right.
            replaced, self._replaced = self._replaced, {}
            return [*(replaced | dict.fromkeys(found))]

    def _apply(self, *, fresh: bool = False) -> None:
        self._applied = None
        settings = self._settings
        # nft looks a cgroup up when it loads the rule: one that is gone must
        # not be the reason that there are no rules.
        if settings.cgroup is not None and not (_CGROUPS / settings.cgroup.strip("/")).is_dir():
            settings = replace(settings, cgroup=None)
        with Nftables() as nft:

            def whole() -> None:
                nft.apply(base.render(settings))

            def update() -> bool:
                try:
                    nft.apply(base.render_update(settings))
                except NftablesError:
                    # Nothing is there, or not as this version makes it.
                    return False
                return True

            found = self._guard.commit(whole, None if fresh else update)
            self._replaced |= dict.fromkeys(found)
        self._applied = self._settings
