# SPDX-License-Identifier: Apache-2.0
"""Command of the rule oci_image: put layers into an OCI image layout, one tar.

    oci OUT.tar --tag localhost/busybox:latest --layer L.tar --cmd sh

Layers are not compressed: these images are preloaded from the node's own root,
which is compressed as a whole, and unpacking takes most of the time at boot.
Format: OCI image spec 1.1 (layout, index, manifest, config); the reference is
in the two annotations that containerd's importer reads.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from osbase.build.tree import Content, Data, Tree, make_tar, whole

_MEDIA = "application/vnd.oci.image"


def compact(value: Any) -> bytes:
    """Return JSON that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(data: bytes) -> str:
    """`sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class _Layout:
    """The tree of a layout: blobs by digest."""

    def __init__(self) -> None:
        self.tree = Tree()

    def blob(self, media: str, content: Content) -> dict[str, Any]:
        """Store a blob; return its descriptor."""
        name = digest(content.read())
        self.tree.add_file("/blobs/" + name.replace(":", "/"), content, "oci")
        return {"mediaType": f"{_MEDIA}.{media}", "digest": name, "size": content.size}


def layout(layers: list[Content], tag: str, config: dict[str, Any]) -> Tree:
    """Return the layout of an image with uncompressed layers, lowest first.

    `config` has the execution parameters (Entrypoint, Cmd, Env, User,
    WorkingDir).
    """
    out = _Layout()
    descriptors = [out.blob("layer.v1.tar", layer) for layer in layers]
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [d["digest"] for d in descriptors]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}.manifest.v1+json",
        "config": out.blob("config.v1+json", Data(compact(image))),
        "layers": descriptors,
    }
    top = out.blob("manifest.v1+json", Data(compact(manifest)))
    top["platform"] = {"architecture": "amd64", "os": "linux"}
    top["annotations"] = {
        "io.containerd.image.name": tag,
        "org.opencontainers.image.ref.name": tag,
    }
    index = {"schemaVersion": 2, "mediaType": f"{_MEDIA}.index.v1+json", "manifests": [top]}
    out.tree.add_file("/index.json", Data(compact(index)), "oci")
    out.tree.add_file("/oci-layout", Data(compact({"imageLayoutVersion": "1.0.0"})), "oci")
    return out.tree


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="oci", usage="%(prog)s OUT.tar --tag TAG --layer FILE [options]", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("out", metavar="OUT.tar", type=Path, help="the layout to write")
    add("--tag", required=True, help="the image's name, such as localhost/busybox:latest")
    add(
        "--layer", metavar="FILE", type=Path, action="append", required=True,
        help="a tar; repeatable, the lowest first",
    )  # fmt: skip
    add("--entrypoint", metavar="WORD", action="append", default=[], help="a word; repeatable")
    add("--cmd", metavar="WORD", action="append", default=[], help="a word; repeatable")
    add("--env", metavar="NAME=VALUE", action="append", default=[], help="repeatable")
    args = parser.parse_args(argv)
    config = {"Entrypoint": args.entrypoint, "Cmd": args.cmd, "Env": args.env}

    def make() -> Tree:
        layers: list[Content] = [whole(path) for path in args.layer]
        return layout(layers, args.tag, {k: v for k, v in config.items() if v})

    return make_tar(args.out, make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
