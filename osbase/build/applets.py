# SPDX-License-Identifier: Apache-2.0
"""Command of //osbase/build:busybox: a link for each applet of busybox, as tar.

    applets OUT.tar BUSYBOX.tar

The busybox of the package lists its applets. All links go to /usr/bin or
/usr/sbin (merged /usr). Package managers are left out.
"""

import argparse
import os
import posixpath
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from osbase.build.tree import Tree, TreeError, write_tar

_BUSYBOX = "/usr/bin/busybox"
_NOT_WANTED = {"busybox", "dpkg", "dpkg-deb", "rpm", "rpm2cpio"}


def links(listing: Iterable[str]) -> Tree:
    """Return the tree of links for the lines of `busybox --list-full`."""
    tree = Tree()
    for line in listing:
        folder, name = posixpath.split("/" + line.strip())
        if name and name not in _NOT_WANTED:
            where = "/usr/sbin" if folder.endswith("/sbin") else "/usr/bin"
            tree.add_symlink(f"{where}/{name}", _BUSYBOX, "busybox-static")
    return tree


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="applets", usage="%(prog)s OUT.tar BUSYBOX.tar", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT.tar", type=Path, help="the links to write")
    parser.add_argument(
        "package", metavar="BUSYBOX.tar", type=Path, help="data of Debian's busybox-static"
    )
    given = parser.parse_args(argv)
    out, package = given.out, given.package
    try:
        tree = Tree()
        tree.add_tar(package, "busybox-static")
        binary = tree.get(_BUSYBOX)
        if binary is None:
            raise TreeError(f"no {_BUSYBOX} in {package}")
        with tempfile.TemporaryDirectory() as scratch:
            program = Path(scratch, "busybox")
            program.write_bytes(binary.content.read())
            os.chmod(program, 0o755)
            done = subprocess.run(
                [program, "--list-full"], check=True, capture_output=True, text=True
            )
        with out.open("wb") as stream:
            write_tar(links(done.stdout.splitlines()), stream)
    except (TreeError, OSError, subprocess.CalledProcessError) as e:
        print(f"making {out}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
