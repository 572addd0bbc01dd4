# SPDX-License-Identifier: Apache-2.0
"""Command of the rule oci_archive: several images to one layout in one tar.

    oci_archive OUT.tar IMAGE.tar...

Images are those of oci_image. A runtime imports them by one command, and what
they share is there once (OCI image spec 1.1: an index has many manifests).
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
    """The layout that has them all, in this order."""
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    args = parser.parse_args(argv)
    return make_tar(args.out, lambda: archive(args.images))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
