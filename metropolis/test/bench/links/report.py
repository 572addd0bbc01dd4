# SPDX-License-Identifier: Apache-2.0
"""Compute figures from samples, and print them. Pure.

A kind's figure is the median over the rounds of a round's percentile. A ratio
is computed within a round, from medians; the result is the median over the
rounds; low and high are the extreme rounds.
"""

import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metropolis.test.bench.links.model import Ability, Kind, Measured, Samples

_NAME = 24
_COLUMN = 26
_RATES = ("1/s", "Mbit/s")
INSTRUCTIONS = "1,000 instructions"


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolate linearly between two values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Figure:
    """A kind's (subject's) value, and its ratio to veth in the same rounds."""

    figure: str
    subject: Kind
    unit: str
    p50: float
    p95: float
    p99: float
    ratio_to_veth: float
    ratio_low: float
    ratio_high: float


def figures(samples: Iterable[Samples]) -> list[Figure]:
    """Return the figures of all kinds, in the order of measurement."""
    rounds: dict[tuple[str, str], dict[Kind, dict[int, Sequence[float]]]] = {}
    for one in samples:
        kinds = rounds.setdefault((one.figure, one.unit), {})
        kinds.setdefault(one.kind, {})[one.round] = one.values
    found = []
    for (figure, unit), kinds in rounds.items():
        for kind in Kind:
            values = kinds[kind]
            ratios = [
                _over(statistics.median(values[number]), statistics.median(beside))
                for number, beside in kinds[Kind.VETH].items()
            ]
            p50, p95, p99 = (
                statistics.median(percentile(each, percent) for each in values.values())
                for percent in (50, 95, 99)
            )
            ratio = statistics.median(ratios)
            found.append(Figure(figure, kind, unit, p50, p95, p99, ratio, min(ratios), max(ratios)))
    return found


def _over(value: float, beside: float) -> float:
    """Return the ratio; 0 / 0 is 1, equal. Only counts can be 0."""
    return value / beside if beside else 1.0 if not value else math.inf


def as_instructions(samples: Iterable[Samples]) -> list[Samples]:
    """Convert samples of a machine that counts instructions; drop rates."""
    units = {"us": INSTRUCTIONS}
    return [
        Samples(one.figure, units.get(one.unit, one.unit), one.kind, one.round, one.values)
        for one in samples
        if one.unit not in _RATES
    ]


def to_json(machine: Mapping[str, Any], found: Measured) -> dict[str, Any]:
    """Return the output of --json."""
    return {
        "machine": dict(machine),
        "figures": [
            {
                key: float(f"{value:.5g}") if isinstance(value, float) else value
                for key, value in asdict(figure).items()
            }
            for figure in figures(found.samples)
        ],
        "abilities": [asdict(ability) for ability in found.abilities],
    }


def table(machine: Mapping[str, Any], found: Measured) -> str:
    """Return the output without --json."""
    on = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [*textwrap.wrap(on, 108), ""]
    lines.append(_row("", [kind.value for kind in Kind]))
    by_figure: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures(found.samples):
        by_figure.setdefault((figure.figure, figure.unit), []).append(figure)
    for (name, unit), kinds in by_figure.items():
        # On a counting machine all units are the same, printed below.
        shown = f"{name}, {unit}" if unit in (*_RATES, "us") else name
        lines.append(_row(shown, [_cell(figure) for figure in kinds]))
    if any(unit == INSTRUCTIONS for _, unit in by_figure):
        lines.append(f"Unit: {INSTRUCTIONS} of the guest, kernel and programs.")
    lines += ["x: times veth in the same round; in brackets the extreme rounds", ""]
    return "\n".join(lines + _abilities(found.abilities))


def _cell(figure: Figure) -> str:
    value = _number(figure.p50)
    if figure.subject is Kind.VETH:
        return value
    return f"{value} {figure.ratio_to_veth:.2f}x ({figure.ratio_low:.2f}-{figure.ratio_high:.2f})"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _row(name: str, cells: Sequence[str]) -> str:
    first, *others = cells
    return f"{name:{_NAME}} {first:>10}" + "".join(f"{cell:>{_COLUMN}}" for cell in others)


def _abilities(abilities: Sequence[Ability]) -> list[str]:
    lines = []
    for one in abilities:
        answers = set(one.answers.values())
        if len(answers) == 1:
            lines.append(f"{one.what}: {answers.pop()}, all")
            continue
        lines.append(f"{one.what}:")
        lines += [f"    {kind}: {answer}" for kind, answer in one.answers.items()]
    return lines
