# SPDX-License-Identifier: Apache-2.0
"""The picture of the attach benchmark, by matplotlib.

The left shows ADD and DEL of each subject, p50 as a bar and p95 as a whisker,
on a logarithmic scale, in the order of ADD; the right shows operations per
second by the number of concurrent ones.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metropolis.test.bench.attach.results import OURS, Figure
from metropolis.test.bench.common.plot import BLUE, GREY, RED, tidy

_LEVELS = (1, 2, 4, 8, 16, 64)
_START_MS = {"ADD": 0.1, "DEL": 1.0}
_LINES = (
    *("floor dual", "inner dual", OURS, "shim dual"),
    *("ptp", "ptp ipMasq", "bridge ipMasq portmap", "netavark NAT"),
)
_PEER_SHADES = ("#c8553d", "#e08e45", "#8a3b8f", "#5c7d3a")
_OUR_SHADES = ("#8c8c8c", "#7db8e8", "#1f6fb4", "#0b3d66")
_MARKERS = "oooossss"


def draw(figures: Sequence[Figure], machine: Mapping[str, Any], path: Path) -> None:
    """Write the picture as PNG."""
    # matplotlib stores a list of fonts in a directory, which HOME may lack.
    os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp(prefix="mpl-", dir="/run"))
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(14, 8.2), dpi=120, layout="constrained")
    grid = picture.add_gridspec(3, 3, height_ratios=(1, 1, 0.22))
    left = [picture.add_subplot(grid[:, column]) for column in (0, 1)]
    for axes, op in zip(left, ("ADD", "DEL"), strict=True):
        _bars(axes, figures, op, names=op == "ADD")
    for row, op in enumerate(("ADD", "DEL")):
        axes = picture.add_subplot(grid[row, 2])
        _lines(axes, figures, op)
    below = picture.add_subplot(grid[2, 2])
    below.axis("off")
    handles = [line for line in axes.lines if not line.get_label().startswith("_")]
    below.legend(handles=handles, fontsize=9, ncols=2, loc="center", frameon=False)
    picture.suptitle(
        f"Attaching and detaching a workload: {machine['cpu']}, {machine['cores']} cores, "
        f"Linux {machine['kernel']}",
        fontsize=13,
    )
    picture.savefig(path)


def colour(subject: str) -> str:
    """Ours, the floor, or a peer."""
    if subject.startswith("floor"):
        return GREY
    return BLUE if subject.split()[0] in ("grpc", "shim", "inner") else RED


def _bars(axes: Any, figures: Sequence[Figure], op: str, *, names: bool) -> None:
    adds = {one.subject: one.p50 for one in figures if one.figure == "ADD alone" and one.p50}
    found = {one.subject: one for one in figures if one.figure == f"{op} alone" and one.p50}
    order = sorted(adds, key=lambda subject: adds[subject] or 0, reverse=True)
    for place, subject in enumerate(order):
        one = found.get(subject)
        if one is None or one.p50 is None:
            continue
        axes.barh(place, one.p50, color=colour(subject), height=0.7)
        if one.p95 is not None:
            axes.plot([one.p50, one.p95], [place, place], color="black", linewidth=1)
            axes.plot([one.p95], [place], "|", color="black", markersize=7)
        text = f"{one.p50:.2f}" if one.p50 < 10 else f"{one.p50:,.0f}"
        if one.ratio_to_ours is not None and subject != OURS:
            ratio = one.ratio_to_ours
            text += f"  ({ratio:.2f}x)" if ratio < 10 else f"  ({ratio:,.0f}x)"
        axes.text(max(one.p50, one.p95 or 0) * 1.12, place, text, va="center", fontsize=8.5)
    axes.set_xscale("log")
    axes.set_xlim(_START_MS[op], axes.get_xlim()[1] * 6)  # for the texts
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_yticks(range(len(order)), order if names else [])
    axes.set_title(f"{op}, ms: p50, whisker p95 (times {OURS})", fontsize=11)
    if names:
        shown = (("ours", BLUE), ("the kernel's part", GREY), ("peers", RED))
        bars = [axes.barh(-9, 1, color=shade, label=what) for what, shade in shown]
        axes.legend(handles=bars, fontsize=9, loc="upper right")
    tidy(axes, "x")


def _lines(axes: Any, figures: Sequence[Figure], op: str) -> None:
    values = {(one.figure, one.subject): one.p50 for one in figures}
    shades = dict(zip(_LINES, (*_OUR_SHADES, *_PEER_SHADES), strict=True))
    for subject, marker in zip(_LINES, _MARKERS, strict=True):
        points = [(level, values.get((f"{op} at {level}", subject))) for level in _LEVELS]
        points = [(level, value) for level, value in points if value is not None]
        if len(points) > 1:
            axes.plot(
                *zip(*points, strict=True),
                marker=marker,
                markersize=4,
                color=shades[subject],
                linewidth=2.2 if subject == OURS else 1.3,
                label=subject,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(_LEVELS, [str(level) for level in _LEVELS])
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("at once")
    axes.set_title(f"{op}s a second", fontsize=11)
    tidy(axes, "y")
