# SPDX-License-Identifier: Apache-2.0
"""Find the built images: in runfiles, or in bazel-bin of a checkout."""

from dataclasses import dataclass
from pathlib import Path


class ImagesError(Exception):
    """An image that has not been built."""


@dataclass(frozen=True)
class Images:
    """The files of a node, built by //metropolis/node and :tools."""

    kernel: Path
    initramfs: Path
    root: Path
    tools: Path


def find_images(root: str = "dev_image") -> Images:
    """Return the images beside this program; ImagesError if one is missing.

    root: a target of //metropolis/node.
    """
    workspace = Path(__file__).parents[3]

    def find(name: str) -> Path:
        for base in (workspace, workspace / "bazel-bin"):
            if (base / name).is_file():
                # QEMU should keep the file it opened during later builds.
                return (base / name).resolve()
        raise ImagesError(f"{name} is neither in {workspace} nor its bazel-bin; build it first")

    return Images(
        kernel=find("osbase/boot/vmlinux"),
        initramfs=find("osbase/boot/initramfs.cpio.zst"),
        root=find(f"metropolis/node/{root}.erofs"),
        tools=find("osbase/test/agent/tools.erofs"),
    )
