# SPDX-License-Identifier: Apache-2.0
"""Command of the rule oci_archive: put several images into one layout, one tar.

    oci_archive OUT.tar IMAGE.tar...

The images are those of oci_image. A runtime imports all with one command, and
shared layers are stored once (OCI image spec 1.1: an index has many manifests).
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osbase.build.oci import compact
from osbase.build.tree import Data, Tree, TreeError, make_tar

_INDEX = "/index.json"


def archive(images: Iterable[Path]) -> Tree:
    """Return the layout that contains all images, in this order."""
    tree = Tree()
    index: dict[str, Any] = {}
    manifests: list[Any] = []
    for path in images:
        image = Tree()
        image.add_tar(path, "oci")
        entry = image.get(_INDEX)
        if entry is None:
            raise TreeError(f"{path}: no {_INDEX}; an OCI image layout has one")
        index = json.loads(entry.content.read())
        manifests.extend(index["manifests"])
        for item in image:
            tree.add(item)
    tree.add_file(_INDEX, Data(compact(index | {"manifests": manifests})), "oci")
    return tree


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="oci_archive", usage="%(prog)s OUT.tar IMAGE.tar...", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT.tar", type=Path, help="the layout to write")
    parser.add_argument(
        "images", metavar="IMAGE.tar", type=Path, nargs="+", help="those of oci_image"
    )
    args = parser.parse_args(argv)
    return make_tar(args.out, lambda: archive(args.images))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
