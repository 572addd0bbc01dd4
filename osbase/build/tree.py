# SPDX-License-Identifier: Apache-2.0
"""A tree of files, composed from tars and files, and written as tar or cpio.

    t = Tree()
    t.add_tar(path, "busybox-static")     # later layers shadow earlier ones
    t.exclude(["/usr/share/doc"])
    t.add_file("/etc/hostname", Data(b"node"), "files")
    write_tar(t, stream)

Paths are absolute and normalised (`/usr/bin/env`); the root itself is implied.
"""

import glob
import io
import posixpath
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Protocol


class TreeError(Exception):
    """The inputs do not make one tree; the message has the path and reason."""


class Kind(Enum):
    """The type of an entry."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"


class Content(Protocol):
    """The bytes of a file, read on demand."""

    @property
    def size(self) -> int: ...

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class Data:
    """Content made by a tool."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True)
class Span:
    """Content that is part of a file on disk, such as a tar's member."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb") as f:
            f.seek(self.offset)
            return f.read(self.size)


def whole(path: Path) -> Span:
    """Return the content of a whole file."""
    return Span(path, 0, path.stat().st_size)


@dataclass(frozen=True)
class Entry:
    """One name in a tree. layer: its origin, for reports."""

    path: str
    kind: Kind
    mode: int
    layer: str
    content: Content = field(default_factory=lambda: Data(b""))
    target: str = ""
    keep: bool = False  # a directory that stays even when it is empty


def normal(path: str) -> str:
    """`./usr//bin/` → `/usr/bin`. Raises TreeError for a path with `..`."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise TreeError(f"{path!r}: '..' in a path")
    return "/" + "/".join(parts)


class Tree:
    """Entries by path. The parents of an entry always exist, as directories."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over entries, parents before children, in a fixed order."""
        return iter(sorted(self._entries.values(), key=lambda e: e.path.split("/")))

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, path: str) -> Entry | None:
        return self._entries.get(normal(path))

    def add(self, entry: Entry) -> None:
        """Add an entry, or replace the one at its path. A directory over a
        directory only sets its mode.

        A parent may be a link to a directory, as /bin is: the entry goes to
        the link's target. Raises TreeError when an entry would replace a
        directory with something else, or use a file as a directory.
        """
        parent = self._directory(posixpath.dirname(entry.path), entry.layer)
        path = posixpath.join(parent, posixpath.basename(entry.path))
        old = self._entries.get(path)
        if (
            old
            and old.kind is Kind.DIR is not entry.kind
            and any(other.startswith(path + "/") for other in self._entries)
        ):
            raise TreeError(
                f"{path}: {entry.kind.value} of {entry.layer} would hide "
                f"the directory of {old.layer}; exclude one of them"
            )
        if old and old.kind is Kind.SYMLINK and entry.kind is Kind.DIR:
            self._directory(path, entry.layer)  # a package's /bin, where /bin is a link
            return
        if old and old.kind is Kind.DIR and old.keep:
            entry = Entry(path, entry.kind, entry.mode, entry.layer, keep=True)
        self._entries[path] = Entry(
            path, entry.kind, entry.mode, entry.layer, entry.content, entry.target, entry.keep
        )

    def _directory(self, path: str, layer: str, hops: int = 0) -> str:
        """Make sure that `path` is a directory; return it, links resolved."""
        if path == "/":
            return path
        if hops > 16:
            raise TreeError(f"{path}: too many levels of symbolic links")
        parent = self._directory(posixpath.dirname(path), layer, hops)
        path = posixpath.join(parent, posixpath.basename(path))
        entry = self._entries.get(path)
        if entry is None:
            self._entries[path] = Entry(path, Kind.DIR, 0o755, layer)
        elif entry.kind is Kind.SYMLINK:
            target = posixpath.normpath(posixpath.join(parent, entry.target))
            return self._directory(target, layer, hops + 1)
        elif entry.kind is Kind.FILE:
            raise TreeError(f"{path}: a file of {entry.layer}, but {layer} has files below it")
        return path

    def add_file(self, path: str, content: Content, layer: str, mode: int = 0o644) -> None:
        self.add(Entry(normal(path), Kind.FILE, mode, layer, content))

    def add_dir(self, path: str, mode: int, layer: str) -> None:
        """Add a directory that stays even when it is empty."""
        if normal(path) != "/":
            self.add(Entry(normal(path), Kind.DIR, mode, layer, keep=True))

    def add_symlink(self, path: str, target: str, layer: str) -> None:
        self.add(Entry(normal(path), Kind.SYMLINK, 0o777, layer, target=target))

    def add_tar(self, path: Path, layer: str, exclude: Iterable[str] = ()) -> None:
        """Add the members of an uncompressed tar, except those excluded.

        A hard link becomes a separate file. Raises TreeError for devices, and
        for a file that is not a tar.
        """
        excluded = matcher(exclude)
        files: dict[str, Entry] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    name = normal(member.name)
                    if name == "/":
                        continue
                    if member.isreg():
                        content: Content = Span(path, member.offset_data, member.size)
                        entry = Entry(name, Kind.FILE, member.mode & 0o7777, layer, content)
                        files[name] = entry
                    elif member.islnk():
                        source = files.get(normal(member.linkname))
                        if source is None:
                            raise TreeError(
                                f"{layer}: {name} is a hard link to "
                                f"{member.linkname}, which is not before it"
                            )
                        entry = Entry(name, Kind.FILE, source.mode, layer, source.content)
                    elif member.issym():
                        entry = Entry(name, Kind.SYMLINK, 0o777, layer, target=member.linkname)
                    elif member.isdir():
                        entry = Entry(name, Kind.DIR, member.mode & 0o7777, layer)
                    else:
                        raise TreeError(f"{layer}: {name} is neither file, directory nor link")
                    if not excluded(name):
                        self.add(entry)
        except tarfile.TarError as e:
            raise TreeError(f"{layer}: {path}: {e}") from e

    def prune(self) -> None:
        """Drop empty directories, except those added by add_dir."""
        used: set[str] = set()
        for entry in self._entries.values():
            if entry.kind is not Kind.DIR or entry.keep:
                path = entry.path
                while path != "/" and path not in used:
                    used.add(path)
                    path = posixpath.dirname(path)
        self._entries = {path: e for path, e in self._entries.items() if path in used}


