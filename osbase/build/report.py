# SPDX-License-Identifier: Apache-2.0
"""Command `size` of an image: print what takes its space.

    report IMAGE.erofs MANIFEST.json [--json] [--top N]

Sizes are bytes in the image, after compression; "unpacked" is before it. The
row "metadata" is the space that belongs to no file (inodes, names).
"""

import argparse
import json
import posixpath
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osbase.build.erofs import ErofsError, Image, Node


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    stored: int
    unpacked: int
    files: int


def sum_by(nodes: Iterable[tuple[str, Node]]) -> list[Row]:
    """Sum up nodes by the name beside each; largest first."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, node in nodes:
        entry = sums[name]
        entry[0] += node.stored
        entry[1] += node.size
        entry[2] += 1
    rows = [Row(name, *entry) for name, entry in sums.items()]
    return sorted(rows, key=lambda row: (-row.stored, row.name))


def folder(path: str, depth: int = 3) -> str:
    """Return the directory of a file, cut to `depth` levels."""
    parts = posixpath.dirname(path).split("/")
    return "/".join(parts[: depth + 1]) or "/"


def report(total: int, nodes: Iterable[Node], layers: Mapping[str, str]) -> dict[str, Any]:
    """Return tables of an image of `total` bytes. layers: layer by path."""
    files = [node for node in nodes if not node.is_dir]
    stored = sum(node.stored for node in files)
    return {
        "bytes": total,
        "metadata": total - stored,
        "unpacked": sum(node.size for node in files),
        "files": len(files),
        "layers": sum_by((layers.get(node.path, "?"), node) for node in files),
        "directories": sum_by((folder(node.path), node) for node in files),
        "largest": sum_by((node.path, node) for node in files),
    }


def render(tables: dict[str, Any], top: int) -> str:
    """Return the report as text."""
    mb = 1e6
    lines = [
        f"{tables['bytes'] / mb:.1f} MB ({tables['unpacked'] / mb:.1f} MB unpacked), "
        f"{tables['files']} files, metadata {tables['metadata'] / mb:.1f} MB",
    ]
    for title, key in (
        ("package or layer", "layers"),
        ("directory", "directories"),
        ("file", "largest"),
    ):
        rows: list[Row] = tables[key]
        lines += ["", f"{'MB':>7} {'unpacked':>9} {'files':>6}  {title}"]
        for row in rows[:top]:
            lines.append(
                f"{row.stored / mb:7.2f} {row.unpacked / mb:9.2f} {row.files:6}  {row.name}"
            )
        if len(rows) > top:
            rest = sum(row.stored for row in rows[top:])
            lines.append(f"{rest / mb:7.2f} {'':9} {'':6}  ({len(rows) - top} more)")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="prints what fills an image")
    parser.add_argument("image", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument("--top", type=int, default=25, help="lines a table (default 25)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is not an error
    try:
        layers = {row[0]: row[4] for row in json.loads(args.manifest.read_text())}
        tables = report(args.image.stat().st_size, Image(args.image).walk(), layers)
    except (ErofsError, OSError, ValueError) as e:
        print(f"size of {args.image}: {e}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(tables, default=asdict))
    else:
        print(render(tables, args.top))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
