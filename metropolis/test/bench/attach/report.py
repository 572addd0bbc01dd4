# SPDX-License-Identifier: Apache-2.0
"""The result for people: tables that fit 120 columns. Pure.

Figures that differ only by a number (`ADD at 1`, `ADD at 2`, ...) or similarly
are one table with a column each; a cell has the value and its ratio to ours.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metropolis.test.bench.attach.measure import Plan
from metropolis.test.bench.attach.results import OURS, Figure

# Figures that are columns of one table: the titles of table and column.
_SERIES = (
    (re.compile(r"(ADD|DEL|DEL, links gone|ADD and DEL),? at (\d+)"), "{0}, N at once", "N = {1}"),
    (re.compile(r"(ADD|DEL|RSS) with (\d+) attached"), "{0} with N attached", "N = {1}"),
    (re.compile(r"(\w+) of one (ADD|DEL)"), "One {1}", "{0}"),
    (re.compile(r"CPU of 1,000 (ADD|DEL)"), "CPU of 1,000", "{0}"),
)
_NAME = 30
_CELL = 15
_WIDTH = 110


def tables(figures: Sequence[Figure]) -> str:
    """All figures."""
    groups: dict[str, list[tuple[str, Figure]]] = {}
    for figure in figures:
        title, column = _place(figure.figure)
        if figure.unit != "1":
            title += f", {figure.unit}"
        groups.setdefault(title, []).append((column, figure))
    parts = []
    for title, members in groups.items():
        if members[0][0]:
            parts.append(_matrix(title, members))
        else:
            parts.append(_plain(title, [figure for _, figure in members]))
    return "\n".join(parts)


def _place(name: str) -> tuple[str, str]:
    """Return titles of its table and column; "": the only column."""
    for pattern, title, column in _SERIES:
        if found := pattern.fullmatch(name):
            return title.format(*found.groups()), column.format(*found.groups())
    return name, ""


def _plain(title: str, figures: Sequence[Figure]) -> str:
    lines = ["", _row(title, ["p50", "p95", "p99", "x ours", "x floor"])]
    for one in figures:
        if one.p50 is None:
            lines.append(f"  {one.subject:{_NAME - 2}}  n/a: {one.note}")
            continue
        ratios = [_times(one.ratio_to_ours), _times(one.ratio_to_floor)]
        values = [number(value) for value in (one.p50, one.p95, one.p99)]
        lines.append(_row("  " + one.subject, [*values, *ratios]))
    return "\n".join(lines)


def _matrix(title: str, members: Sequence[tuple[str, Figure]]) -> str:
    columns = list(dict.fromkeys(column for column, _ in members))
    cells = {(one.subject, column): one for column, one in members}
    lines = ["", _row(title, columns, _CELL)]
    for subject in dict.fromkeys(one.subject for _, one in members if one.p50 is not None):
        row = [_cell(cells.get((subject, column))) for column in columns]
        lines.append(_row("  " + subject, row, _CELL))
    missing: dict[str, dict[str, None]] = {}
    for _, one in members:
        if one.note:
            missing.setdefault(one.note, {})[one.subject] = None
    for note, subjects in missing.items():
        lines += textwrap.wrap(
            f"n/a, {note}: {', '.join(subjects)}",
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    return "\n".join(lines)


def _cell(one: Figure | None) -> str:
    """Return the value and, unless it is ours, its ratio to ours."""
    if one is None:
        return ""
    if one.p50 is None:
        return "n/a"
    ratio = _times(one.ratio_to_ours) if one.subject != OURS else ""
    return f"{number(one.p50)} {ratio:>7}"


def _row(name: str, cells: Iterable[str], width: int = 11) -> str:
    return (f"{name:{_NAME}}" + "".join(f"{cell:>{width}}" for cell in cells)).rstrip()


def number(value: float | None) -> str:
    """Format three significant digits, or all before the point."""
    if value is None:
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{number(ratio)}x"


def heading(machine: Mapping[str, Any], plan: Plan) -> str:
    """Return the machine and the amount of measurements."""
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