class _Matcher(Protocol):
    def __call__(self, path: str) -> bool: ...


def matcher(patterns: Iterable[str]) -> _Matcher:
    """Return a predicate: does a path, or a directory above it, match one of
    the shell patterns?

    `*` matches within a name, `**` across names. Raises TreeError for a pattern
    that does not begin with `/`.
    """
    parts = []
    for pattern in patterns:
        if not pattern.startswith("/"):
            raise TreeError(f"exclude pattern {pattern!r} does not begin with /")
        regex = glob.translate(pattern, recursive=True, include_hidden=True, seps="/")
        parts.append(regex.removesuffix(r"\z").removesuffix(r"\Z"))
    if not parts:
        return lambda path: False
    joint = re.compile("|".join(f"(?:{part})(?:/.*)?\\Z" for part in parts), re.DOTALL)
    return lambda path: joint.match(path) is not None


def write_tar(tree: Iterable[Entry], out: IO[bytes]) -> None:
    """Write a tar (GNU, uncompressed): all times 0, all owned by root."""
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        for entry in tree:
            info = tarfile.TarInfo(entry.path[1:])
            info.mode = entry.mode
            match entry.kind:
                case Kind.DIR:
                    info.type = tarfile.DIRTYPE
                    tar.addfile(info)
                case Kind.SYMLINK:
                    info.type, info.linkname = tarfile.SYMTYPE, entry.target
                    tar.addfile(info)
                case Kind.FILE:
                    data = entry.content.read()
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def make_tar(out: Path, make: Callable[[], Iterable[Entry]]) -> int:
    """Write the entries that `make` returns as a tar. For commands: prints an
    error on stderr, and returns the exit status.
    """
    try:
        tree = make()
        with out.open("wb") as stream:
            write_tar(tree, stream)
    except (TreeError, OSError) as e:
        print(f"making {out}: {e}", file=sys.stderr)
        return 1
    return 0


class Sink(Protocol):
    """An object to which a stream of bytes is written."""

    def write(self, data: bytes, /) -> object: ...


_CPIO_TYPE = {Kind.FILE: 0o100000, Kind.DIR: 0o040000, Kind.SYMLINK: 0o120000}


def write_cpio(tree: Iterable[Entry], out: Sink) -> None:
    """Write a cpio archive, format newc (kernel: initramfs-buffer-format)."""

    def record(inode: int, name: str, mode: int, data: bytes) -> None:
        raw = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        head = b"070701" + b"".join(b"%08x" % value for value in fields) + raw
        out.write(head + b"\0" * (-len(head) % 4))
        out.write(data + b"\0" * (-len(data) % 4))

    for inode, entry in enumerate(tree, 1):
        data = entry.target.encode() if entry.kind is Kind.SYMLINK else entry.content.read()
        record(inode, entry.path[1:], entry.mode | _CPIO_TYPE[entry.kind], data)
    record(0, "TRAILER!!!", 0, b"")
