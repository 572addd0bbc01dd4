# SPDX-License-Identifier: Apache-2.0
"""Take the kernel proper out of a bzImage.

A virtual machine starts it directly (PVH, CONFIG_PVH). An emulated CPU would
need four seconds to unpack it; the host needs a tenth of a second.

Source: Documentation/arch/x86/boot.rst of the kernel: setup_sects, header,
version, payload_offset and payload_length.
"""

from __future__ import annotations

import argparse
import struct
import sys
from compression import zstd
from pathlib import Path
from typing import Final

_SETUP_SECTS: Final = 0x1F1
_HEADER: Final = 0x202  # "HdrS", then the protocol's version
_PAYLOAD: Final = 0x248  # offset from the end of the setup, length
_HAS_PAYLOAD: Final = 0x208
_SECTOR: Final = 512
_SIZE: Final = struct.calcsize("<I")  # size of the uncompressed data, after it
_ELF: Final = b"\x7fELF"


class FormatError(ValueError):
    """The file is not a bzImage, or its payload has an unknown format."""


def vmlinux(image: bytes) -> bytes:
    """Return the ELF file in a bzImage. Raises FormatError."""
    if len(image) < _PAYLOAD + 8 or image[_HEADER : _HEADER + 4] != b"HdrS":
        raise FormatError("not a bzImage: no boot header")
    (version,) = struct.unpack_from("<H", image, _HEADER + 4)
    if version < _HAS_PAYLOAD:
        raise FormatError(f"boot protocol {version:#x}: want {_HAS_PAYLOAD:#x} or newer")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = ((image[_SETUP_SECTS] or 4) + 1) * _SECTOR + offset
    payload = image[start : start + length]
    if len(payload) < length:
        raise FormatError(f"payload of {length} bytes at {start}: the file has {len(image)}")
    try:
        kernel = zstd.decompress(payload[:-_SIZE])
    except zstd.ZstdError as error:
        raise FormatError(f"payload is not compressed by zstd: {error}") from error
    if not kernel.startswith(_ELF):
        raise FormatError("payload is no ELF file")
    return kernel


def main(argv: list[str]) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="vmlinux", usage="%(prog)s BZIMAGE VMLINUX", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", metavar="BZIMAGE", help="the packed kernel")
    parser.add_argument("target", metavar="VMLINUX", help="the kernel to write, an ELF file")
    given = parser.parse_args(argv)
    source, target = given.source, given.target
    try:
        Path(target).write_bytes(vmlinux(Path(source).read_bytes()))
    except FormatError as error:
        sys.exit(f"{source}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
