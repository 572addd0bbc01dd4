# SPDX-License-Identifier: Apache-2.0
"""Compute figures from samples, and print them. Pure.

A figure is the median over the rounds of a round's percentile. A ratio is
computed within a round, from medians; the result is the median over the rounds.
"""

import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metropolis.test.bench.common.stats import number, percentile
from metropolis.test.bench.runtimes.model import Measured, Programs, Samples, Subject

_NAME = 42
_COLUMN = 17
_WIDTH = 108
_MB = 1e6
IMAGE = "size in an image"
UNPACKED = "size unpacked"
# Parts of it, by the beginning of a path.
_PARTS = {
    "containerd": ("/usr/bin/containerd", "/usr/libexec/ours/containerd"),
    "its shim of runc": (
        "/usr/bin/containerd-shim-runc-v2",
        "/usr/libexec/ours/containerd-shim-runc-v2",
    ),
    "ctr": ("/usr/bin/ctr", "/usr/libexec/ours/ctr"),
}
# All other files are for networks.
_NETWORK = "for networks"


@dataclass(frozen=True, slots=True)
class Size:
    """An erofs with the files of a subject: its bytes, and regular files."""

    image: int
    files: Mapping[str, int]

    @property
    def unpacked(self) -> int:
        return sum(self.files.values())

    def parts(self) -> dict[str, int]:
        """Return unpacked bytes by purpose."""
        names = {path: part for part, paths in _PARTS.items() for path in paths}
        sums = dict.fromkeys((*_PARTS, _NETWORK), 0)
        for path, size in self.files.items():
            sums[names.get(path, _NETWORK)] += size
        return sums


@dataclass(frozen=True, slots=True)
class Figure:
    """A subject's value. p95 None: a single value. ratio_to_ours None: ours is
    missing or 0.
    """

    figure: str
    subject: Subject
    unit: str
    p50: float
    p95: float | None
    ratio_to_ours: float | None

    def as_json(self) -> dict[str, Any]:
        """Return JSON, with rounded numbers."""
        return {
            key: float(f"{value:.5g}") if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }


def figures(samples: Iterable[Samples]) -> list[Figure]:
    """Return the figures of all subjects, in the order of measurement."""
    rounds: dict[tuple[str, str], dict[Subject, dict[int, Sequence[float]]]] = {}
    for one in samples:
        subjects = rounds.setdefault((one.figure, one.unit), {})
        subjects.setdefault(one.subject, {})[one.round] = one.values
    found = []
    for (figure, unit), subjects in rounds.items():
        ours = subjects.get(Subject.OURS, {})
        for subject in Subject:
            if not (values := subjects.get(subject)):
                continue
            p50, p95 = (
                statistics.median(percentile(each, percent) for each in values.values())
                for percent in (50, 95)
            )
            ratios = [
                statistics.median(values[number]) / beside
                for number in values.keys() & ours.keys()
                if (beside := statistics.median(ours[number]))
            ]
            ratio = statistics.median(ratios) if ratios else None
            found.append(Figure(figure, subject, unit, p50, p95, ratio))
    return found


def shares(found: Iterable[Figure]) -> list[Figure]:
    """Return the network's share of figures, in percent."""
    medians = {(one.figure, one.subject): one.p50 for one in found}
    made = []
    for (figure, subject), part in medians.items():
        whole = medians.get((figure.removesuffix(": network"), subject))
        if figure.endswith(": network") and whole and " at " not in figure:
            share = 100 * part / whole
            ours = medians.get((figure, Subject.OURS), 0.0)
            ours_whole = medians.get((figure.removesuffix(": network"), Subject.OURS), 0.0)
            ratio = share / (100 * ours / ours_whole) if ours and ours_whole else None
            made.append(Figure(f"{figure}'s share", subject, "%", share, None, ratio))
    return made


def sizes(weighed: Mapping[Subject, Size]) -> list[Figure]:
    """Return sizes as figures."""
    found = []

    def add(figure: str, values: Mapping[Subject, int]) -> None:
        ours = values.get(Subject.OURS)
        for subject, value in values.items():
            ratio = value / ours if ours else None
            found.append(Figure(figure, subject, "MB", value / _MB, None, ratio))

    add(IMAGE, {subject: size.image for subject, size in weighed.items()})
    add(UNPACKED, {subject: size.unpacked for subject, size in weighed.items()})
    parts = {subject: size.parts() for subject, size in weighed.items()}
    for part in (*_PARTS, _NETWORK):
        add(f"{UNPACKED}: {part}", {subject: each[part] for subject, each in parts.items()})
    return found


def everything(found: Measured, weighed: Mapping[Subject, Size]) -> list[Figure]:
    """All figures."""
    measured = figures(found.samples)
    return [*measured, *shares(measured), *sizes(weighed)]


def to_json(
    machine: Mapping[str, Any], found: Measured, weighed: Mapping[Subject, Size]
) -> dict[str, Any]:
    """Return the output of --json."""
    return {
        "machine": dict(machine),
        "figures": [figure.as_json() for figure in everything(found, weighed)],
        "programs": [asdict(one) for one in found.programs],
    }


def table(machine: Mapping[str, Any], found: Measured, weighed: Mapping[Subject, Size]) -> str:
    """Return the output without --json."""
    on = ", ".join(f"{name} {value}" for name, value in machine.items())
    lines = [*textwrap.wrap(on, _WIDTH)]
    if machine.get("accel") != "kvm":
        lines.append(
            f"The machine is emulated ({machine.get('accel')}): its times are 10 to 100 times "
            "a real one's; look at ratios."
        )
    lines += ["", _row("p50, and times ours in its round", list(Subject))]
    groups: dict[tuple[str, str], dict[Subject, Figure]] = {}
    for figure in everything(found, weighed):
        groups.setdefault((figure.figure, figure.unit), {})[figure.subject] = figure
    for (name, unit), subjects in groups.items():
        title = name if unit == "1" else f"{name}, {unit}"
        lines.append(_row(title, [_cell(subjects.get(subject)) for subject in Subject]))
        if unit == "ms" and ":" not in name:
            lines.append(
                _row("  p95", [number(_p95(subjects.get(subject))) for subject in Subject], 7)
            )
    return "\n".join([*lines, "", *_programs(found.programs)])


def _p95(one: Figure | None) -> float | None:
    return one.p95 if one else None


def _cell(one: Figure | None) -> str:
    if one is None:
        return ""
    if one.subject is Subject.OURS or one.ratio_to_ours is None:
        return f"{number(one.p50)}{'':7}"
    return f"{number(one.p50)} {_times(one.ratio_to_ours):>6}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 100 else f"{ratio:.0f}x"


def _row(name: str, cells: Sequence[str], after: int = 0) -> str:
    padding = " " * after
    return (f"{name:{_NAME}}" + "".join(f"{c + padding:>{_COLUMN}}" for c in cells)).rstrip()


def _programs(programs: Iterable[Programs]) -> list[str]:
    lines = ["Programs executed, for one pod:"]
    for one in programs:
        told = ", ".join(
            f"{name} x {times:g}" if times != 1 else name
            for name, times in sorted(one.executed.items(), key=lambda item: -item[1])
        )
        lines += textwrap.wrap(
            f"{one.figure}, {one.subject}: {told or 'none'}",
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="      ",
        )
    return lines
