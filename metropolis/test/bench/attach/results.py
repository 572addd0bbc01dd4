# SPDX-License-Identifier: Apache-2.0
"""From samples of rounds to figures. Pure.

A round's value is a percentile of its samples; a figure is the median of the
rounds' values; a ratio is taken within a round, against what was measured in
the same minutes, and then the median of the rounds' ratios is.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metropolis.test.bench.common.stats import percentile

OURS = "grpc dual"
"""What every ratio_to_ours refers to."""
FLOOR = {True: "floor dual", False: "floor ipv4"}
"""What ratio_to_floor refers to: of subjects with IPv6, and without."""


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
        """With numbers as precise as they are meant."""
        return {
            key: float(f"{value:.5g}") if isinstance(value, float) else value
            for key, value in asdict(self).items()
            if key != "note"
        }


class Results:
    """What was measured, by figure, subject and round."""

    def __init__(self) -> None:
        self._ipv6: dict[str, bool] = {}
        self._units: dict[str, str] = {}
        self._samples: dict[tuple[str, str], dict[int, list[float]]] = {}
        self._single: set[str] = set()
        self._notes: dict[tuple[str, str], str] = {}

    def know(self, subject: str, *, ipv6: bool) -> None:
        """Whether a subject has IPv6: which floor is below it."""
        self._ipv6[subject] = ipv6

    def add(
        self, figure: str, subject: str, unit: str, round_: int, values: Sequence[float]
    ) -> None:
        """Samples of a round, besides those that it has."""
        self._units[figure] = unit
        self._samples.setdefault((figure, subject), {}).setdefault(round_, []).extend(values)

    def set(self, figure: str, subject: str, unit: str, round_: int, value: float) -> None:
        """A round's one value."""
        self._single.add(figure)
        self._units[figure] = unit
        self._samples.setdefault((figure, subject), {})[round_] = [value]

    def note(self, figure: str, subject: str, unit: str, why: str) -> None:
        """Why there is no value."""
        self._units.setdefault(figure, unit)
        self._notes[figure, subject] = why

    def value(self, figure: str, subject: str, percent: float = 50) -> float | None:
        """The median of the rounds; None if it was not measured."""
        rounds = self._rounds(figure, subject, percent)
        return statistics.median(rounds.values()) if rounds else None

    def ratio(self, over: tuple[str, str], under: tuple[str, str]) -> float | None:
        """Of two (figure, subject): the median of the rounds that have both."""
        above, below = self._rounds(*over), self._rounds(*under)
        ratios = [above[r] / below[r] for r in above.keys() & below.keys() if below[r]]
        return statistics.median(ratios) if ratios else None

    def _rounds(self, figure: str, subject: str, percent: float = 50) -> dict[int, float]:
        rounds = self._samples.get((figure, subject), {})
        return {number: percentile(values, percent) for number, values in rounds.items() if values}

    def figures(self) -> list[Figure]:
        """All, in the order in which figures and subjects became known."""
        keys = dict.fromkeys([*self._samples, *self._notes])
        order = {figure: place for place, figure in enumerate(self._units)}
        known = {subject: place for place, subject in enumerate(self._ipv6)}
        found = [self._figure(figure, subject) for figure, subject in keys]

        def place(one: Figure) -> tuple[int, float, str]:
            # What is not a subject is a part of one: `grpc dual, client`.
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
