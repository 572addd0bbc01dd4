# SPDX-License-Identifier: Apache-2.0
"""Figures from samples; table and JSON. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from metropolis.test.bench.common.stats import number, percentile


@dataclass(frozen=True, slots=True)
class Figure:
    """part: of the benchmark. subject: what was measured, and `base` what it is
    compared with, "": nothing. samples: how many.
    """

    part: str
    subject: str
    unit: str
    samples: int
    p50: float
    p99: float
    base: str = ""
    ratio: float | None = None
    added: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return its fields."""
        return asdict(self)


def figure(
    part: str, subject: str, unit: str, samples: Sequence[float], base: Figure | None = None
) -> Figure:
    """Return the figure of samples; of these there is one. base: of another
    subject of the same part: the ratio of both medians, and their difference.
    """
    p50, p99 = percentile(samples, 50), percentile(samples, 99)
    if base is None:
        return Figure(part, subject, unit, len(samples), p50, p99)
    ratio = p50 / base.p50 if base.p50 else None
    return Figure(part, subject, unit, len(samples), p50, p99, base.subject, ratio, p50 - base.p50)


def by_round(
    part: str, unit: str, rounds: Mapping[str, Sequence[Sequence[float]]], base: str
) -> list[Figure]:
    """Return the figures of subjects, each with the samples of its rounds. The
    ratio to the base, and what is added, are medians of what these are in each
    round: what disturbs a whole round does not count.
    """
    bases = [median(some) for some in rounds[base]]
    found = []
    for subject, samples in rounds.items():
        medians = [median(some) for some in samples]
        ratios = [one / other for one, other in zip(medians, bases, strict=True)]
        added = [one - other for one, other in zip(medians, bases, strict=True)]
        pooled = [each for some in samples for each in some]
        found.append(
            replace(
                figure(part, subject, unit, pooled),
                base=base,
                ratio=median(ratios),
                added=median(added),
            )
        )
    return found


def table(figures: Iterable[Figure]) -> str:
    """Return the table for people."""
    rows = [("part", "subject", "p50", "p99", "", "ratio", "added", "to")]
    for one in figures:
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        added = "" if one.added is None else f"{one.added:+.3f}"
        shown = number(one.p50), number(one.p99), one.unit, ratio, added, one.base
        rows.append((one.part, one.subject, *shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
