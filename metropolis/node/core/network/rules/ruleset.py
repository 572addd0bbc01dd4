# SPDX-License-Identifier: Apache-2.0
"""The loaded rule set: settings in, one transaction out."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from metropolis.node import allocs
from metropolis.node.core.network.rules import base
from metropolis.node.core.network.rules.settings import Settings
from osbase.nftables import Nftables
from osbase.nftables.guard import Guard


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

    @property
    def settings(self) -> Settings:
        """What is wanted now."""
        return self._settings

    def apply(self) -> None:
        """Program what is wanted, whatever is there. Raises NftablesError."""
        with self._lock:
            self._apply()

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

        Raises NetlinkError or OSError.
        """
        with self._lock:
            return self._guard.differences()

    def _apply(self) -> None:
        self._applied = None
        text = base.render(self._settings)
        with Nftables() as nft:
            self._guard.commit(lambda: nft.apply(text))
        self._applied = self._settings
