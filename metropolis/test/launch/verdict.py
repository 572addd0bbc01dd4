# SPDX-License-Identifier: Apache-2.0
"""What came of a launch."""

from __future__ import annotations


class Verdict:
    """The result of the printed table: from then on it is the exit status, also
    when a signal ends the command.

    kept: a line about where the logs are; "": nowhere.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.kept = ""

    def shown(self, ok: bool) -> None:
        """Set the result. ok: whether every check was ok."""
        self.status = 0 if ok else 1
