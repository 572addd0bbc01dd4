# SPDX-License-Identifier: Apache-2.0
"""The loaded rule set: settings in, one transaction out.

The table of host ports does not depend on settings; it is made, and put back,
beside the others.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from metropolis.node import allocs
from metropolis.node.core.network.rules import base, host_ports
from metropolis.node.core.network.rules.settings import Settings
from osbase.nftables import Nftables, NftablesError
from osbase.nftables.guard import Guard

log = logging.getLogger(__name__)

_CGROUPS: Final = Path("/sys/fs/cgroup")


class RuleSet:
    """Keeps the kernel's rules as the settings say. Thread-safe; calls block.

    It knows what it applied last, and by digests whether that is still there;
    it does not parse loaded rules.
    """

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.Lock()
        self._settings = settings
        self._applied: Settings | None = None
        self._guard = Guard(allocs.NFTABLES_TABLE)
        self._host_ports = Guard(allocs.NFTABLES_WORKLOADS, elements=False)
        # How many times the rules of the workloads' table have been made.
        self.made = 0
        self._replaced: dict[str, None] = {}

    @property
    def settings(self) -> Settings:
        """Return the wanted settings."""
        return self._settings

    def apply(self, *, fresh: bool = False, **changes: Any) -> None:
        """Program the wanted rules, in any state. Raises NftablesError.

        fresh: also remove what others added to the tables; this resets counters
        and rate limits. changes: see update.
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
        """Return, as texts, the differences from the applied rules; []: none.

        This includes, once, a difference that an update found and replaced:
        otherwise the ward could not count it. Raises NetlinkError or OSError.
        """
        with self._lock:
            found = self._guard.differences()
            if not found and self._guard.doubtful:
                # Others were busy when it was applied, and no longer are.
                with contextlib.suppress(NftablesError):
                    self._apply()
            # Once: the ward must see that it is right.
            replaced, self._replaced = self._replaced, {}
            found += self._host_ports.differences()
            return [*(replaced | dict.fromkeys(found))]

    def _apply(self, *, fresh: bool = False) -> None:
        self._applied = None
        settings = self._settings
        # nft resolves a cgroup when it loads the rule: a missing one must not
        # be the reason that there are no rules.
        if settings.cgroup is not None and not (_CGROUPS / settings.cgroup.strip("/")).is_dir():
            settings = replace(settings, cgroup=None)
        with Nftables() as nft:

            def whole() -> None:
                nft.apply(base.render(settings))

            def update() -> bool:
                try:
                    nft.apply(base.render_update(settings))
                except NftablesError:
                    # The tables are missing, or have another version's layout.
                    return False
                return True

            found = self._guard.commit(whole, None if fresh else update)
            self._replaced |= dict.fromkeys(found)
            self._applied = self._settings
            if self._host_ports.differences():
                try:
                    self._host_ports.commit(lambda: _make_host_ports(nft))
                    self.made += 1
                except NftablesError as error:
                    # The node does without, not without its rules. The ward
                    # finds it, tries again, and makes it a problem.
                    log.error("no host ports: %s", error)


def _make_host_ports(nft: Nftables) -> None:
    """Make the table, or put back its rules; its elements are kept if others
    have left its sets as they were.
    """
    try:
        nft.apply(host_ports.render())
    except NftablesError:
        # Attachments' elements come back by a look of the workloads' ward.
        nft.apply(host_ports.render_whole())
