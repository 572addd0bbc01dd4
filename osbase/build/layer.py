# SPDX-License-Identifier: Apache-2.0
"""Command of the image rules: make a tar, initramfs or erofs image of a spec.

    layer (tar|initramfs|erofs) SPEC.json OUT [--manifest FILE]

The spec is written by the rules in defs.bzl:

    {"tars": [{"path": ..., "layer": ...}],       later ones shadow earlier ones
     "exclude": ["/usr/share/doc", ...],          from the tars only
     "files": [{"path": ..., "source": ..., "mode": 493}],
     "symlinks": {"/bin": "usr/bin"}, "dirs": {"/run": "0755"},
     "bytecode": false, "must_compile": ["/usr/lib/app/"]}

With bytecode, a file in `files` whose path begins with one of must_compile and
that is not valid Python is an error; elsewhere it gets no byte code.

The manifest is JSON, `[[path, kind, mode, bytes, layer], ...]`.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from compression import zstd
from pathlib import Path
from typing import Any

from osbase.build import bytecode
from osbase.build.tree import Tree, TreeError, whole, write_cpio, write_tar

# Images with equal content are equal.
_UUID = "00000000-0000-4000-8000-000000000000"


def assemble(spec: dict[str, Any]) -> Tree:
    """Build the tree of a spec. Links are added first: /bin may be one."""
    tree = Tree()
    for path, target in spec["symlinks"].items():
        tree.add_symlink(path, target, "image")
    for tar in spec["tars"]:
        tree.add_tar(Path(tar["path"]), tar["layer"], spec["exclude"])
    for path, mode in spec["dirs"].items():
        tree.add_dir(path, int(mode, 8), "image")
    for file in spec["files"]:
        tree.add_file(file["path"], whole(Path(file["source"])), "image", file["mode"])
    tree.prune()
    if spec["bytecode"]:
        wanted = tuple(spec.get("must_compile", ()))
        sources = {f["path"]: f["source"] for f in spec["files"] if f["path"].startswith(wanted)}
        bytecode.add_bytecode(tree, sources)
    return tree


def make_erofs(tree: Tree, out: Path, compression: str, cluster: int) -> None:
    """Pipe the tree as a tar to mkfs.erofs. Raises TreeError if that fails."""
    command = [
        "mkfs.erofs",
        "--quiet",
        "--tar=f",
        f"-z{compression}",
        f"-C{cluster}",
        "-T0",
        f"-U{_UUID}",
        "-x-1",
        str(out),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as mkfs:
        assert mkfs.stdin
        assert mkfs.stdout
        # mkfs itself reports the reason of a broken pipe.
        with contextlib.suppress(BrokenPipeError):
            write_tar(tree, mkfs.stdin)
        with contextlib.suppress(BrokenPipeError):
            mkfs.stdin.close()
        said = mkfs.stdout.read().decode(errors="replace").strip()
    if mkfs.returncode:
        raise TreeError(f"{' '.join(command)}: exit {mkfs.returncode}: {said}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="layer", usage="%(prog)s [options] FORMAT SPEC.json OUT", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("format", choices=("tar", "initramfs", "erofs"), help="of the image")
    add("spec", metavar="SPEC.json", type=Path, help="what is in it, see above")
    add("out", metavar="OUT", type=Path, help="the image to write")
    add("--manifest", metavar="FILE", type=Path, help="write its list there; default: none")
    add("--compression", metavar="NAME", default="lz4hc", help="of erofs; default: %(default)s")
    add(
        "--cluster", metavar="BYTES", type=int, default=65536,
        help="what erofs compresses at a time, in bytes; default: %(default)s",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        tree = assemble(json.loads(args.spec.read_text()))
        match args.format:
            case "tar":
                with args.out.open("wb") as out:
                    write_tar(tree, out)
            case "initramfs":
                with zstd.open(args.out, "wb") as packed:
                    write_cpio(tree, packed)
            case "erofs":
                make_erofs(tree, args.out, args.compression, args.cluster)
    except (TreeError, OSError) as e:
        print(f"making {args.out}: {e}", file=sys.stderr)
        return 1
    if args.manifest:
        rows = [[e.path, e.kind.value, e.mode, e.content.size, e.layer] for e in tree]
        args.manifest.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
