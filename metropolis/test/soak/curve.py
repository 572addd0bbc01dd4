# SPDX-License-Identifier: Apache-2.0
"""Draw the output of turnover.

./bazelw run //metropolis/test/soak:curve -- OUT.png LABEL=FILE ...
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from metropolis.test.bench.common.plot import BLUE, GREY, RED, tidy


def draw_memory(curves: Mapping[str, Sequence[tuple[int, int]]], path: Path) -> None:
    """Write resident memory, KiB by attachments, of each curve by its label."""
    os.environ.setdefault("MPLCONFIGDIR", tempfile.mkdtemp(prefix="mpl-"))
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = picture.add_subplot()
    for shade, (label, points) in zip((BLUE, RED, GREY), curves.items(), strict=False):
        cycles, rss = zip(*points, strict=True)
        axes.plot(cycles, [kib / 1024 for kib in rss], color=shade, label=label)
    axes.set_ylim(0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("attached and detached")
    axes.set_title("Resident memory, MiB", fontsize=11)
    axes.legend(fontsize=9, frameon=False)
    tidy(axes, "y")
    picture.savefig(path)


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="curve",
        usage="%(prog)s OUT.png LABEL=FILE...",
        description="Memory by attachments, as a picture.",
        epilog="exit status: 0 drawn, 2 wrong arguments",
    )
    parser.add_argument("out", metavar="OUT.png", type=Path, help="the picture, a PNG")
    parser.add_argument("curves", nargs="+", metavar="LABEL=FILE", help="output of turnover")
    chosen = parser.parse_args(arguments)
    curves: dict[str, list[tuple[int, int]]] = {}
    for one in chosen.curves:
        label, _, name = one.partition("=")
        lines = Path(name).read_text().splitlines()
        curves[label] = [(int(cycles), int(rss)) for cycles, rss in map(str.split, lines)]
    draw_memory(curves, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
