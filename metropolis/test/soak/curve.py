# SPDX-License-Identifier: Apache-2.0
"""Draw what turnover printed.

./bazelw run //metropolis/test/soak:curve -- OUT.png LABEL=FILE ...
"""

import argparse
import sys
from pathlib import Path

from metropolis.test.bench.plot import draw_memory


def main(arguments: list[str]) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(description="Memory by attachments, as a picture.")
    parser.add_argument("out", type=Path, help="PNG")
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
