# SPDX-License-Identifier: Apache-2.0
"""The output of a command: for people, or one line of JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class FailedError(Exception):
    """A command failed; the text is one line. status: the exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """data: for programs. text: for people. wrong: whether it reports a
    problem, which makes the exit status 1.
    """

    data: Mapping[str, object]
    text: str
    wrong: bool = False

    def as_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.data)


@dataclass(frozen=True)
class Table:
    """Text in columns, each as wide as its longest cell."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __str__(self) -> str:
        cells = [[str(cell) for cell in row] for row in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )
        return "\n".join(lines)
