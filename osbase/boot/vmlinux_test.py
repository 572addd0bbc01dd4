# SPDX-License-Identifier: Apache-2.0
"""The kernel proper is found in a bzImage; other files are refused."""

from __future__ import annotations

import struct
from compression import zstd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.boot.vmlinux import FormatError, vmlinux

KERNEL = b"\x7fELF" + bytes(1000)


def image(content: bytes, version: int = 0x20F, sects: int = 39) -> bytes:
    """A bzImage with that payload."""
    payload = content + struct.pack("<I", 1004)
    made = bytearray(((sects or 4) + 1) * 512 + 100)
    made[0x1F1] = sects
    struct.pack_into("<4sH", made, 0x202, b"HdrS", version)
    struct.pack_into("<II", made, 0x248, 100, len(payload))
    return bytes(made) + payload + b"more"


@pytest.mark.parametrize("sects", [0, 1, 39, 255])
def test_found(sects: int) -> None:
    assert vmlinux(image(zstd.compress(KERNEL), sects=sects)) == KERNEL


def test_the_image_of_the_node() -> None:
    """It names its PVH entry point: XEN_ELFNOTE_PHYS32_ENTRY."""
    kernel = vmlinux(Path("osbase/boot/bzImage").read_bytes())
    assert Path("osbase/boot/vmlinux").read_bytes() == kernel
    assert struct.pack("<III4s", 4, 8, 18, b"Xen\0") in kernel


@pytest.mark.parametrize(
    ("given_image", "said"),
    [
        (b"", "no boot header"),
        (bytes(100_000), "no boot header"),
        (image(zstd.compress(KERNEL), version=0x207), "boot protocol 0x207"),
        (image(zstd.compress(KERNEL))[:-40], "the file has"),
        (image(b"\x1f\x8b" + bytes(50)), "not compressed by zstd"),
        (image(zstd.compress(b"MZ")), "no ELF file"),
    ],
)
def test_refused(given_image: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        vmlinux(given_image)


@given(st.binary(max_size=700))
def test_garbage(more: bytes) -> None:
    for whole in (more, image(more), image(zstd.compress(KERNEL))[:0x300] + more):
        with pytest.raises(FormatError):
            vmlinux(whole)
