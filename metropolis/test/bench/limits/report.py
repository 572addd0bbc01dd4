# SPDX-License-Identifier: Apache-2.0
"""Figures of limits from rounds; table and JSON. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from metropolis.test.bench.common.stats import number, percentile

TO: Final = "to"
FROM: Final = "from"
WINDOW_S: Final = 0.1

_UNITS: Final = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


@dataclass(frozen=True, slots=True)
class Cell:
    """rate: bits of IP packets per second. direction: to or from the workload.
    version: of IP.
    """

    rate: int
    direction: str
    version: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One stream. sent, received: of the rate, within its first second, what
    the limit passed and what its receiver got. worst: what the limit passed in
    the 100 ms with the most. idle_ms, loaded_ms: the time from a question to
    its answer, without the stream and beside it.
    """

    sent: float
    received: float
    worst: float
    idle_ms: Sequence[float]
    loaded_ms: Sequence[float]


@dataclass(frozen=True, slots=True)
class Line:
    """Medians over the rounds of a cell, and the extremes of `sent`."""

    cell: Cell
    sent: float
    sent_least: float
    sent_most: float
    received: float
    worst: float
    idle_ms: float
    loaded_ms: float
    loaded_p95_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return it with the cell's fields beside the others."""
        found = asdict(self)
        return {**found.pop("cell"), **found}


def line(cell: Cell, samples: Sequence[Sample]) -> Line:
    """Return the figures of a cell, of which there is a sample."""
    sent = [one.sent for one in samples]
    loaded = [ms for one in samples for ms in one.loaded_ms]
    return Line(
        cell,
        statistics.median(sent),
        min(sent),
        max(sent),
        statistics.median(one.received for one in samples),
        statistics.median(one.worst for one in samples),
        statistics.median(ms for one in samples for ms in one.idle_ms),
        statistics.median(loaded),
        percentile(loaded, 95),
    )


def worst(counts: Sequence[tuple[float, int]], window_s: float = WINDOW_S) -> float:
    """Return the most bytes in a second, of the stretches between two counts
    that are as long as the window, or a moment longer. counts: times in
    seconds, ascending, and bytes until then. 0.0: all are shorter.
    """
    most, end = 0.0, 0
    for begin, passed in counts:
        while end < len(counts) and counts[end][0] - begin < window_s:
            end += 1
        if end == len(counts):
            break
        then, total = counts[end]
        most = max(most, (total - passed) / (then - begin))
    return most


def rate_text(rate: int) -> str:
    """Return it with a unit, such as 10M."""
    for size, unit in _UNITS:
        if rate % size == 0:
            return f"{rate // size}{unit}"
    return str(rate)


_COLUMNS: Final = (
    "rate", "way", "IP", "sent %", "least", "most", "received %", "worst 100 ms %",
    "idle ms", "loaded ms", "p95",
)  # fmt: skip


def table(lines: Iterable[Line]) -> str:
    """Return the table for people."""
    rows = [list(_COLUMNS)]
    for one in lines:
        shares = (one.sent, one.sent_least, one.sent_most, one.received, one.worst)
        times = (one.idle_ms, one.loaded_ms, one.loaded_p95_ms)
        rows.append(
            [
                rate_text(one.cell.rate),
                one.cell.direction,
                f"IPv{one.cell.version}",
                *(f"{share * 100:.1f}" for share in shares),
                *map(number, times),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
