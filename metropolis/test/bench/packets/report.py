# SPDX-License-Identifier: Apache-2.0
"""Compute figures from rounds. Pure.

A round's value is the median of its transactions; a figure is the median of the
rounds, a ratio the median of the rounds' ratios, so that a disturbance in a
round affects both sides of the ratio.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from metropolis.test.bench.common.stats import number

NONE: Final = "no rules"
BASELINE: Final = "baseline"
TREE: Final = "tree"
SUBJECTS: Final = (NONE, BASELINE, TREE)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measurement: a kind of traffic, its path and IP version.

    workloads: how many have routes. flows: existing flows of the sender.
    """

    kind: str
    way: str
    version: int
    workloads: int
    flows: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A figure of each subject, in us (stream: us a MiB), and their ratios."""

    figure: Figure
    us: dict[str, float]
    to_baseline: float
    to_none: float

    def as_json(self) -> dict[str, Any]:
        """Return JSON, with rounded numbers."""
        found = asdict(self.figure) | {"us": self.us}
        found |= {"to_baseline": self.to_baseline, "to_none": self.to_none}
        found["us"] = {key: round(value, 2) for key, value in self.us.items()}
        return found | {key: round(found[key], 3) for key in ("to_baseline", "to_none")}


@dataclass
class Results:
    """Values by figure and subject, one a round."""

    values: dict[Figure, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, figure: Figure, subject: str, us: float) -> None:
        """The value of the next round."""
        self.values.setdefault(figure, {}).setdefault(subject, []).append(us)

    def lines(self) -> list[Line]:
        """Return all figures, in the order of measurement."""
        return [
            Line(
                figure,
                {subject: statistics.median(found[subject]) for subject in SUBJECTS},
                ratio(found[TREE], found[BASELINE]),
                ratio(found[TREE], found[NONE]),
            )
            for figure, found in self.values.items()
        ]


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


_HEAD: Final[tuple[str, ...]] = (
    "us",
    "",
    "workloads",
    "own flows",
    *SUBJECTS,
    "to baseline",
    "to none",
)


def table(lines: Sequence[Line]) -> str:
    """Return a table for people."""
    rows = [_HEAD]
    for line in lines:
        of = line.figure
        rows.append(
            (
                of.kind,
                f"{of.way} v{of.version}",
                f"{of.workloads:,}",
                f"{of.flows:,}",
                *(number(line.us[subject]) for subject in SUBJECTS),
                f"{line.to_baseline:.3f}",
                f"{line.to_none:.3f}",
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
