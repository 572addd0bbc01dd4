# SPDX-License-Identifier: Apache-2.0
"""The result for people: tables that fit 110 columns. Pure.

Figures that differ by a number only (`ADD at 1`, `ADD at 2`, ...) are one
table with a column each; in its cells is the value and, times ours, the ratio.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metropolis.test.bench.measure import Plan
from metropolis.test.bench.stats import OURS, Figure

_SERIES = re.compile(r"(.*) (?:at|with) ([0-9]+)( attached)?")
_NAME = 30


def tables(figures: Sequence[Figure]) -> str:
    """All figures."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(_group(figure.figure), []).append(figure)
    parts = []
    for title, members in groups.items():
        series = any(_SERIES.fullmatch(one.figure) for one in members)
        parts.append(_matrix(title, members) if series else _plain(title, members))
    return "\n".join(parts)


def _group(name: str) -> str:
    found = _SERIES.fullmatch(name)
    if found is None:
        return name
    return f"{found[1]} with N attached" if found[3] else f"{found[1]}, N at once"


def _plain(title: str, figures: Sequence[Figure]) -> str:
    single = all(one.p95 is None for one in figures)
    columns = ["value"] if single else ["p50", "p95", "p99"]
    head = f"{title}, {figures[0].unit}"
    lines = ["", _row(head, [*columns, "x ours", "x floor"])]
    for one in figures:
        if one.p50 is None:
            lines.append(f"  {one.subject:{_NAME - 2}}  n/a: {one.note}")
            continue
        values = [one.p50] if single else [one.p50, one.p95, one.p99]
        ratios = [_times(one.ratio_to_ours), _times(one.ratio_to_floor)]
        lines.append(_row("  " + one.subject, [*map(number, values), *ratios]))
    return "\n".join(lines)


def _matrix(title: str, figures: Sequence[Figure]) -> str:
    levels = sorted({_level(one.figure) for one in figures})
    cells = {(one.subject, _level(one.figure)): one for one in figures}
    lines = ["", _row(f"{title}, {figures[0].unit}", [f"N = {level}" for level in levels], 15)]
    for subject in dict.fromkeys(one.subject for one in figures if one.p50 is not None):
        row = []
        for level in levels:
            one = cells.get((subject, level))
            if one is None:
                row.append("")
            elif one.p50 is None:
                row.append("n/a")
            else:
                ratio = _times(one.ratio_to_ours) if subject != OURS else ""
                row.append(f"{number(one.p50)} {ratio:>7}")
        lines.append(_row("  " + subject, row, 15))
    missing: dict[str, dict[str, None]] = {}
    for one in figures:
        if one.note:
            missing.setdefault(one.note, {})[one.subject] = None
    for note, subjects in missing.items():
        lines += textwrap.wrap(
            f"n/a, {note}: {', '.join(subjects)}",
            108,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    return "\n".join(lines)


def _level(name: str) -> int:
    found = _SERIES.fullmatch(name)
    assert found is not None
    return int(found[2])


def _row(name: str, cells: Iterable[str], width: int = 11) -> str:
    return (f"{name:{_NAME}}" + "".join(f"{cell:>{width}}" for cell in cells)).rstrip()


def number(value: float | None) -> str:
    """Three digits that matter, or as many as the number has before the point."""
    if value is None:
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{number(ratio)}x"


def heading(machine: Mapping[str, Any], plan: Plan) -> str:
    """On what was measured, and how much."""
    versions = ("python", "grpcio", "containernetworking-plugins", "netavark", "iptables")
    load = " ".join(f"{one:.2f}" for one in machine["load"])
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_mib']:,} MiB, "
            f"Linux {machine['kernel']}, load {load}",
            ", ".join(f"{name} {machine[name]}" for name in versions),
            f"{plan.rounds} rounds of {plan.samples} operations each; medians of the rounds; "
            f"x ours: against {OURS}, in the same round",
        ]
    )
