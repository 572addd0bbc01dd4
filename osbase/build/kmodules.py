# SPDX-License-Identifier: Apache-2.0
"""Command of the rule kernel_modules: named modules and their dependencies.

    kmodules OUT.tar --tar linux-modules.tar --tar linux-base.tar --module veth

The result contains them decompressed (the image is compressed as a whole, and
busybox cannot unpack xz), with indexes that depmod makes for these alone.
Signatures stay. A module that is built into the kernel is not an error and adds
nothing.
"""

import argparse
import lzma
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from osbase.build.tree import Data, Entry, Kind, Tree, TreeError, whole, write_tar

_MODULE = re.compile(r"/usr/lib/modules/[^/]+/kernel/(?:.*/)?([^/]+)\.ko(?:\.xz)?")
_LISTS = ("modules.builtin", "modules.builtin.modinfo", "modules.order")
# The files that busybox modprobe reads, among those that depmod writes.
_INDEXES = ("modules.dep", "modules.alias", "modules.softdep", "modules.symbols")


def module_name(name: str) -> str:
    """Return the kernel's spelling: `virtio-rng` is the module `virtio_rng`."""
    return name.replace("-", "_")


def modinfo(module: bytes) -> dict[str, list[str]]:
    """Return the `key=value` strings of the .modinfo section.

    They are NUL-terminated and are found by their form. This is good enough for
    the keys used here, whose values are module names.
    """
    found: dict[str, list[str]] = {}
    for key, value in re.findall(rb"(?:^|\0)(depends)=([\w, :.-]*)(?=\0)", module):
        found.setdefault(key.decode(), []).append(value.decode())
    return found


def needs(module: bytes) -> set[str]:
    """Return the names of the modules that this one links to."""
    lists = modinfo(module).get("depends", [])
    return {module_name(name) for names in lists for name in names.split(",") if name}


def closure(names: Iterable[str], have: Mapping[str, bytes], builtin: set[str]) -> set[str]:
    """Return `names` and all dependencies. Raises TreeError if unknown."""
    done: set[str] = set()
    todo = [(module_name(name), "asked for") for name in names]
    while todo:
        name, why = todo.pop()
        if name in done or name in builtin:
            continue
        if name not in have:
            raise TreeError(f"module {name} ({why}): not in this kernel's packages")
        done.add(name)
        todo += [(need, f"needed by {name}") for need in sorted(needs(have[name]))]
    return done


class _Modules(Mapping[str, bytes]):
    """Map module names to decompressed files, unpacked on access."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._unpacked: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        if name not in self._unpacked:
            entry = self._entries[name]
            data = entry.content.read()
            self._unpacked[name] = lzma.decompress(data) if entry.path.endswith(".xz") else data
        return self._unpacked[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def build(kernel: Tree, names: Iterable[str]) -> Tree:
    """Return a tree with the closure of `names` from the kernel's packages."""
    entries: dict[str, Entry] = {}
    for entry in kernel:
        match = _MODULE.fullmatch(entry.path)
        if match and entry.kind is Kind.FILE:
            entries[module_name(match[1])] = entry
    if not entries:
        raise TreeError("no kernel modules in the packages given")
    base = PurePosixPath(*PurePosixPath(next(iter(entries.values())).path).parts[:5])
    lists = {name: kernel.get(str(base / name)) for name in _LISTS}
    builtin_list = lists["modules.builtin"]
    builtin = {
        module_name(PurePosixPath(line).stem)
        for line in (builtin_list.content.read().decode().split() if builtin_list else [])
    }
    modules = _Modules(entries)
    wanted = closure(names, modules, builtin)
    tree = Tree()
    for name in sorted(wanted):
        path = entries[name].path.removesuffix(".xz")
        tree.add_file(path, Data(modules[name]), "linux-modules")
    for name, found in lists.items():
        if found:
            tree.add_file(str(base / name), found.content, "linux-base")
    return _with_indexes(tree, base)


def _with_indexes(tree: Tree, base: PurePosixPath) -> Tree:
    """Run depmod over a copy on disk; return modules and indexes alone."""
    result = Tree()
    with tempfile.TemporaryDirectory() as scratch:
        for entry in tree:
            target = Path(scratch + entry.path)
            if entry.kind is Kind.FILE:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(entry.content.read())
                if entry.path.endswith(".ko"):
                    result.add_file(entry.path, entry.content, entry.layer)
        command = ["depmod", "-b", scratch, "-m", "/usr/lib/modules", base.name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode or "FATAL" in done.stderr or "ERROR" in done.stderr:
            raise TreeError(f"{' '.join(command)}: {done.stderr.strip()}")
        for name in _INDEXES:
            file = Path(scratch + str(base / name))
            result.add_file(str(base / name), Data(whole(file).read()), "linux-modules")
    return result


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kmodules", usage="%(prog)s OUT.tar --tar FILE --module NAME", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT.tar", type=Path, help="the tar to write")
    parser.add_argument(
        "--tar", metavar="FILE", type=Path, action="append", required=True,
        help="data of a Debian package of the kernel; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--module", metavar="NAME", action="append", required=True,
        help="a module to take, with its dependencies; repeatable",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        kernel = Tree()
        for tar in args.tar:
            kernel.add_tar(tar, tar.stem, exclude=["/usr/share"])
        tree = build(kernel, args.module)
        with args.out.open("wb") as out:
            write_tar(tree, out)
    except (TreeError, OSError, lzma.LZMAError) as e:
        print(f"making {args.out}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
