# SPDX-License-Identifier: Apache-2.0
"""The loaded rule set: settings in, one transaction out."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from metropolis.node.core.network.rules import base
from metropolis.node.core.network.rules.settings import Settings
from osbase.nftables import Nftables


class RuleSet:
    """Keeps the kernel's rules as the settings say. Thread-safe; calls block.

    It knows what it applied last, and never reads rules back.
    """

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.Lock()
        self._settings = settings
        self._applied: Settings | None = None

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

    def _apply(self) -> None:
        self._applied = None
        with Nftables() as nft:
            nft.apply(base.render(self._settings))
        self._applied = self._settings
