# SPDX-License-Identifier: Apache-2.0
"""List the files of an erofs image, and the space that each takes in it.

The module reads names and inodes only, no file content (fsck.erofs extracts).
The layout is that of the kernel's fs/erofs/erofs_fs.h: a superblock, an area of
inodes addressed in 32-byte slots, directories as blocks of entries. Images with
features that change the layout are refused: chunk dictionaries, metadata boxes,
48-bit addresses, more devices.
"""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SUPER_OFFSET = 1024
_MAGIC = 0xE0F5E1E2
# feature_incompat bits that do not change what is read here: lz4 0-padding, big
# clusters and compression configurations, tail packing, fragments.
_KNOWN_FEATURES = 0x0000007B
_PLAIN, _COMPRESSED_FULL, _INLINE, _COMPRESSED = range(4)


class ErofsError(Exception):
    """The file is not an erofs image, is damaged or has unknown features."""


@dataclass(frozen=True)
class Node:
    """A file, directory or link. Sizes: bytes; `stored` excludes the inode."""

    path: str
    mode: int
    size: int
    stored: int

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class _Inode:
    mode: int
    size: int
    layout: int
    block: int  # first data block; for compressed files the number of blocks
    tail: int  # offset of the inline data


class Image:
    """An erofs image in memory. Raises ErofsError when it is not one."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        try:
            magic, _, _, bits, _, self._root = struct.unpack_from(
                "<IIIBBH", self._data, _SUPER_OFFSET
            )
            self.blocks, meta = struct.unpack_from("<II", self._data, _SUPER_OFFSET + 36)
            (features,) = struct.unpack_from("<I", self._data, _SUPER_OFFSET + 80)
        except struct.error as e:
            raise ErofsError(f"{path}: too short for an erofs image") from e
        if magic != _MAGIC:
            raise ErofsError(f"{path}: no erofs image (magic {magic:#x})")
        if features & ~_KNOWN_FEATURES:
            raise ErofsError(f"{path}: unknown features {features & ~_KNOWN_FEATURES:#x}")
        self._block_size: int = 1 << bits
        self._meta = meta << bits

    def _inode(self, nid: int) -> _Inode:
        at = self._meta + nid * 32
        form, xattrs, mode = struct.unpack_from("<HHH", self._data, at)
        extended = form & 1
        (size,) = struct.unpack_from("<Q" if extended else "<I", self._data, at + 8)
        (block,) = struct.unpack_from("<I", self._data, at + 16)
        head = (64 if extended else 32) + (12 + 4 * (xattrs - 1) if xattrs else 0)
        return _Inode(mode, size, form >> 1 & 7, block, at + head)

    def _stored(self, inode: _Inode) -> int:
        size = self._block_size
        if stat.S_ISREG(inode.mode) and inode.layout in (_COMPRESSED_FULL, _COMPRESSED):
            return inode.block * size
        return inode.size if inode.layout == _INLINE else -(-inode.size // size) * size

    def _content(self, inode: _Inode) -> bytes:
        """Return a directory's content: its blocks, then its inline data."""
        start = inode.block * self._block_size
        if inode.layout == _PLAIN:
            return self._data[start : start + inode.size]
        if inode.layout != _INLINE:
            raise ErofsError(f"a directory in layout {inode.layout}, which is not read here")
        whole = inode.size - inode.size % self._block_size
        rest = inode.size - whole
        return self._data[start : start + whole] + self._data[inode.tail : inode.tail + rest]

    def _names(self, inode: _Inode) -> Iterator[tuple[str, int]]:
        """Yield names and inode numbers of a directory without `.` and `..`."""
        content = self._content(inode)
        for begin in range(0, len(content), self._block_size):
            block = content[begin : begin + self._block_size]
            (first,) = struct.unpack_from("<H", block, 8)
            entries = [struct.unpack_from("<QH", block, i * 12) for i in range(first // 12)]
            ends = [offset for _, offset in entries[1:]] + [len(block)]
            for (nid, offset), end in zip(entries, ends, strict=True):
                name = block[offset:end].split(b"\0")[0].decode(errors="surrogateescape")
                if name not in (".", ".."):
                    yield name, nid

    def walk(self) -> Iterator[Node]:
        """Yield everything below the root, parents first. Raises ErofsError if
        the image is damaged.
        """
        seen: set[int] = set()
        todo = [("", self._root)]
        while todo:
            path, nid = todo.pop()
            try:
                inode = self._inode(nid)
                if path:
                    yield Node(path, inode.mode, inode.size, self._stored(inode))
                if stat.S_ISDIR(inode.mode):
                    if nid in seen:
                        raise ErofsError(f"{path}: a directory inside itself")
                    seen.add(nid)
                    names = sorted(self._names(inode), reverse=True)
                    todo += [(f"{path}/{name}", child) for name, child in names]
            except (struct.error, ValueError, OverflowError) as e:
                raise ErofsError(f"{path or '/'}: damaged: {e}") from e
