# SPDX-License-Identifier: Apache-2.0
"""From samples of rounds to figures. Pure.

A round's value is a percentile of its samples; a figure is the median of the
rounds' values; a ratio is the median of the rounds'
ratios, each between values that were measured in the same minutes.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metropolis.test.bench.common.stats import percentile

OURS = "grpc dual"
"""The subject to which every ratio_to_ours refers."""
FLOOR = {True: "floor dual", False: "floor ipv4"}
"""The subjects to which ratio_to_floor refers: with IPv6, and without."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result. p95 and p99 None: a single value. note: why
    there is no value, if there is none.
    """

    figure: str
    subject: str
    unit: str
    p50: float | None
    p95: float | None = None
    p99: float | None = None
    ratio_to_ours: float | None = None
    ratio_to_floor: float | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return JSON, with rounded numbers."""
        return {
            key: float(f"{value:.5g}") if isinstance(value, float) else value
            for key, value in asdict(self).items()
            if key != "note"
        }


class Results:
    """Samples by figure, subject and round."""

    def __init__(self) -> None:
        self._ipv6: dict[str, bool] = {}
        self._units: dict[str, str] = {}
        self._samples: dict[tuple[str, str], dict[int, list[float]]] = {}
        self._single: set[str] = set()
        self._notes: dict[tuple[str, str], str] = {}

    def know(self, subject: str, *, ipv6: bool) -> None:
        """Add a subject. ipv6: which floor it is compared with."""
        self._ipv6[subject] = ipv6

    def add(
        self, figure: str, subject: str, unit: str, round_: int, values: Sequence[float]
    ) -> None:
        """Add samples to a round."""
        self._units[figure] = unit
        self._samples.setdefault((figure, subject), {}).setdefault(round_, []).extend(values)

    def set(self, figure: str, subject: str, unit: str, round_: int, value: float) -> None:
        """Set the single value of a round."""
        self._single.add(figure)
        self._units[figure] = unit
        self._samples.setdefault((figure, subject), {})[round_] = [value]

    def note(self, figure: str, subject: str, unit: str, why: str) -> None:
        """Set the reason why there is no value."""
        self._units.setdefault(figure, unit)
        self._notes[figure, subject] = why

    def value(self, figure: str, subject: str, percent: float = 50) -> float | None:
        """Return the median of the rounds; None if not measured."""
        rounds = self._rounds(figure, subject, percent)
        return statistics.median(rounds.values()) if rounds else None

    def ratio(self, over: tuple[str, str], under: tuple[str, str]) -> float | None:
        """Return the ratio of two (figure, subject): the median of the rounds
        that have both.
        """
        above, below = self._rounds(*over), self._rounds(*under)
        ratios = [above[r] / below[r] for r in above.keys() & below.keys() if below[r]]
        return statistics.median(ratios) if ratios else None

    def _rounds(self, figure: str, subject: str, percent: float = 50) -> dict[int, float]:
        rounds = self._samples.get((figure, subject), {})
        return {number: percentile(values, percent) for number, values in rounds.items() if values}

    def figures(self) -> list[Figure]:
        """Return all, in the order of their first samples."""
        keys = dict.fromkeys([*self._samples, *self._notes])
        order = {figure: place for place, figure in enumerate(self._units)}
        known = {subject: place for place, subject in enumerate(self._ipv6)}
        found = [self._figure(figure, subject) for figure, subject in keys]

        def place(one: Figure) -> tuple[int, float, str]:
            # Other names are parts of a subject: `grpc dual, client`.
            whole = one.subject.partition(",")[0]
            return order[one.figure], known.get(whole, math.inf), one.subject

        return sorted(found, key=place)

    def _figure(self, figure: str, subject: str) -> Figure:
        single = figure in self._single
        floor = FLOOR[self._ipv6.get(subject.partition(",")[0], True)]
        return Figure(
            figure,
            subject,
            self._units[figure],
            self.value(figure, subject),
            None if single else self.value(figure, subject, 95),
            None if single else self.value(figure, subject, 99),
            self.ratio((figure, subject), (figure, OURS)),
            self.ratio((figure, subject), (figure, floor)),
            self._notes.get((figure, subject), ""),
        )
